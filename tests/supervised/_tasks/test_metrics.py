"""Which objects are metrics with a state, what they are given, and which numbers they come to."""

import functools

import numpy as np
import pytest
import torch

from trax_torch import layers as tl
from trax_torch.supervised import EpochMetric, EvalTask
from trax_torch.supervised._tasks.metrics import StatefulMetric, as_stateful, n_items, numbers_of


class Mean:
    """The mean of what outputs and targets differ by, one by one."""

    def __init__(self):
        self.n_resets = 0

    def reset(self):
        self.n_resets += 1
        self.total, self.n = 0.0, 0

    def update(self, outputs, targets):
        self.total += float((outputs - targets).abs().sum())
        self.n += len(targets)

    def compute(self):
        return self.total / self.n


def test_what_has_update_compute_and_reset_has_a_state():
    metric = Mean()

    assert as_stateful(metric).metric is metric
    assert as_stateful(tl.L2Loss()) is None
    assert as_stateful(torch.nn.MSELoss()) is None
    with pytest.raises(TypeError):
        EvalTask([(torch.ones(2), torch.ones(2))], Mean)


def test_a_module_with_a_state_has_it_also_as_a_layer():
    class OfModule(torch.nn.Module):
        reset, update, compute = Mean.reset, Mean.update, Mean.compute

    found = as_stateful(tl.as_layer(OfModule(), n_in=2, name="mine"))

    assert (found.n_in, found.name) == (2, "mine")


def test_update_is_given_what_it_cannot_do_without():
    class Three(Mean):
        def update(self, outputs, targets, weights): ...

    class Optional(Mean):
        def update(self, outputs, targets, weights=None): ...

    class Any(Mean):
        def update(self, *args): ...

    assert [n_items(m) for m in (Mean(), Three(), Optional(), Any())] == [2, 3, 2, 2]


@pytest.mark.parametrize(
    ("value", "numbers"),
    [
        (0.5, {"it": 0.5}),
        (True, {"it": 1.0}),
        (np.float32(0.5), {"it": 0.5}),
        (torch.tensor([[2]]), {"it": 2.0}),
        (torch.tensor(0.5, dtype=torch.bfloat16), {"it": 0.5}),
        (torch.tensor([1.0, 2.0]), {"it/0": 1.0, "it/1": 2.0}),
        ((np.array(1.0), 2), {"it/0": 1.0, "it/1": 2.0}),
        ({"f1": torch.tensor(1.0), "by": [3, 4]}, {"it/f1": 1.0, "it/by/0": 3.0, "it/by/1": 4.0}),
    ],
)
def test_numbers_vectors_and_dicts_come_to_numbers_by_name(value, numbers):
    assert numbers_of("it", value) == numbers


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.ones(2, 2), r"it computes float32 of shape \(2, 2\)"),
        ((torch.ones(3), torch.ones(3)), "it computes a tuple of float32"),
        ("high", "it/f1 computes str"),
        (torch.ones(0), "shape"),
        ({}, "computes a dict"),
        (None, "computes NoneType"),
        (1j, "computes complex"),
    ],
)
def test_what_is_no_number_is_refused_by_name(value, said):
    if value == "high":
        value = {"f1": value}
    with pytest.raises(ValueError, match=f"a vector of numbers, or a dict of these.*{said}"):
        numbers_of("it", value)


def test_a_function_that_calls_targets_y_true_gets_them_first_as_arrays():
    seen = []

    def score(y_true, y_pred):
        seen.append((y_true, y_pred))
        return 0.0

    metric = EpochMetric(functools.partial(score))
    metric.update(torch.tensor([0.1]), torch.tensor([1]))
    metric.update(torch.tensor([0.2, 0.3]), torch.tensor([2, 3]))
    metric.compute()

    ((y_true, y_pred),) = seen
    assert metric.name == "score"
    assert isinstance(y_true, np.ndarray)
    assert y_true.tolist() == [1, 2, 3]
    assert y_pred.tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_a_failing_function_tells_what_it_was_given_and_how_to_give_classes():
    def score(y_true, y_pred):
        raise ValueError("a mix of kinds")

    metric = EpochMetric(score)
    metric.update(torch.ones(2, 3), torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="a mix of kinds") as caught:
        metric.compute()
    assert caught.value.__notes__ == [
        "score was given outputs and targets of all rows: float32 of shape (2, 3), int64 of shape "
        "(2,). If it wants classes, give EpochMetric(lambda outputs, targets: score(targets, "
        "outputs.argmax(1)))."
    ]


def test_a_function_of_three_gets_weights_too():
    metric = EpochMetric(lambda outputs, targets, weights: (outputs * weights).sum())
    metric.update(torch.ones(2), torch.ones(2), torch.tensor([3.0, 4.0]))

    assert metric.n_in == 3
    assert metric.compute() == 7


def test_an_epoch_metric_forgets_and_keeps_copies():
    metric, x = EpochMetric(lambda outputs, targets: outputs.sum()), torch.ones(2)
    metric.update(x, x)
    x.zero_()
    kept = metric.compute()
    metric.reset()
    metric.update(x, x)

    assert kept == 2
    assert metric.compute() == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [(3, "takes a function"), (Mean(), "Mean goes into EvalTask"), (torch.nn.MSELoss(), "as it")],
)
def test_an_epoch_metric_takes_a_function(given, said):
    with pytest.raises(TypeError, match=said):
        EpochMetric(given)


def test_an_epoch_metric_needs_rows_that_can_be_joined():
    metric = EpochMetric(lambda outputs, targets: 0.0, "it")
    with pytest.raises(ValueError, match="joined along their first axis.*float32 of shape"):
        metric.update(torch.tensor(1.0), torch.ones(2))
    metric.update(torch.ones(2, 3), torch.ones(2))
    metric.update(torch.ones(2, 4), torch.ones(2))
    with pytest.raises(ValueError, match=r"\(2, 3\), \(2, 4\). Have the data pad"):
        metric.compute()


def test_a_metric_with_a_state_is_given_once_to_a_task():
    metric = Mean()
    with pytest.raises(ValueError, match="updated twice with each batch"):
        EvalTask([(torch.ones(2), torch.ones(2))], [metric, metric], metric_names=["a", "b"])


def test_a_task_measures_the_numbers_that_a_metric_comes_to():
    task = EvalTask([(torch.ones(2), torch.ones(2))], [Mean(), torch.nn.MSELoss()])

    assert task.metric_names == ["Mean", "MSELoss"]
    asked = ("Mean", "Mean/f1", "Mean2", "MSELoss", "MSELoss/f1")
    assert [task.measures(name) for name in asked] == [True, True, False, True, False]


def test_an_update_that_fails_tells_what_it_was_given():
    metric = StatefulMetric(Mean())
    metric.begin(1)
    with pytest.raises(Exception, match="size of tensor") as caught:
        metric.update((torch.ones(2), torch.ones(3)))

    note = "Mean.update was given float32 of shape (2,), float32 of shape (3,)."
    assert caught.value.__notes__ == [note]
