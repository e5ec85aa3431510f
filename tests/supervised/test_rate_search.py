"""A search for a learning rate leaves a run as it was, to the last bit."""

import functools
import itertools

import numpy as np
import pytest
import ranks
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from toys import batches, eval_task, line_loop, line_model, state_of

from trax_torch import data, optimizers
from trax_torch import layers as tl
from trax_torch.supervised import EvalTask, RateSearch, TrainTask, find_learning_rate, training
from trax_torch.supervised import lr_schedules as schedules

ROWS = TensorDataset(torch.randn(40, 3), torch.randn(40, 1))


def some(n=12, seed=0):
    return list(itertools.islice(batches(seed), n))


def shuffled():
    loader = DataLoader(ROWS, batch_size=8, shuffle=True)
    return TrainTask(loader, nn.MSELoss(), optimizers.Adam(0.01), n_steps_per_checkpoint=100)


def of(labeled_data, optimizer=None, **kwargs):
    optimizer = optimizer or optimizers.Adam(0.01)
    return TrainTask(labeled_data, tl.L2Loss(), optimizer, n_steps_per_checkpoint=100, **kwargs)


def with_statistics():
    return tl.Serial(tl.Dense(8), tl.BatchNorm(axis=0), tl.Dropout(0.2), tl.Dense(1))


def own_optimizer():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    groups = [{"params": model[0].parameters(), "lr": 0.02}, {"params": model[1].parameters()}]
    return model, TrainTask(some(), tl.L2Loss(), torch.optim.SGD(groups, lr=0.01, momentum=0.9))


RUNS = {
    "a list": lambda: {"task": of(some())},
    "a schedule": lambda: {"task": of(some(), lr_schedule=schedules.warmup(4, 0.1))},
    "a shuffling loader": lambda: {"task": shuffled(), "evals": EvalTask(ROWS_LOADER, nn.L1Loss())},
    "a pipeline": lambda: {
        "task": of(data.Serial(data.Examples(some(30), shuffle=True, seed=0))()),
    },
    "statistics and dropout": lambda: {"task": of(some()), "model": with_statistics()},
    "SM3": lambda: {"task": of(some(), optimizers.SM3(0.1))},
    "Adafactor": lambda: {"task": of(some(), optimizers.Adafactor)},
    "a torch optimizer of two groups": lambda: dict(
        zip(("model", "task"), own_optimizer(), strict=True)
    ),
    "a torch scheduler": lambda: {
        "task": of(
            some(),
            torch.optim.AdamW,
            lr_schedule=functools.partial(torch.optim.lr_scheduler.StepLR, step_size=2),
        )
    },
    "two tasks": lambda: {"task": [of(some()), of(batches(3))]},
    "parts": lambda: {"task": of(some()), "n_accumulation_steps": 2},
    "blocks": lambda: {"task": of(some()), "use_memory_efficient_trainer": True},
    "bf16": lambda: {"task": of(some()), "precision": "bf16"},
}
ROWS_LOADER = DataLoader(ROWS, batch_size=8)


def run(name, folder, searches):
    """Trains for 8 steps, with a search at the beginning and one in the midst, or without."""
    torch.manual_seed(5)
    np.random.seed(5)
    loop, found = line_loop(folder, **RUNS[name]()), None
    for _ in range(2):
        if searches:
            before = state_of(loop)
            found = find_learning_rate(loop, 1e-4, 10.0, n_steps=9, stop_at=1e300)
            after = state_of(loop)
            assert before.keys() == after.keys()
            assert [k for k in before if not torch.equal(before[k], after[k])] == []
        loop.run(4)
    return loop, found


@pytest.mark.parametrize("name", RUNS)
def test_a_run_with_searches_is_the_run_without(name, tmp_path):
    """Final checkpoints are the same to the last bit: weights, slots, places in data, history."""
    run(name, tmp_path / "without", False)
    drawn = torch.rand(1).item()
    loop, found = run(name, tmp_path / "with", True)

    assert torch.rand(1).item() == drawn
    assert training.differences(str(tmp_path / "with"), str(tmp_path / "without")) == []
    assert len(found.rates) == 9
    assert loop.step == 8


def test_the_first_loss_is_that_of_the_first_step():
    """And rates rise by one factor; what was searched with is what the run then trains on."""
    losses = []
    loop = line_loop(task=of(some()))
    found = find_learning_rate(loop, 1e-3, 0.1, n_steps=3)
    loop.run(1)
    losses = [value for _, value in loop.history.get("train", "training/loss")]

    assert found.losses[0] == losses[0]
    assert found.rates == pytest.approx((1e-3, 1e-2, 1e-1))
    assert not found.diverged


def test_a_search_that_diverges_ends_and_is_put_back():
    """A loss that is not finite is none of its losses, and the run goes on as if nothing was."""
    loop = line_loop(task=of(some(), optimizers.SGD(0.01)), on_nonfinite="raise")
    before = state_of(loop)
    found = find_learning_rate(loop, 1.0, 1e30, n_steps=60, stop_at=1e300)

    assert found.diverged
    assert all(np.isfinite(found.losses))
    assert len(found.losses) < 60
    assert all(torch.equal(v, before[k]) for k, v in state_of(loop).items())
    loop.run(2)


def test_a_search_ends_where_the_loss_rises():
    found = find_learning_rate(line_loop(task=of(some(40), optimizers.SGD(0.01))), 1e-3, 1e3)

    assert found.diverged
    assert len(found.rates) < 100
    assert found.suggestion is not None
    assert 1e-3 < found.suggestion < found.rates[found.smoothed.index(min(found.smoothed))]
    assert f"steepest fall of the loss: {found.suggestion:.2g}" in repr(found)


def test_an_iterator_that_cannot_go_back_is_refused_and_not_drawn_from():
    """Data of its own may be given; the task's is not touched then."""
    drawn = []
    loop = line_loop(task=of(drawn.append(1) or batch for batch in batches(0)))
    n = len(drawn)
    with pytest.raises(ValueError, match=r"does not go back.*labeled_data=batches\(\)"):
        find_learning_rate(loop)
    found = find_learning_rate(loop, n_steps=4, labeled_data=batches(7), stop_at=1e9)

    assert len(drawn) == n
    assert len(found.losses) == 4


@pytest.mark.parametrize(
    ("numbers", "error"),
    [
        ({"low": 0.1, "high": 0.01}, "0 < low < high; got low=0.1 and high=0.01"),
        ({"n_steps": 1}, "2 steps or more; got n_steps=1"),
        ({"stop_at": 1.0}, "above 1; got 1.0"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers, error):
    with pytest.raises(ValueError, match=error):
        find_learning_rate(line_loop(task=of(some())), **numbers)


def test_an_error_in_a_search_puts_the_run_back():
    """A batch that the model cannot take, say."""
    loop = line_loop(task=of(some()), model=line_model(), evals=eval_task())
    before = state_of(loop)
    given = [*some(2), (np.zeros((4, 99), np.float32), *some(1)[0][1:])]
    with pytest.raises(tl.LayerError):
        find_learning_rate(loop, n_steps=5, labeled_data=iter(given))
    assert all(torch.equal(v, before[k]) for k, v in state_of(loop).items())


def test_a_suggestion_is_where_the_loss_falls_most_steeply():
    """Of losses with one fall in their midst; there is none where they rise throughout."""
    n = 60
    rates = tuple(10.0 ** (-6 + 6 * i / (n - 1)) for i in range(n))
    falling = tuple(4.0 if i < 30 else max(1.0, 4.0 - 0.5 * (i - 30)) for i in range(n))
    found = RateSearch(rates, falling, False)

    assert rates[29] < found.suggestion < rates[42]
    assert RateSearch(rates, tuple(map(float, range(n))), False).suggestion is None
    assert RateSearch((), (), True).suggestion is None
    assert "no step" in repr(RateSearch((), (), True))


def test_a_search_has_a_picture():
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    found = RateSearch((1e-3, 1e-2, 1e-1, 1.0), (4.0, 3.0, 1.0, 0.5), False)
    (panel,) = found.plot().axes

    assert list(panel.lines[0].get_ydata()) == [4.0, 3.0, 1.0, 0.5]
    assert list(panel.lines[1].get_ydata()) == found.smoothed
    assert (panel.get_xscale(), panel.get_xlabel()) == ("log", "learning rate")


def searched_on_rank(rank):
    with pytest.raises(ValueError, match="one process") as found:
        find_learning_rate(line_loop(verbose=False))
    return str(found.value)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="no torch.distributed")
def test_a_search_for_a_rate_is_for_one_process(tmp_path):
    """On each rank alike."""
    errors = ranks.values(tmp_path, 2, searched_on_rank)

    assert all("is for one process; 2 train here" in error for error in errors)
