"""What goes wrong on one rank ends all of them soon, at the same step, and says what it was."""

import contextlib
import errno
import functools
import os
import re
import signal
import time

import figures
import numpy as np
import patience
import pytest
import ranks
import torch
from toys import batches, eval_task, line_loop, state_of

from trax_torch import _signals, models, optimizers
from trax_torch import layers as tl
from trax_torch.supervised import EvalTask, TrainTask, training
from trax_torch.supervised._checkpoint import storage
from trax_torch.supervised.callbacks import ExponentialMovingAverage, TrainingStepCallback

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)


class At(TrainingStepCallback):
    """Does something on one rank, before or after a step."""

    def __init__(self, loop, step, do, before=True):
        super().__init__(loop)
        self._at, self._do, self._before = step, do, before

    def on_step_begin(self, step):
        if self._before and step == self._at:
            self._do(self._loop)

    def on_step_end(self, step):
        if not self._before and step == self._at:
            self._do(self._loop)


class Fateful(tl.Layer):
    """Passes its inputs on, and does something in its n-th pass in train mode."""

    def __init__(self, do, n=9):
        super().__init__()
        self._do, self._left = do, n

    def forward(self, x):
        self._left -= self.training
        if self.training and self._left == 0:
            self._do()
        return x


def data(seed, rank, edit=None):
    """This rank's batches; `edit(i, batch)` may change, end or break them."""
    for i, batch in enumerate(batches(seed + rank)):
        yield batch if edit is None else edit(i, batch)


def make_loop(rank, folder=None, at=None, edit=None, eval_edit=None, guilty=1, **kwargs):
    """A loop on a rank; `at`, `edit` and `eval_edit` are for the guilty one alone."""
    is_guilty = rank == guilty
    task = TrainTask(
        data(0, rank, edit if is_guilty else None),
        tl.L2Loss(),
        optimizers.Adam(0.01),
        n_steps_per_checkpoint=5,
    )
    evals = EvalTask(data(100, rank, eval_edit if is_guilty else None), tl.L2Loss())
    callbacks = [functools.partial(At, **at)] if at is not None and is_guilty else []
    return line_loop(
        folder,
        **{"task": task, "evals": evals, "callbacks": callbacks, "device": "cpu", **kwargs},
    )


def error_of(rank, n_steps=12, **kwargs):
    """Runs, and returns what was raised: type, text, the step, when, and the weights."""
    loop = make_loop(rank, **kwargs)
    with pytest.raises(Exception) as raised:  # noqa: PT011  whatever it is, the test looks at it
        loop.run(n_steps)
    now = time.monotonic()
    text = "\n".join([str(raised.value), *getattr(raised.value, "__notes__", [])])
    weights = [w.detach().numpy().copy() for w in loop.model.parameters()]
    return type(raised.value).__name__, text, loop.step, now, weights


# A rank that is gone, or does not answer.


def die(path, loop=None):
    with open(path, "w") as f:
        f.write(str(time.monotonic()))
    os.kill(os.getpid(), signal.SIGKILL)


def hang(path, loop=None):
    """Does not answer until the others have given up."""
    with open(path, "w") as f:
        f.write(str(time.monotonic()))
    until = time.monotonic() + ranks.LIMIT / 2
    while not os.path.exists(f"{path}.given_up") and time.monotonic() < until:
        time.sleep(0.05)
    raise KeyError("hung")


def run_into(rank, fate, path, place, **kwargs):
    """Trains until rank 1 meets its fate: between steps, or in the middle of one."""
    do = functools.partial(fate, path)
    if place == "between":
        return error_of(rank, at={"step": 6, "do": do}, **kwargs)
    model = tl.Serial(tl.Dense(8), Fateful(do if rank == 1 else int), tl.Dense(1))
    return error_of(rank, model=model, **kwargs)


def give_up(rank, path, **kwargs):
    found = run_into(rank, hang, path, **kwargs)
    with open(f"{path}.given_up", "w"):
        return found


@pytest.mark.parametrize("settings", [{}, {"adasum": True}], ids=["mean", "adasum"])
@pytest.mark.parametrize("place", ["between", "within"])
def test_others_fail_at_once_when_a_rank_is_killed(place, settings, tmp_path):
    path = str(tmp_path / "time")
    function = functools.partial(run_into, fate=die, path=path, place=place, **settings)
    found = ranks.outcomes(tmp_path, 2, function)

    assert found[1] == ("signal", signal.SIGKILL)
    kind, (name, text, step, now, _) = found[0]
    assert (kind, name) == ("value", "RankError")
    assert text.startswith("Another rank is gone or does not answer: rank 1 (last heard of: ")
    assert "This is rank 0, in step " in text
    assert "--max-restarts" in text
    assert 3 <= step <= 8
    assert (
        now - float((tmp_path / "time").read_text()) < patience.SOON
    )  # ranks are given up after 300


@pytest.mark.parametrize("place", ["between", "within"])
def test_others_fail_within_the_timeout_when_a_rank_hangs(place, tmp_path):

    def check(timeout):
        path = tmp_path / f"time{timeout}"
        work = functools.partial(give_up, path=str(path), place=place, timeout=timeout)
        found = ranks.values(tmp_path / f"ranks{timeout}", 2, work)

        name, text, _, now, _ = found[0]
        assert name == "RankError"
        assert text.startswith("Another rank is gone or does not answer: rank 1 (last heard of: ")
        assert f"If it is only slow, give Loop(timeout=) more than {timeout} seconds." in text
        assert timeout / 2 < now - float(path.read_text()) < timeout + patience.SOON

    patience.with_more_time(check, 3, 20, 60)


def test_others_fail_soon_when_a_rank_raises_in_the_middle_of_a_step(tmp_path):
    """And the rank itself with its own error, which nothing hides."""

    def run(rank):
        def fail():
            raise RuntimeError("out of memory")

        model = tl.Serial(tl.Dense(8), Fateful(fail if rank == 1 else int), tl.Dense(1))
        make_loop(rank, model=model).run(12)

    start = time.monotonic()
    found = ranks.outcomes(tmp_path, 2, run)

    assert [each[:2] for each in found] == [("error", "RankError"), ("error", "LayerError")]
    assert "Another rank is gone" in found[0][2]
    assert "On rank 1: LayerError: " in found[0][2]
    assert "out of memory" in found[0][2]
    assert "out of memory" in found[1][2]
    assert time.monotonic() - start < 120  # and not 300, after which ranks are given up


class Falls(torch.optim.lr_scheduler.LRScheduler):
    """A scheduler that fails on one rank."""

    def get_lr(self):
        if self.last_epoch == 3 and torch.distributed.get_rank():
            raise KeyError("no rate for step 3")
        return self.base_lrs


class FailsInEvals(TrainingStepCallback):
    def on_evals_begin(self, step):
        if step == 5 and torch.distributed.get_rank():
            raise KeyError("no evals at step 5")


@pytest.mark.parametrize("what", ["scheduler", "callback"])
def test_what_fails_between_collective_calls_reaches_the_others_with_its_words(what, tmp_path):
    def run(rank):
        if what == "callback":
            make_loop(rank, callbacks=[FailsInEvals]).run(12)
        task = TrainTask(data(0, rank), tl.L2Loss(), optimizers.Adam(0.01), Falls)
        make_loop(rank, task=task).run(12)

    first, other = ranks.outcomes(tmp_path, 2, run)

    assert first[:2] == ("error", "RankError")
    assert other[:2] == ("error", "KeyError")
    words = "no evals at step 5" if what == "callback" else "no rate for step 3"
    assert f"On rank 1: KeyError: '{words}'" in first[2]


# Data, callbacks and evals.


class Ending:
    """Data that ends, or breaks, after so many batches."""

    def __init__(self, rank, n, error):
        self._data, self._left, self._error = batches(rank), n, error

    def __iter__(self):
        return self

    def __next__(self):
        self._left -= 1
        if self._left < 0:
            raise self._error
        return next(self._data)


def ending(rank, n, error, **kwargs):
    labeled = Ending(rank, n if rank == 1 else 1000, error)
    task = TrainTask(labeled, tl.L2Loss(), optimizers.Adam(0.01), n_steps_per_checkpoint=5)
    return error_of(rank, task=task, **kwargs)


def assert_failed_together(found, names, text):
    """All with one error, the first of the guilty rank 1, at one step, with equal weights."""
    assert [each[0] for each in found] == names
    assert text in found[1][1]
    for rank, each in enumerate(found):
        if rank != 1:
            assert each[1].startswith("On rank 1: ")
            assert text in each[1]
        assert each[2] == found[1][2]
        assert all(np.array_equal(a, b) for a, b in zip(each[4], found[1][4], strict=True))


@pytest.mark.parametrize(
    ("error", "name", "text"),
    [
        (StopIteration(), "ValueError", "labeled_data ended after 8 batches"),
        (OSError(errno.EIO, "the disk is gone"), "OSError", "the disk is gone"),
        (AssertionError("odd"), "AssertionError", "odd"),
    ],
    ids=["end", "OSError", "AssertionError"],
)
@pytest.mark.parametrize("size", [2, 3])
def test_data_that_fails_on_one_rank_ends_all_at_the_same_step(size, error, name, text, tmp_path):
    found = ranks.values(tmp_path, size, functools.partial(ending, n=8, error=error))

    assert_failed_together(found, ["RankError", name, "RankError"][:size], text)
    # The first batch is the sample, which comes last where an iterator ends.
    assert found[0][2] == (8 if isinstance(error, StopIteration) else 7)


def test_an_eval_that_fails_on_one_rank_ends_all(tmp_path):
    """Its data ends, say."""

    def edit(i, batch):
        if i == 2:
            raise KeyError("no more evals")
        return batch

    found = ranks.values(tmp_path, 2, functools.partial(error_of, eval_edit=edit))

    assert_failed_together(found, ["RankError", "KeyError"], "no more evals")
    assert found[0][2] == 5


def boom(loop):
    raise KeyError("boom")


def test_a_callback_that_fails_before_a_step_on_one_rank_ends_all(tmp_path):
    run = functools.partial(error_of, at={"step": 7, "do": boom})
    found = ranks.values(tmp_path, 2, run)

    assert_failed_together(found, ["RankError", "KeyError"], "boom")
    assert found[0][2] == 6


def test_a_callback_that_fails_after_a_step_on_one_rank_ends_all_soon(tmp_path):
    """As soon as its process ends: between two steps nobody asks."""

    def run(rank):
        make_loop(rank, at={"step": 7, "do": boom, "before": False}).run(12)

    found = ranks.outcomes(tmp_path, 2, run)

    assert [each[:2] for each in found] == [("error", "RankError"), ("error", "KeyError")]


# Losses that are not finite.


def bad_batch(i, batch):
    x, y, w = batch
    return (x * np.float32("nan"), y, w) if i == 7 else batch


@pytest.mark.parametrize(
    "settings", [{}, {"adasum": True}, {"n_accumulation_steps": 2}], ids=["mean", "adasum", "parts"]
)
def test_a_loss_that_is_not_finite_on_one_rank_ends_all_and_saves_nothing(settings, tmp_path):
    """All say step, task and rank; the weights are those of the step before."""
    folder = str(tmp_path / "run")
    run = functools.partial(error_of, folder=folder, edit=bad_batch, **settings)
    found = ranks.values(tmp_path, 2, run)

    for rank, (name, text, step, _, weights) in enumerate(found):
        assert name == "NonFiniteError"
        assert text.startswith("Step 7: the loss's part of rank ")
        assert (f"of rank {rank} is nan" in text) == (rank == 1)
        assert "task 0 (L2Loss); ranks whose part of the loss is not finite: 1." in text
        assert step == 6
        assert all(np.array_equal(a, b) for a, b in zip(weights, found[0][4], strict=True))
    assert storage.read(folder, "model")[1]["step"] == 5


def skipping(rank):
    loop = make_loop(rank, edit=bad_batch, on_nonfinite="skip")
    loop.run(10)
    history = loop.history.get("train", "training/skipped steps")
    weights = [w.detach().numpy() for w in loop.model.parameters()]
    return loop.step, history, all(np.isfinite(w).all() for w in weights), weights


def test_a_step_that_is_skipped_for_one_rank_is_skipped_on_all(tmp_path):
    found = ranks.values(tmp_path, 2, skipping)

    for step, history, is_finite, weights in found:
        assert (step, history, is_finite) == (10, [(10, 1.0)], True)
        assert all(np.array_equal(a, b) for a, b in zip(weights, found[0][3], strict=True))


# Checkpoints.


def fill_disk(loop):
    """Has saves fail from here on, in this process alone."""

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    if loop._saver._saver._in_flight is not None:
        loop._saver._saver._in_flight.result()
    os.fsync = full


def failing_save(rank, folder, **kwargs):
    """The chief's disk is full from step 7 on."""
    return error_of(rank, folder=folder, guilty=0, at={"step": 7, "do": fill_disk}, **kwargs)


@pytest.mark.parametrize("background", [False, True], ids=["blocking", "background"])
def test_a_save_that_fails_on_the_chief_is_the_same_error_on_all_ranks(background, tmp_path):
    folder = str(tmp_path / "run")
    run = functools.partial(failing_save, folder=folder, background_saves=background)
    found = ranks.values(tmp_path, 3, run)

    for name, text, step, _, _ in found:
        assert name == "CheckpointError"
        assert "No space left on device" in text
        assert folder in text
        assert text.removeprefix("On rank 0: ") == found[0][1]
        assert step == found[0][2]
    assert storage.read(folder, "model")[1]["step"] == 5


def leave_with_a_failing_save(rank, folder):
    """A signal comes while the last save in the background fails."""

    def fill_and_ask(loop):
        fill_disk(loop)
        loop._stopping._stopper.signum = signal.SIGTERM

    at = {"step": 10, "do": fill_and_ask}
    return error_of(rank, folder=folder, guilty=0, at=at, background_saves=True)


@pytest.mark.parametrize("size", [1, 2])
def test_a_save_in_the_background_that_fails_is_not_lost_when_a_signal_comes(size, tmp_path):
    run = functools.partial(leave_with_a_failing_save, folder=str(tmp_path / "run"))
    found = ranks.values(tmp_path, size, run)

    assert [each[0] for each in found] == ["CheckpointError"] * size
    assert {each[2] for each in found} == {10}


# Ranks that do not train the same.


def other_seed(rank, folder):
    make_loop(rank, random_seed=rank)


def other_model(rank, folder):
    layers = [tl.Dense(8) for _ in range(20)]
    make_loop(rank, model=tl.Serial(*layers, tl.Dense(1 + rank), tl.Dense(1)))


def other_n_tasks(rank, folder):
    tasks = [TrainTask(data(i, rank), tl.L2Loss(), optimizers.Adam()) for i in range(1 + rank)]
    make_loop(rank, task=tasks)


def other_metrics(rank, folder):
    make_loop(rank, evals=eval_task(metrics=[tl.L2Loss(), tl.SmoothL1Loss()][: 1 + rank]))


def other_rate(rank, folder):
    make_loop(rank, task=TrainTask(data(0, rank), tl.L2Loss(), optimizers.Adam(0.1 * (1 + rank))))


def other_settings(rank, folder):
    make_loop(rank, n_accumulation_steps=1 + rank)


def output_dir_on_the_chief_alone(rank, folder):
    make_loop(rank, folder=folder if rank == 0 else None)


def other_frozen(rank, folder):
    model = tl.Serial(tl.Dense(8), tl.Dense(1))
    model.init_missing(torch.ones(4, 3), rng=0)
    model.sublayers[0].requires_grad_(not rank)
    make_loop(rank, model=model)


def other_modules(rank, folder):
    make_loop(rank, model=tl.Serial(tl.Dense(8), [tl.Tanh, tl.Relu][rank](), tl.Dense(1)))


def other_loss(rank, folder):
    loss = torch.nn.HuberLoss(delta=1.0 + rank)
    pairs = ((x, y) for x, y, _ in data(0, rank))
    make_loop(rank, task=TrainTask(pairs, loss, optimizers.Adam()), evals=[])


def other_scheduler(rank, folder):
    step = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=2 + rank)
    make_loop(rank, task=TrainTask(data(0, rank), tl.L2Loss(), optimizers.Adam(), step))


def scheduler_on_one(rank, folder):
    step = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=2) if rank else None
    make_loop(rank, task=TrainTask(data(0, rank), tl.L2Loss(), optimizers.Adam(), step))


def other_data(rank, folder):
    first = next(data(0, rank))
    given = [[first], iter([first, first])][rank]
    make_loop(rank, task=TrainTask(given, tl.L2Loss(), optimizers.Adam()))


def other_callback(rank, folder):
    averages = functools.partial(ExponentialMovingAverage, decay=0.9 - 0.1 * rank)
    make_loop(rank, callbacks=[averages])


def other_n_steps(rank, folder):
    make_loop(rank).run(3 + rank)


def other_step(rank, folder):
    """Rank 1 finds a checkpoint of Trax's, which every rank reads itself."""
    x = figures.part("checkpoint", "x").astype(np.int64)
    batch = (x, x, np.ones(x.shape, np.float32))
    line_loop(
        folder if rank == 0 else figures.FOLDER / "single" / "trax_checkpoint",
        model=models.TransformerLM(**figures.case("checkpoint")["kwargs"]),
        task=TrainTask([batch], tl.WeightedCategoryCrossEntropy(), optimizers.Adam(1e-4)),
        evals=EvalTask([batch], tl.WeightedCategoryAccuracy()),
    )


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (other_seed, "random_seed: 0 on rank 0, 1 on rank 1"),
        (
            other_model,
            "the model's weights: 20.weight (1, 8) torch.float32 on rank 0, 20.weight (2, 8)",
        ),
        (other_n_tasks, "the number of tasks: 1 on rank 0, 2 on rank 1"),
        (other_metrics, 'what is measured: ["L2Loss"] on rank 0, ["L2Loss", "SmoothL1Loss"] on'),
        (
            other_rate,
            "the optimizers: task 0: BoundAdam lr=0.1 on rank 0, task 0: BoundAdam lr=0.2",
        ),
        (other_settings, "n_accumulation_steps=1, "),
        (
            output_dir_on_the_chief_alone,
            "whether output_dir is given: true on rank 0, false on rank 1",
        ),
        (other_frozen, "which weights are frozen: [] on rank 0, "),
        (
            other_modules,
            "the model's modules: 1: PureLayer Tanh() on rank 0, 1: PureLayer Relu() on",
        ),
        (other_loss, "delta=1.0) on rank 0"),
        (other_scheduler, "step_size=2"),
        (scheduler_on_one, "the schedulers: none on rank 0, StepLR("),
        (other_data, "the kinds of data: list on rank 0, list_iterator on rank 1"),
        (other_callback, "ExponentialMovingAverage(decay=0.9"),
        (other_n_steps, "n_steps: 3 on rank 0, 4 on rank 1"),
        (other_step, "the step: 0 on rank 0, 800 on rank 1"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_ranks_that_do_not_train_the_same_are_refused_at_the_start(build, text, tmp_path):
    """The error names what differs; data alone may differ."""
    run = functools.partial(build, folder=str(tmp_path / "run"))
    found = ranks.outcomes(tmp_path, 2, run)

    assert [each[:2] for each in found] == [("error", "ValueError")] * 2
    for *_, message in found:
        assert message.startswith("All ranks must train the same, but ")
        assert text in message
        assert "Give every rank the same model, tasks and settings" in message


def parted(rank, what, strategy):
    """Rank 1 changes a weight, or its rate, when step 3 is done."""

    def change(loop):
        if what == "weights":
            with torch.no_grad():
                weight = next(loop.model.parameters())
                (weight.to_local() if strategy == "hsdp" else weight)[0] += 0.1
        else:
            loop.optimizers[0].param_groups[0]["lr"] *= 0.5

    if strategy == "hsdp":
        os.environ["LOCAL_WORLD_SIZE"] = "2"
    task = TrainTask(
        data(0, rank),
        tl.L2Loss(),
        functools.partial(torch.optim.Adam, lr=0.01),
        n_steps_per_checkpoint=5,
    )
    fault = {"step": 3, "do": change, "before": False}
    make_loop(rank, task=task, at=fault, guilty=1, strategy=strategy).run(12)


@pytest.mark.parametrize(
    ("strategy", "size", "what", "text"),
    [
        ("ddp", 3, "weights", r"a checksum of the weights is .* on rank 0, and .* on rank 1"),
        ("ddp", 3, "rates", r"the learning rates is \[\[0.01\]\] on rank 0, and .* on rank 1"),
        ("hsdp", 4, "weights", r"a checksum of their parts .* on rank 1, and .* on rank 3"),
    ],
)
def test_ranks_that_part_are_told_so_at_the_next_report(strategy, size, what, text, tmp_path):
    """Of two machines of two ranks each, the ranks that hold the same parts are compared."""
    work = functools.partial(parted, what=what, strategy=strategy)
    for found in ranks.outcomes(tmp_path, size, work):
        assert found[:2] == ("error", "ValueError")
        assert "After step 5 the ranks train no longer the same" in found[2]
        assert re.search(text, found[2])
        assert "Change rates and weights on all ranks alike" in found[2]


@pytest.mark.parametrize("setting", ["eval_at", "checkpoint_at"])
def test_reports_and_saves_that_are_due_on_the_chief_alone_are_refused(setting, tmp_path):
    def run(rank):
        make_loop(rank, tmp_path / "run", **{setting: lambda step: step == 4 and rank == 0}).run(6)

    found = ranks.outcomes(tmp_path, 2, run)

    for kind, name, text in found:
        assert (kind, name) == ("error", "ValueError")
        assert "All ranks must take the same steps, and at step 4 what is" in text


def test_adasum_refuses_three_ranks_and_says_why(tmp_path):
    found = ranks.outcomes(tmp_path, 3, functools.partial(make_loop, adasum=True))

    for kind, name, text in found:
        assert (kind, name) == ("error", "ValueError")
        assert "merges gradients of pairs of ranks" in text
        assert "must be a power of 2; there are 3" in text


def test_a_rank_that_does_not_come_is_an_error_within_the_timeout(tmp_path):
    def run(rank):
        if rank == 0:
            make_loop(rank, timeout=2)

    start = time.monotonic()
    found = ranks.outcomes(tmp_path, 2, run)

    assert found[0][:2] == ("error", "RankError")
    assert time.monotonic() - start < 120  # and not 300, which are the default


# Ends that are asked for.


def ask(signum, loop):
    os.kill(os.getpid(), signum)


def run_whole(rank, folder, **kwargs):
    loop = make_loop(rank, folder=folder, **kwargs)
    loop.run(14 - loop.step)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_rank_ends_all_at_the_same_step_and_they_resume(signum, tmp_path):
    whole, cut = str(tmp_path / "whole"), str(tmp_path / "cut")
    ranks.values(tmp_path / "a", 2, functools.partial(run_whole, folder=whole))
    at = {"step": 7, "do": functools.partial(ask, signum)}
    ended = ranks.outcomes(tmp_path / "b", 2, functools.partial(run_whole, folder=cut, at=at))
    saved_step = storage.read(cut, "model")[1]["step"]
    ranks.values(tmp_path / "c", 2, functools.partial(run_whole, folder=cut))

    assert ended == [("exit", 128 + signum)] * 2
    assert saved_step == 7
    assert training.differences(whole, cut) == []


def ask_twice(pause, loop):
    if not pause:
        _signals._ECHO = 60.0  # a busy machine may take a second between the two
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(pause)


@pytest.mark.parametrize(("pause", "saved_step"), [(0.0, 7), (1.2, 5)], ids=["echo", "second"])
def test_a_second_signal_ends_a_process_at_once_unless_it_is_an_echo(pause, saved_step, tmp_path):
    """A scheduler and a launcher may both send one: torchrun passes its own on."""
    folder = str(tmp_path / "run")
    at = {"step": 7, "do": functools.partial(ask_twice, pause)}
    run = functools.partial(run_whole, folder=folder, at=at, guilty=0)
    (rank,) = ranks.start(tmp_path, 1, run)
    code = rank.exit_code(until=time.monotonic() + ranks.LIMIT)

    assert code == 143
    assert storage.read(folder, "model")[1]["step"] == saved_step


def stopped(rank, before, step):
    at = {"step": step, "do": lambda loop: loop.stop("enough"), "before": before}
    loop = make_loop(rank, at=at)
    loop.run(12)
    first = loop.step
    loop.run(1)
    return first, loop.step, [v.numpy() for v in state_of(loop).values()]


@pytest.mark.parametrize("step", [5, 7])
@pytest.mark.parametrize("before", [True, False])
def test_a_stop_on_one_rank_ends_all_after_that_step(before, step, tmp_path):
    """As it does alone; and the next run goes on."""
    run = functools.partial(stopped, before=before, step=step)
    found = ranks.values(tmp_path, 2, run)
    with contextlib.redirect_stdout(None):
        alone = stopped(1, before, step)

    assert [each[:2] for each in [*found, alone]] == [(step, step + 1)] * 3
    assert all(np.array_equal(a, b) for a, b in zip(found[0][2], found[1][2], strict=True))
