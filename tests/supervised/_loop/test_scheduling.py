"""Schedulers are stepped after steps, epochs or evals as in a bare loop, also in resumed runs."""

import functools
import re
import warnings

import packages
import pytest
import ranks
import torch
from torch import nn
from torch.optim import lr_scheduler
from toys import assert_resumes, assert_same_run, line_loop, state_of

from trax_torch.supervised import EvalTask, Loop, TrainTask, share_of

N, SIZE = 24, 4  # rows, and rows of a batch: 6 batches


def rows():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N, 3, generator=g)
    return x, x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.1


def loader():
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*rows()), SIZE)


class Unsized(torch.utils.data.IterableDataset):
    """The batches, but nobody knows how many."""

    def __iter__(self):
        return iter(loader())


def unsized():
    return torch.utils.data.DataLoader(Unsized(), batch_size=None)


def linear():
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def loop_of(folder=None, data=loader, evals=None, every=None, task=None, **kwargs):
    """A loop of a torch optimizer, whose batches are all trained on: the sample is given."""
    model = linear()
    x, y = rows()
    task = TrainTask(
        data(),
        nn.MSELoss(),
        torch.optim.SGD(model.parameters(), lr=0.1),
        sample_batch=(x[:SIZE], y[:SIZE]),
        n_steps_per_checkpoint=every,
        **(task or {}),
    )
    evals = EvalTask(loader(), nn.MSELoss()) if evals is None else evals
    return line_loop(folder, model=model, task=task, evals=evals, **kwargs)


def rates_of(loop, n):
    """The rate of each of the next n steps, taken one by one."""
    rates = []
    for _ in range(n):
        rates.append(loop.optimizers[0].param_groups[0]["lr"])
        loop.run(1)
    return rates


def bare(n, make, after_step=None, after_epoch=None, after_eval=None, evals=()):
    """A bare loop's rates and weights."""
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler, (x, y), rates = make(optimizer), rows(), []
    for k in range(n):
        rates.append(optimizer.param_groups[0]["lr"])
        i = k % (N // SIZE)
        part = slice(i * SIZE, (i + 1) * SIZE)
        optimizer.zero_grad()
        nn.MSELoss()(model(x[part]), y[part]).backward()
        optimizer.step()
        if after_step is not None:
            after_step(scheduler, k + 1)
        if after_epoch is not None and (k + 1) % (N // SIZE) == 0:
            after_epoch(scheduler, (k + 1) // (N // SIZE))
        if k + 1 in evals:
            with torch.no_grad():
                losses = [nn.MSELoss()(model(a), b) for a, b in loader()]
            after_eval(scheduler, float(torch.stack(losses).double().mean()))
    return rates, model


# Epochs


@pytest.mark.parametrize("data", [loader, unsized, lambda: list(loader())])
def test_a_scheduler_is_stepped_after_each_epoch(data):
    make = functools.partial(lr_scheduler.StepLR, step_size=1, gamma=0.5)
    task = {"lr_schedule": make, "lr_schedule_every": "epoch"}
    loop = loop_of(data=data, task=task, eval_at=lambda step: False, save_at_end=False)
    want, model = bare(15, make, after_epoch=lambda scheduler, _: scheduler.step())
    loop.run(15)

    assert torch.equal(loop.model.weight, model.weight)
    assert want == 6 * [0.1] + 6 * [0.05] + 3 * [0.025]


@pytest.mark.parametrize(
    "schedule",
    [
        functools.partial(lr_scheduler.LambdaLR, lr_lambda=[lambda _: 1.0, lambda n: 0.5**n]),
        functools.partial(lr_scheduler.OneCycleLR, max_lr=[0.1, 0.2], total_steps=10),
    ],
    ids=["lambdas", "one_cycle"],
)
def test_groups_whose_rates_are_one_tensor_have_rates_of_their_own(schedule):
    """As with a float: torch's optimizers put the same tensor into each group."""

    def rates(rate):
        model = linear()
        groups = [{"params": [model.weight]}, {"params": [model.bias]}]
        optimizer = torch.optim.Adam(groups, lr=rate)
        task = TrainTask(loader(), nn.MSELoss(), optimizer, lr_schedule=schedule)
        loop = line_loop(model=model, task=task, evals=EvalTask(loader(), nn.MSELoss()))
        loop.run(2)
        return [float(group["lr"]) for group in loop.optimizers[0].param_groups]

    first, second = rates(0.1)
    assert first != second
    assert rates(torch.tensor(0.1)) == pytest.approx([first, second])


def test_rates_by_epoch_begin_with_the_epoch():
    make = functools.partial(lr_scheduler.ExponentialLR, gamma=0.5)
    loop = loop_of(task={"lr_schedule": make, "lr_schedule_every": "epoch"}, save_at_end=False)

    assert rates_of(loop, 13) == 6 * [0.1] + 6 * [0.05] + [0.025]


@pytest.mark.parametrize("data", [loader, unsized])
@pytest.mark.parametrize("first", [3, 6, 7, 12])
def test_epochs_go_on_bit_for_bit(tmp_path, data, first):
    make = functools.partial(lr_scheduler.StepLR, step_size=1, gamma=0.5)
    task = {"lr_schedule": make, "lr_schedule_every": "epoch"}
    resumed, whole = assert_resumes(
        lambda folder: loop_of(folder, data=data, task=task), tmp_path, first, 8
    )

    assert resumed.optimizers[0].param_groups[0]["lr"] < 0.1
    assert resumed.epoch == whole.epoch


def test_an_epoch_is_as_many_steps_as_there_are_batches():
    model = linear()
    task = TrainTask(loader(), nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    loop = Loop(model, task, progress=False, random_seed=0)

    assert (task.steps_per_epoch, loop.epoch) == (6, 0.0)
    loop.run(3)
    assert loop.epoch == 0.5
    loop.run(n_epochs=2)
    assert (loop.step, loop.epoch) == (15, 2.5)


def test_a_task_says_how_many_epochs_a_run_has():
    """In all: what was trained before counts; a length that `run` is told goes first."""
    loop = loop_of(task={"epochs": 3})

    loop.run(4)
    assert loop.epoch == 4 / 6
    loop.run()
    assert loop.epoch == 3.0
    loop.run()
    assert loop.epoch == 3.0
    loop.run(n_epochs=1)
    assert loop.epoch == 4.0


def test_epochs_of_a_task_are_those_of_a_run_that_is_resumed(tmp_path):
    loop_of(tmp_path, task={"epochs": 2}).run(7)

    resumed = loop_of(tmp_path, task={"epochs": 2})
    resumed.run()

    assert (resumed.step, resumed.epoch) == (12, 2.0)


def test_epochs_of_a_task_that_cannot_be_counted_are_refused():
    with pytest.raises(ValueError, match="epochs needs labeled_data that says how many"):
        loop_of(data=unsized, task={"epochs": 1}).run()
    with pytest.raises(ValueError, match="epochs counts passes through the data of one task"):
        two = [TrainTask(loader(), nn.MSELoss(), torch.optim.SGD, epochs=n) for n in (None, 1)]
        Loop(linear(), two, which_task=lambda step: 0, progress=False).run()
    with pytest.raises(ValueError, match="0 epochs or more; got -1"):
        loop_of(task={"epochs": -1}).run()
    with pytest.raises(TypeError, match=r"A task's epochs is a whole number; got 1.5"):
        loop_of(task={"epochs": 1.5}).run()


def test_epochs_of_shares_and_of_data_without_a_length():
    shared = loop_of(data=lambda: share_of(loader(), 0, 2))
    shared.run(9)
    counted = loop_of(data=unsized)
    counted.run(6)
    before = counted.epoch
    counted.run(1)
    endless = loop_of(data=lambda: iter([*loader(), *loader()]))

    assert shared.epoch == 1.5
    assert (before, counted.epoch) == (0.0, 1.0)
    assert endless.epoch is None


def test_what_has_no_epochs_is_refused():
    make = functools.partial(lr_scheduler.StepLR, step_size=1)
    every = {"lr_schedule_every": "epoch"}
    with pytest.raises(ValueError, match="is an iterator, which has none. Give what can be gone"):
        loop_of(data=lambda: iter(loader()), task={"lr_schedule": make, **every})
    with pytest.raises(ValueError, match="'step' or 'epoch'; got 'eval'"):
        loop_of(task={"lr_schedule": make, "lr_schedule_every": "eval"})
    with pytest.raises(ValueError, match=r"\(step - 1\) // len\(loader\)"):
        loop_of(task={"lr_schedule": lambda step: 0.1, **every})
    with pytest.raises(ValueError, match="n_epochs needs labeled_data that says how many"):
        loop_of(data=unsized).run(n_epochs=1)
    with pytest.raises(ValueError, match="got n_steps=1 and n_epochs=1"):
        loop_of().run(1, n_epochs=1)
    with pytest.raises(ValueError, match="0 steps or more; got -1"):
        loop_of().run(n_epochs=-1)


# Metrics


def plateau(**kwargs):
    kwargs = {"factor": 0.5, "patience": 0, "threshold": 0.5, **kwargs}
    return functools.partial(lr_scheduler.ReduceLROnPlateau, **kwargs)


def plateau_loop(folder=None, task=None, **kwargs):
    task = {"lr_schedule": plateau(), **(task or {})}
    return loop_of(folder, every=2, task=task, **kwargs)


def test_a_scheduler_follows_the_metric_of_each_eval_that_is_due():
    evals = (1, 2, 4, 6, 8, 10, 12)
    want, model = bare(13, plateau(), after_eval=lambda s, value: s.step(value), evals=evals)
    loop = plateau_loop(save_at_end=False)
    loop.run(13)

    assert len(set(want)) > 2
    assert loop.optimizers[0].param_groups[0]["lr"] == want[-1]
    assert torch.allclose(loop.model.weight, model.weight, rtol=1e-6, atol=0)
    values = [v for _, v in loop.history.get("eval", "metrics/MSELoss")]
    assert len(values) == len(evals)


def test_evals_that_a_runs_end_or_a_user_adds_are_not_followed():
    cut, whole = plateau_loop(), plateau_loop()
    whole.run(9)
    for n in (3, 2, 3, 1):
        cut.run(n)
        cut.run_evals()

    assert state_of(cut).keys() == state_of(whole).keys()
    assert cut.optimizers[0].param_groups[0]["lr"] == whole.optimizers[0].param_groups[0]["lr"]
    assert torch.equal(cut.model.weight, whole.model.weight)


@pytest.mark.parametrize("first", [1, 4, 5, 8])
@pytest.mark.parametrize("apart", [False, True])
def test_what_follows_a_metric_goes_on_bit_for_bit(tmp_path, first, apart):
    """Also where evals come at other steps than checkpoints."""
    kwargs = {"checkpoint_at": lambda step: step % 3 == 0} if apart else {}
    kwargs |= {"eval_at": lambda step: step % 2 == 0} if apart else {}
    resumed, _ = assert_resumes(lambda folder: plateau_loop(folder, **kwargs), tmp_path, first, 7)

    assert resumed.optimizers[0].param_groups[0]["lr"] < 0.1


class Killed(BaseException):
    """Ends a run on the spot."""


@pytest.mark.parametrize("at", [2, 4, 6])
@pytest.mark.parametrize("before", [True, False])
def test_a_run_that_is_killed_about_an_eval_goes_on_bit_for_bit(tmp_path, at, before):
    """The checkpoint of a step comes before its evals, which come again: one step each."""

    class Dies(Loop):
        def run_evals(self, summary_writers=None):
            if self.step == at and before:
                raise Killed
            return super().run_evals(summary_writers)

        def save_checkpoint(self, basename, *, blocking=True):
            if self.step == at + 1 and not before:
                raise Killed
            super().save_checkpoint(basename, blocking=blocking)

    def make(folder, kind=Loop):
        model = linear()
        x, y = rows()
        task = TrainTask(
            loader(),
            nn.MSELoss(),
            torch.optim.SGD(model.parameters(), lr=0.1),
            plateau(),
            sample_batch=(x[:SIZE], y[:SIZE]),
        )
        evals = EvalTask(loader(), nn.MSELoss())
        at_odd = not before
        return kind(
            model,
            task,
            eval_tasks=evals,
            output_dir=str(folder),
            checkpoint_at=lambda step: step % 2 == at_odd,
            eval_at=lambda step: step % 2 == 0,
            progress=False,
            random_seed=0,
        )

    whole = make(tmp_path / "whole")
    whole.run(9)
    with pytest.raises(Killed):
        make(tmp_path / "cut", Dies).run(9)
    resumed = make(tmp_path / "cut")
    resumed.run(until=9)

    assert_same_run(resumed, whole)
    assert resumed.optimizers[0].param_groups[0]["lr"] < 0.1


def test_the_best_checkpoint_holds_a_scheduler_that_knows_of_its_eval(tmp_path):
    loop = plateau_loop(tmp_path, checkpoint_low_metric="MSELoss", eval_at=lambda step: True)
    loop.run(6)
    rate = loop.optimizers[0].param_groups[0]["lr"]
    best = plateau_loop(
        tmp_path,
        checkpoint_low_metric="MSELoss",
        eval_at=lambda step: True,
        resume_from="lowest_MSELoss",
    )
    at = best.step
    best.run(until=6)

    assert at > 0
    assert best.optimizers[0].param_groups[0]["lr"] == rate
    assert torch.equal(best.model.weight, loop.model.weight)


def two_metrics():
    return EvalTask(loader(), [nn.MSELoss(), nn.L1Loss()])


@pytest.mark.parametrize("name", ["L1Loss", "metrics/L1Loss"])
def test_a_metric_is_followed_by_its_name(name):
    loop = plateau_loop(evals=two_metrics(), task={"monitor": name}, save_at_end=False)
    loop.run(8)
    pacer = loop._parts.pacers[0]

    values = [v for _, v in loop.history.get("eval", "metrics/L1Loss")]
    assert pacer.scheduler.last_epoch == len(values)
    assert pacer.scheduler.best in values


@pytest.mark.parametrize(
    ("task", "evals", "said"),
    [
        ({}, two_metrics, "none was named, and they measure .'MSELoss', 'L1Loss'."),
        ({"monitor": "loss"}, two_metrics, "got monitor='loss', and they measure"),
        ({"lr_schedule_every": "epoch"}, None, "stepped after each eval that measures it. Leave"),
        (
            {"monitor": "MSELoss", "lr_schedule": lambda o: lr_scheduler.StepLR(o, 1)},
            None,
            "StepLR follows steps. Leave it out",
        ),
        ({"monitor": "MSELoss", "lr_schedule": None}, None, "monitor='MSELoss' is for a scheduler"),
    ],
)
def test_what_cannot_be_followed_is_refused(task, evals, said):
    with pytest.raises(ValueError, match=said):
        plateau_loop(task=task, evals=evals and evals())


def test_without_evals_there_is_nothing_to_follow():
    model = linear()
    task = TrainTask(loader(), nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1), plateau())
    with pytest.raises(ValueError, match="none is measured. Give Loop.eval_tasks="):
        Loop(model, task, progress=False)


class Several:
    """A metric with a state that comes to several numbers."""

    def reset(self): ...

    def update(self, outputs, targets): ...

    def compute(self):
        return {"a": 1.0, "b": 2.0}


def test_one_of_several_numbers_is_followed_and_others_are_named():
    evals = EvalTask(loader(), Several(), metric_names=["it"])
    followed = plateau_loop(evals=evals, task={"monitor": "it/b"})
    followed.run(2)

    assert followed._parts.pacers[0].scheduler.best == 2.0
    with pytest.raises(ValueError, match="'it' is not among .*: it/a, it/b"):
        plateau_loop(evals=evals).run(2)


def test_another_monitor_of_a_run_that_goes_on_is_told(tmp_path, capsys):
    plateau_loop(tmp_path, evals=two_metrics(), task={"monitor": "L1Loss"}).run(2)
    capsys.readouterr()
    plateau_loop(tmp_path, evals=two_metrics(), task={"monitor": "MSELoss"})

    assert re.search(r"was saved with monitor=L1Loss.*with monitor=MSELoss", capsys.readouterr()[0])


def test_a_users_scheduler_whose_step_needs_a_value_follows_the_metric():
    class Halving:
        def __init__(self, optimizer):
            self.optimizer, self.seen = optimizer, []

        def step(self, value):
            self.seen.append(value)
            self.optimizer.param_groups[0]["lr"] *= 0.5

        def state_dict(self):
            return {"seen": list(self.seen)}

        def load_state_dict(self, state):
            self.seen = list(state["seen"])

    loop = plateau_loop(task={"lr_schedule": Halving}, save_at_end=False)
    loop.run(4)

    assert loop._parts.pacers[0].scheduler.seen == [
        v for _, v in loop.history.get("eval", "metrics/MSELoss")
    ]
    assert loop.optimizers[0].param_groups[0]["lr"] == 0.1 / 8


def on_ranks(rank, folder):
    data = share_of(loader(), rank, 2)
    model = linear()
    task = TrainTask(
        data,
        nn.MSELoss(),
        torch.optim.SGD(model.parameters(), lr=0.1),
        plateau(),
        n_steps_per_checkpoint=2,
    )
    batches = list(loader())
    evals = EvalTask(batches[:5] if rank == 0 else batches[5:], nn.MSELoss())
    loop = Loop(model, task, eval_tasks=evals, output_dir=folder, progress=False, random_seed=0)
    loop.run(until=4)
    rate = loop.optimizers[0].param_groups[0]["lr"]
    return rate, loop._parts.pacers[0].scheduler.best, loop.epoch, loop.model.weight.tolist()


def test_ranks_follow_what_all_of_them_measured(tmp_path):
    found = ranks.values(tmp_path, 2, on_ranks, str(tmp_path / "run"))

    assert found[0] == found[1]
    assert found[0][0] < 0.1


# Of others


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_schedules_of_transformers_are_those_of_a_bare_loop(tmp_path, kind):
    transformers = packages.needed("transformers")
    name = f"get_{kind}_schedule_with_warmup"
    known = {"num_warmup_steps": 3} | ({} if kind == "constant" else {"num_training_steps": 10})
    make = functools.partial(getattr(transformers, name), **known)
    want, model = bare(9, make, after_step=lambda scheduler, _: scheduler.step())
    loop = loop_of(task={"lr_schedule": make}, save_at_end=False)

    assert rates_of(loop, 9) == want
    assert torch.equal(loop.model.weight, model.weight)
    assert_resumes(lambda folder: loop_of(folder, task={"lr_schedule": make}), tmp_path, 4, 5)


def of_timm(kind, **kwargs):
    timm = packages.needed("timm.scheduler")
    return functools.partial(getattr(timm, kind), **kwargs)


def timms():
    """A cosine by epochs, one by steps, and steps down by epochs, as timm's own loop has them."""
    warmup = {"warmup_t": 1, "warmup_lr_init": 0.01}
    return {
        "epochs": of_timm("CosineLRScheduler", t_initial=4, **warmup),
        "steps": of_timm("CosineLRScheduler", t_initial=20, t_in_epochs=False, **warmup),
        "noise": of_timm("StepLRScheduler", decay_t=1, decay_rate=0.5, noise_range_t=[0, 9]),
    }


@pytest.mark.parametrize("kind", ["epochs", "steps", "noise"])
def test_schedulers_of_timm_are_those_of_a_bare_loop(tmp_path, kind):
    make = timms()[kind]
    want, model = bare(
        15,
        make,
        after_step=lambda scheduler, k: scheduler.step_update(k),
        after_epoch=lambda scheduler, epoch: scheduler.step(epoch),
    )
    loop = loop_of(task={"lr_schedule": make}, save_at_end=False)

    assert len(set(want)) > 2
    assert rates_of(loop, 15) == want
    assert torch.equal(loop.model.weight, model.weight)
    assert_resumes(lambda folder: loop_of(folder, task={"lr_schedule": make}), tmp_path, 7, 8)


def test_timms_schedulers_by_epochs_need_epochs():
    def endless():
        return iter([*loader(), *loader()])

    loop_of(data=endless, task={"lr_schedule": timms()["steps"]}).run(3)
    with pytest.raises(ValueError, match="goes by epochs, and labeled_data is an iterator"):
        loop_of(data=endless, task={"lr_schedule": timms()["epochs"]})
    with pytest.raises(ValueError, match="was made with t_in_epochs=False"):
        loop_of(task={"lr_schedule": timms()["steps"], "lr_schedule_every": "epoch"})


def test_timms_plateau_that_forgets_is_refused():
    make = of_timm("PlateauLRScheduler")
    with warnings.catch_warnings(), pytest.raises(TypeError, match="does not save what it rem"):
        warnings.simplefilter("ignore")
        loop_of(task={"lr_schedule": make})


class Timmlike:
    """Has timm's two ways of being told: a rate falls with updates, and jumps with epochs."""

    def __init__(self, optimizer):
        self.optimizer, self.told = optimizer, []

    def step_update(self, n_updates):
        self.told.append(n_updates)

    def step(self, n_epochs):
        self.told.append(-n_epochs)
        self.optimizer.param_groups[0]["lr"] = 0.1 * 0.5**n_epochs

    def state_dict(self):
        return {"told": list(self.told)}

    def load_state_dict(self, state):
        self.told = list(state["told"])


@pytest.mark.parametrize("data", [loader, unsized])
def test_what_counts_updates_and_epochs_is_told_both(tmp_path, data):
    loop = loop_of(data=data, task={"lr_schedule": Timmlike}, save_at_end=False)
    loop.run(13)

    told = loop._parts.pacers[0].scheduler.state_dict()["told"]
    assert told == [1, 2, 3, 4, 5, 6, -1, 7, 8, 9, 10, 11, 12, -2, 13]
    resumed, _ = assert_resumes(
        lambda folder: loop_of(folder, data=data, task={"lr_schedule": Timmlike}), tmp_path, 6, 7
    )
    assert resumed._parts.pacers[0].scheduler.state_dict()["told"] == told
