"""A second run goes on where the first ended, bit for bit."""

import functools
import gc
import json
import multiprocessing
import weakref

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from toys import (
    assert_resumes,
    assert_same_run,
    batches,
    eval_task,
    line_loop,
    line_model,
    state_of,
    train_task,
)

from trax_torch import layers as tl
from trax_torch import optimizers
from trax_torch._errors import CheckpointError
from trax_torch.supervised import EvalTask, Loop, TrainTask


def optimizer_named(name):
    return {
        "SGD": optimizers.SGD(0.01),
        "Adam": optimizers.Adam(0.01),
        "torch AdamW": functools.partial(torch.optim.AdamW, lr=0.01),
        "torch SGD": functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9),
    }[name]


@pytest.mark.parametrize("name", ["SGD", "Adam", "torch AdamW", "torch SGD"])
@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cuts=st.lists(st.integers(1, 8), min_size=1, max_size=3), period=st.integers(1, 4))
def test_a_resumed_run_equals_an_uninterrupted_one(name, cuts, period, tmp_path_factory):
    """However often it is cut: weights, slots, history and evals are the same, to the last bit."""
    at = {"checkpoint_at": lambda step: True, "eval_at": lambda step: step % period == 0}

    def loop(folder):
        task = train_task(optimizer=optimizer_named(name))
        return line_loop(folder, dropout=0.3, task=task, **at)

    whole = loop(tmp_path_factory.mktemp("whole"))
    whole.run(sum(cuts))
    folder = tmp_path_factory.mktemp("cut")
    for n_steps in cuts:
        part = loop(folder)
        part.run(n_steps)

    assert_same_run(part, whole)


def test_a_run_cut_between_checkpoints_goes_on_from_the_last(tmp_path):
    whole = line_loop(tmp_path / "whole", dropout=0.3)
    whole.run(20)
    cut = line_loop(tmp_path / "cut", dropout=0.3, save_at_end=False)
    cut.run(13)  # saved at 10 the last time

    resumed = line_loop(tmp_path / "cut", dropout=0.3)
    assert resumed.step == 10
    resumed.run(10)

    assert_same_run(resumed, whole)


def test_what_is_dropped_from_a_checkpoint_shows(tmp_path, monkeypatch):
    """The comparison can fail: without the data's position, the resumed run is another."""
    whole = line_loop(tmp_path / "whole")
    whole.run(20)
    line_loop(tmp_path / "cut").run(10)
    monkeypatch.setattr("trax_torch.data._streams.stream.BatchStream.seek", lambda *_: None)
    resumed = line_loop(tmp_path / "cut")
    resumed.run(10)

    with pytest.raises(AssertionError):
        assert_same_run(resumed, whole)


class Rewindable:
    """Data that keeps its own position."""

    def __init__(self):
        self.i = 0
        self.asked_to_load = False

    def __iter__(self):
        return self

    def __next__(self):
        self.i += 1
        return next(batches(self.i))

    def state_dict(self):
        return {"i": self.i, "extra": (torch.tensor([self.i]), [None, b"x"], {1: 0.5})}

    def load_state_dict(self, state):
        assert state["extra"][1:] == ([None, b"x"], {1: 0.5})
        assert state["extra"][0].item() == state["i"]
        self.i, self.asked_to_load = state["i"], True


def test_data_that_keeps_its_position_is_asked_for_it(tmp_path):
    def loop(folder, data):
        task = TrainTask(data, tl.L2Loss(), optimizers.Adam(0.01), n_steps_per_checkpoint=5)
        return line_loop(folder, task=task)

    whole = loop(tmp_path / "whole", Rewindable())
    whole.run(10)
    loop(tmp_path / "cut", Rewindable()).run(5)
    data = Rewindable()
    resumed = loop(tmp_path / "cut", data)
    assert data.asked_to_load
    resumed.run(5)

    assert_same_run(resumed, whole)


@pytest.mark.parametrize("n_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_shuffled_data_loader_is_resumed(tmp_path, n_workers):
    """With a generator of its own, a DataLoader goes on with the batch it would have given."""

    def loop(folder):
        items = [
            (torch.randn(3, generator=torch.Generator().manual_seed(i)),) * 2 for i in range(7)
        ]
        items = [(x, y[:1], torch.ones(1)) for x, y in items]
        loader = torch.utils.data.DataLoader(
            items,
            2,
            shuffle=True,
            generator=torch.Generator().manual_seed(3),
            num_workers=n_workers,
        )
        task = TrainTask(loader, tl.L2Loss(), optimizers.Adam(0.01), n_steps_per_checkpoint=5)
        return line_loop(folder, task=task)

    assert_resumes(loop, tmp_path, 10, 5)


def test_a_loop_that_is_given_up_ends_its_workers_at_once(monkeypatch):
    """In the midst of an epoch, and though a loop and its callbacks hold each other.

    They end as they are told to: torch kills those that do not, after a while.
    """
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 60.0)
    items = [(torch.ones(3), torch.ones(1), torch.ones(1))] * 64
    loader = torch.utils.data.DataLoader(items, 2, num_workers=2)
    others = set(multiprocessing.active_children())
    loop = line_loop(task=TrainTask(loader, tl.L2Loss(), optimizers.SGD(0.01)))
    loop.run(3)
    workers = set(multiprocessing.active_children()) - others
    gone = weakref.ref(loop)

    del loop
    gc.collect()

    assert gone() is None
    assert len(workers) == 2
    assert not any(worker.is_alive() for worker in workers)
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_data_drawn_from_the_default_generator_is_resumed(tmp_path):
    """Steps and evals leave the ambient stream alone, so going forward draws the same numbers."""

    def data():
        while True:
            x = torch.randn(4, 3)
            yield x, x[:, :1], torch.ones(4, 1)

    def loop(folder):
        torch.manual_seed(0)
        task = TrainTask(data(), tl.L2Loss(), optimizers.Adam(0.01), n_steps_per_checkpoint=5)
        return line_loop(folder, dropout=0.3, task=task)

    assert_resumes(loop, tmp_path, 10, 5)


def test_without_a_seed_the_run_keeps_the_one_it_found(tmp_path):
    """The seed that was drawn is kept in the checkpoint, so dropout goes on as it would have."""
    settings = {"dropout": 0.3, "random_seed": None, "save_at_end": False}
    first = line_loop(tmp_path, **settings)
    first.run(5)
    resumed = line_loop(tmp_path, **settings)
    resumed.run(4)
    first.run(4)

    assert_same_run(resumed, first)


def test_buffers_and_torch_schedulers_are_resumed(tmp_path):
    """BatchNorm's running statistics, and a scheduler that changes rates by its own count."""

    def loop(folder):
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        torch.manual_seed(0)
        for p in model.parameters():
            nn.init.normal_(p)
        data = ((torch.as_tensor(x), torch.as_tensor(y)) for x, y in batches(weights=False))
        schedule = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=7)
        task = TrainTask(
            data,
            nn.MSELoss(),
            torch.optim.AdamW(model.parameters(), lr=0.01),
            schedule,
            n_steps_per_checkpoint=5,
        )
        evals = EvalTask(batches(3, weights=False), nn.MSELoss())
        return line_loop(folder, model=model, task=task, evals=evals)

    resumed, whole = assert_resumes(loop, tmp_path, 10, 5)
    assert (
        resumed._parts.pacers[0].scheduler.state_dict()
        == whole._parts.pacers[0].scheduler.state_dict()
    )
    names = set(resumed.model.state_dict())
    assert "1.running_mean" in names


def test_several_tasks_are_resumed(tmp_path):
    def loop(folder):
        tasks = [train_task(0, loss_name="a"), train_task(1, loss_name="b")]
        return line_loop(folder, task=tasks, evals=[eval_task(100), eval_task(101)])

    assert_resumes(loop, tmp_path, 15, 5)


def test_a_permanent_checkpoint_resumes_at_its_own_place(tmp_path):
    """The position belongs to the checkpoint: model_5 goes on with the batches after step 5."""

    def loop(folder):
        return line_loop(folder, task=train_task(n_steps_per_permanent_checkpoint=5))

    whole = loop(tmp_path)
    whole.run(10)
    early = line_loop(None, random_seed=9)
    early.load_checkpoint(str(tmp_path), "model_5")
    assert early.step == 5
    early.run(5)

    assert_same_run(early, whole)


def test_generators_go_on_after_a_restart(tmp_path):
    def first_draw(loop):
        return torch.rand(1, generator=loop.new_rng()).item()

    loop = line_loop(tmp_path)
    draws = [first_draw(loop)]
    loop.run(5)
    draws += [first_draw(loop)]

    assert first_draw(line_loop(tmp_path)) == draws[1]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model": lambda: tl.Serial(tl.Dense(4), tl.Tanh(), tl.Dense(1))}, "another model's"),
        (
            {"task": lambda: train_task(optimizer=optimizers.SGD(0.1))},
            "optimizer BoundAdam and now",
        ),
        ({"task": lambda: [train_task(), train_task(1)]}, "saved with 1 tasks; there are 2"),
        (
            {
                "task": lambda: train_task(
                    lr_schedule=functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1)
                )
            },
            "saved with no torch scheduler and has a one",
        ),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_whole(tmp_path, change, match):
    """An IndexError, as in Trax, that names the first differences; nothing is filled."""
    line_loop(tmp_path).run(5)
    loop = line_loop(None, **{key: make() for key, make in change.items()})
    before = state_of(loop)

    with pytest.raises(IndexError, match=match) as caught:
        loop.load_checkpoint(str(tmp_path))

    assert isinstance(caught.value, CheckpointError)
    assert loop.step == 0
    assert all(torch.equal(before[k], v) for k, v in state_of(loop).items())


def test_an_output_dir_without_a_checkpoint_is_started_afresh(tmp_path):
    line_loop().load_checkpoint()
    loop = line_loop(tmp_path)
    loop.load_checkpoint()

    assert loop.step == 0


def test_without_a_folder_saving_says_so(capsys):
    with pytest.warns(UserWarning, match="saved nothing: this Loop has no output_dir"):
        line_loop().save_checkpoint("model")

    assert "Did not save checkpoint as output_dir is None" in capsys.readouterr().out


def test_a_manifest_tells_nothing_of_user_host_or_path(tmp_path):
    import getpass
    import socket

    line_loop(tmp_path).run(1)
    text = (tmp_path / "model.json").read_text()

    assert socket.gethostname() not in text
    assert str(tmp_path) not in text
    assert f'"{getpass.getuser()}"' not in text
    assert json.loads(text)["info"]["step"] == 1


def test_a_model_of_the_same_names_trains_on_in_plain_pytorch(tmp_path):
    """The weights file of a plain module loads with its own names."""
    from safetensors.torch import load_file

    model = nn.Sequential(nn.Linear(3, 1))
    task = TrainTask(batches(weights=False), nn.MSELoss(), torch.optim.AdamW)
    Loop(model, task, output_dir=str(tmp_path), progress=False).run(1)

    (path,) = tmp_path.glob("model.*.weights.safetensors")
    twin = nn.Sequential(nn.Linear(3, 1))
    twin.load_state_dict(load_file(path))
    assert torch.equal(twin[0].weight, model[0].weight)


def test_line_model_is_worth_resuming():
    """The toys learn something, or the laws above would hold of nothing."""
    loop = line_loop(model=line_model(0.3))
    loop.run(1)
    before = [p.clone() for p in loop.model.parameters()]
    loop.run(1)
    assert not any(torch.equal(a, b) for a, b in zip(before, loop.model.parameters(), strict=True))


def test_a_loss_that_is_trained_is_resumed_too(tmp_path):
    class Tempered(nn.Module):
        def __init__(self):
            super().__init__()
            self.log_scale = nn.Parameter(torch.zeros(()))
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

        def forward(self, output, targets, weights):
            self.calls += 1
            return (self.log_scale.exp() * (output - targets) ** 2).mean() - self.log_scale

    def loop(folder):
        task = TrainTask(batches(), Tempered(), optimizers.Adam(0.1), n_steps_per_checkpoint=5)
        return line_loop(folder, task=task)

    resumed, whole = assert_resumes(loop, tmp_path, 10, 5)
    ours, theirs = (run.tasks[0].loss_layer.state_dict() for run in (resumed, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert theirs["module.calls"].item() >= 15


@pytest.mark.parametrize(
    ("saved", "now"),
    [
        (optimizers.Adafactor(0.05), optimizers.Adafactor(0.05, do_momentum=True, beta1=0.9)),
        (torch.optim.AdamW, functools.partial(torch.optim.AdamW, amsgrad=True)),
    ],
)
def test_slots_of_other_settings_are_refused_whole(tmp_path, saved, now):
    line_loop(tmp_path, task=train_task(optimizer=saved)).run(5)
    loop = line_loop(None, task=train_task(optimizer=now), random_seed=8)
    before = state_of(loop)

    with pytest.raises(IndexError, match="was saved with"):
        loop.load_checkpoint(str(tmp_path))

    assert all(torch.equal(before[k], v) for k, v in state_of(loop).items())


def test_data_that_can_begin_again_goes_back(tmp_path):
    """A list of batches, or a DataLoader, is rewound; an iterator cannot be."""
    data = [batch for _, batch in zip(range(4), batches(), strict=False)]
    task = TrainTask(data, tl.L2Loss(), optimizers.Adam(0.01), n_steps_per_checkpoint=5)
    evals = EvalTask(data, tl.L2Loss())
    loop = line_loop(tmp_path, task=task, evals=evals, save_at_end=False)
    loop.run(8)
    loop.load_checkpoint()
    assert loop.step == 5
    stuck = line_loop(tmp_path / "other")
    stuck.run(8)
    with pytest.raises(ValueError, match="Build the task with fresh data before resuming"):
        stuck.load_checkpoint()


def test_numbers_of_numpy_find_their_way_into_a_checkpoint(tmp_path):
    """In the history, in a seed, and in what the data says of itself."""
    import numpy as np

    class Numpy(Rewindable):
        def state_dict(self):
            state = super().state_dict()
            return {**state, "array": np.arange(3), "number": np.float32(2)}

        def load_state_dict(self, state):
            assert state["array"].tolist() == [0, 1, 2]
            assert state["number"] == 2
            super().load_state_dict(state)

    def loop():
        task = TrainTask(Numpy(), tl.L2Loss(), optimizers.Adam(0.01), n_steps_per_checkpoint=5)
        return line_loop(tmp_path, task=task, random_seed=np.int64(3))

    first = loop()
    first.history.append("train", "mine", 0, np.float32(1))
    first.run(5)

    assert loop().history.get("train", "mine") == [(0, 1.0)]


def test_another_seed_than_the_saved_one_is_spoken_of(tmp_path, capsys):
    line_loop(tmp_path, random_seed=0).run(5)
    line_loop(tmp_path, random_seed=7)

    assert "The run's seed is 0, as saved; not 7." in capsys.readouterr().out


def poisoned(bad_step, seed=0):
    """Batches of which one, that of a step, holds no number (the first is the sample)."""
    for i, (x, y, w) in enumerate(batches(seed)):
        yield (x * float("nan") if i == bad_step else x), y, w


def normalized():
    return tl.Serial(tl.Dense(6), tl.BatchNorm(0), tl.Relu(), tl.Dropout(0.3), tl.Dense(1))


@pytest.mark.parametrize("n_parts", [1, 2])
@pytest.mark.parametrize("index", [0, 1])
def test_a_step_that_is_not_finite_leaves_no_trace(tmp_path, index, n_parts):
    """Weights, slots, buffers and the checkpoint are those before it; the error names the task."""

    def loop(folder, *data):
        tasks = [
            TrainTask(d, tl.L2Loss(), optimizers.Adam(0.01), loss_name=f"loss_{i}")
            for i, d in enumerate(data)
        ]
        at = {"checkpoint_at": lambda step: True, "eval_at": lambda step: False}
        at |= {"n_accumulation_steps": n_parts, "save_at_end": False}
        return line_loop(folder, model=normalized(), task=tasks, **at)

    data = [batches(0), batches(1)]
    data[index] = poisoned(4, seed=index)
    bad_step = 8 - index  # the fourth of its task: task 1 begins
    broken = loop(tmp_path / "broken", *data)
    with pytest.raises(optimizers.NonFiniteError, match=f"Step {bad_step}: the loss is nan") as e:
        broken.run(20)
    whole = loop(None, batches(0), batches(1))
    whole.run(bad_step - 1)
    saved = loop(None, batches(0), batches(1))
    saved.load_checkpoint(str(tmp_path / "broken"))

    assert e.value.__notes__ == [f"This was task {index} (loss_{index})."]
    assert any("running_mean" in name for name in state_of(broken))
    assert_same_run(saved, whole)
    assert broken.step == whole.step
    assert all(torch.equal(v, state_of(broken)[k]) for k, v in state_of(whole).items())


def test_a_skipped_step_changes_nothing_and_is_counted(tmp_path):
    """Also over a restart: so many may be skipped in all."""

    def loop(folder, skips):
        data = (
            (x * float("nan") if i in (3, 5) else x, y, w) for i, (x, y, w) in enumerate(batches())
        )
        task = TrainTask(data, tl.L2Loss(), optimizers.Adam(0.01))
        at = {"checkpoint_at": lambda step: True, "eval_at": lambda step: False}
        return line_loop(folder, model=normalized(), task=task, on_nonfinite=skips, **at)

    first = loop(tmp_path, "skip")
    first.run(2)
    before = state_of(first)
    first.run(1)
    after = state_of(first)
    first.run(1)
    resumed = loop(tmp_path, 1)
    with pytest.raises(optimizers.NonFiniteError, match="Step 5: .* 2 steps were not"):
        resumed.run(1)

    assert first._parts.trainers[0].n_skipped == 1
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not torch.equal(before["0.weight"], state_of(first)["0.weight"])
    assert all(torch.equal(v, state_of(resumed)[k]) for k, v in state_of(first).items())


def two_headed_loop(folder, which_task=None, n_parts=1):
    """One body and two heads, each with a task of its own."""
    model = tl.Serial(tl.Dense(8), tl.Tanh(), tl.Branch(tl.Dense(1), tl.Dense(1)))

    def task(index, optimizer):
        loss = tl.Serial(tl.Select([index, 2, 3], n_in=4), tl.L2Loss())
        data = ((x, y if index == 0 else -y / 2, w) for x, y, w in batches(index))
        kwargs = {"loss_name": f"loss_{index}", "export_prefix": f"head_{index}"}
        return TrainTask(data, loss, optimizer, n_steps_per_checkpoint=10, **kwargs)

    tasks = [task(0, optimizers.Adam(0.02)), task(1, optimizers.SGD(0.05, clip_grad_norm=1.0))]
    return Loop(
        model,
        tasks,
        output_dir=str(folder),
        which_task=which_task,
        random_seed=0,
        progress=False,
        n_accumulation_steps=n_parts,
    )


@pytest.mark.parametrize("n_parts", [1, 2])
@pytest.mark.parametrize("which_task", [None, lambda step: int(step % 3 == 0)])
def test_two_heads_over_one_body_learn_and_resume(tmp_path, which_task, n_parts):
    """Both losses fall, slots are separate, each has its folder, and a cut run is exact."""
    resumed, whole = assert_resumes(
        lambda folder: two_headed_loop(folder, which_task, n_parts), tmp_path, 110, 90
    )

    for index in (0, 1):
        values = [v for _, v in whole.history.get("train", f"metrics/loss_{index}")]
        assert sum(values[-3:]) < 0.7 * sum(values[:3])
        assert list((tmp_path / "cut" / f"head_{index}" / "train").glob("events*"))
    adam, sgd = (trainer.optimizer for trainer in resumed._parts.trainers)
    assert adam.state
    assert not any(sgd.state.values())
    body = next(iter(whole.model.parameters()))
    assert all(any(p is body for p in t.params) for t in whole._parts.trainers)
