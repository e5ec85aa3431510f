"""Losses and metrics."""

import numpy as np
import pytest
import torch

from trax_torch import layers as tl

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(4, 5, 7)).astype(np.float32)
TARGETS = RNG.integers(0, 7, size=(4, 5))
WEIGHTS = RNG.uniform(0.5, 2.0, size=(4, 5)).astype(np.float32)
OUTPUT = RNG.uniform(0.1, 0.9, size=(4, 5)).astype(np.float32)
BITS = RNG.integers(0, 2, size=(4, 5))

WEIGHTED = [
    (tl.WeightedCategoryAccuracy, LOGITS, TARGETS),
    (tl.WeightedCategoryCrossEntropy, LOGITS, TARGETS),
    (tl.Accuracy, LOGITS, TARGETS),
    (tl.CrossEntropyLoss, LOGITS, TARGETS),
    (tl.CrossEntropyLossWithLogSoftmax, LOGITS, TARGETS),
    (tl.BinaryCrossEntropyLoss, OUTPUT, BITS),
    (tl.L2Loss, OUTPUT, OUTPUT.T.reshape(4, 5)),
    (tl.SmoothL1Loss, OUTPUT * 5, OUTPUT.T.reshape(4, 5)),
]


def weighted(layers):
    return pytest.mark.parametrize(("make", "output", "targets"), layers, ids=lambda x: "")


@weighted(WEIGHTED)
def test_a_weighted_loss_is_the_sum_of_weighted_values_over_the_sum_of_weights(
    make, output, targets
):
    """Each item's value is the loss of that item alone."""
    loss = make()
    one = np.ones((1,), dtype=np.float32)
    values = np.array([loss((output[i][:1], targets[i][:1], one)) for i in np.ndindex(4)])

    got = loss((output[:, 0], targets[:, 0], WEIGHTS[:, 0]))

    want = (values * WEIGHTS[:, 0]).sum() / WEIGHTS[:, 0].sum()
    np.testing.assert_allclose(got, want, rtol=1e-5)


@weighted(WEIGHTED)
def test_a_weighted_loss_does_not_change_with_the_scale_of_the_weights(make, output, targets):
    loss = make()

    np.testing.assert_allclose(
        loss((output, targets, 7 * WEIGHTS)), loss((output, targets, WEIGHTS)), rtol=1e-5
    )


@weighted(WEIGHTED)
def test_an_item_of_weight_0_does_not_count(make, output, targets):
    weights = WEIGHTS.copy()
    weights[2:] = 0
    loss = make()

    np.testing.assert_allclose(
        loss((output, targets, weights)),
        loss((output[:2], targets[:2], WEIGHTS[:2])),
        rtol=1e-5,
    )


@weighted(WEIGHTED[:6])
def test_weights_broadcast_and_then_count_as_if_written_out(make, output, targets):
    """In Trax the denominator counts the weights before they are broadcast."""
    loss, rows = make(), WEIGHTS[:, :1]

    np.testing.assert_allclose(
        loss((output, targets, rows)),
        loss((output, targets, np.repeat(rows, 5, axis=1))),
        rtol=1e-6,
    )


@weighted([*WEIGHTED[:6], (tl.MaskedSequenceAccuracy, LOGITS, TARGETS)])
def test_weights_of_another_shape_are_refused(make, output, targets):
    with pytest.raises(tl.LayerError, match=r"items' shape, \(4, 5\).* got \(4,\)"):
        make()((output, targets, WEIGHTS[:, 0]))


def test_sums_are_not_divided():
    ones = np.ones((4, 5), dtype=np.float32)

    np.testing.assert_allclose(
        tl.CrossEntropySum()((LOGITS, TARGETS, ones)),
        20 * tl.CrossEntropyLoss()((LOGITS, TARGETS, ones)),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        tl.BinaryCrossEntropySum()((OUTPUT, BITS, ones)),
        20 * tl.BinaryCrossEntropyLoss()((OUTPUT, BITS, ones)),
        rtol=1e-5,
    )
    np.testing.assert_allclose(tl.WeightedSum()((OUTPUT, WEIGHTS)), (OUTPUT * WEIGHTS).sum())


@pytest.mark.parametrize("smoothing", [None, 0.0, 0.1, 1.0])
def test_category_cross_entropy_is_that_of_the_smoothed_targets(smoothing):
    share = smoothing or 0.0
    wanted = (1 - share) * np.eye(7)[TARGETS] + share / 7
    log_probs = tl.log_softmax(LOGITS)

    got = tl.CategoryCrossEntropy(label_smoothing=smoothing)((LOGITS, TARGETS))

    np.testing.assert_allclose(got, -(wanted * log_probs).sum(-1).mean(), rtol=1e-5)


def test_category_cross_entropy_counts_from_the_cutoff_on():
    each = -np.take_along_axis(tl.log_softmax(LOGITS), TARGETS[..., None], axis=-1)[..., 0]
    ones = np.ones((4, 5), dtype=np.float32)

    got = tl.WeightedCategoryCrossEntropy(cutoff=1.5)((LOGITS, TARGETS, ones))

    np.testing.assert_allclose(got, (np.maximum(each, 1.5) - 1.5).mean(), rtol=1e-5)


def test_cross_entropy_loss_takes_categories_written_as_floats():
    got = tl.CrossEntropyLoss()((LOGITS, TARGETS.astype(np.float32), WEIGHTS))

    assert got == tl.CrossEntropyLoss()((LOGITS, TARGETS, WEIGHTS))


@pytest.mark.parametrize("x", [-1e4, -100.0, 0.0, 100.0, 1e4])
@pytest.mark.parametrize("target", [0, 1])
def test_binary_cross_entropy_is_finite_and_right_far_out(x, target):
    """log(sigmoid(-100)) is -100, where a sigmoid rounded to 0 gives -inf."""
    output = torch.tensor([x], requires_grad=True)

    loss = tl.BinaryCrossEntropy()((output, torch.tensor([target])))
    loss.backward()

    assert loss.item() == pytest.approx(np.logaddexp(0, x if target == 0 else -x), rel=1e-5)
    assert output.grad.isfinite().all()


def test_binary_cross_entropy_loss_is_finite_for_probabilities_0_and_1():
    output = torch.tensor([0.0, 1.0, 0.0, 1.0], requires_grad=True)
    weights = torch.tensor([1.0, 1.0, 1.0, 1.0])

    loss = tl.BinaryCrossEntropyLoss()((output, torch.tensor([0, 1, 1, 0]), weights))
    loss.backward()

    assert loss.item() == pytest.approx(50.0)
    assert output.grad.isfinite().all()


@pytest.mark.parametrize("make", [tl.CategoryCrossEntropy, tl.BinaryCrossEntropy])
def test_losses_of_bfloat16_activations_are_summed_in_float32(make):
    """In bfloat16 a mean over 4096 items loses all but two digits."""
    output = torch.full((4096, 2) if make is tl.CategoryCrossEntropy else (4096,), 0.5)
    targets = torch.zeros(4096, dtype=torch.int64)

    loss = make()((output.bfloat16(), targets))

    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(make()((output, targets)).item(), rel=1e-5)


@pytest.mark.parametrize("make", [tl.L2Loss, tl.SmoothL1Loss])
def test_regression_losses_keep_float64(make):
    tensors = [torch.from_numpy(x).double() for x in (OUTPUT, WEIGHTS, WEIGHTS)]

    assert make()(tuple(tensors)).dtype == torch.float64


@pytest.mark.parametrize("make", [tl.MaskedSequenceAccuracy, tl.SequenceAccuracy])
def test_a_sequence_is_right_if_it_is_right_wherever_weights_are_not_0(make):
    targets = np.array([[0, 1, 0, 0], [1, 0, 1, 0]])
    weights = np.array([[1.0, 0.5, 3.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
    right = np.eye(2)[[[0, 1, 0, 1], [1, 0, 1, 1]]]
    wrong = np.eye(2)[[[1, 1, 0, 1], [1, 0, 1, 1]]]

    assert make()((right, targets, weights)) == 1
    assert make()((wrong, targets, weights)) == 0.5


def test_accuracy_takes_another_classifier():
    accuracy = tl.Accuracy(classifier=tl.ThresholdToBinary())
    output = np.array([[0.498, 0.499, 0.5, 0.501], [0.502, 0.501, 0.5, 0.499]])
    targets = np.array([[0, 0, 1, 1], [1, 1, 1, 0]])

    assert accuracy((output, targets, np.ones((2, 4)))) == 0.75


def test_accuracies_choose_the_lower_category_of_equals():
    assert tl.CategoryAccuracy()((np.zeros((2, 3)), np.array([0, 1]))) == 0.5


PREDICTIONS = np.eye(4)[[1, 1, 2, 1, 1]]
WANTED = np.array([1, 2, 2, 3, 1])  # F-scores: 0/0 for 0, 2/3 for 1, 2/3 for 2, 0 for 3


@pytest.mark.parametrize(
    ("metric", "want"),
    [
        (tl.MacroAveragedFScore(), (2 / 3 + 2 / 3) / 4),
        (tl.MacroAveragedFScore(initial_category_index=1), (2 / 3 + 2 / 3) / 3),
        (tl.WeightedFScore(), (2 * 2 / 3 + 2 * 2 / 3) / 5),
        (tl.MacroAveragedFScore(beta=2.0), (5 * 0.5 / (4 * 0.5 + 1) + 5 * 0.5 / (4 + 0.5)) / 4),
    ],
)
def test_f_scores_average_over_categories_and_take_0_by_0_as_0(metric, want):
    assert metric((PREDICTIONS, WANTED)) == pytest.approx(want, rel=1e-5)
    shaped = PREDICTIONS[:4].reshape(2, 2, 4), WANTED[:4].reshape(2, 2)
    assert metric(shaped) == pytest.approx(metric((PREDICTIONS[:4], WANTED[:4])))


@pytest.mark.parametrize(
    "name",
    [
        "L2Loss_in3",
        "Accuracy_in3",
        "SequenceAccuracy_in3",
        "BinaryCrossEntropyLoss_in3",
        "CrossEntropyLoss_in3",
        "CrossEntropyLossWithLogSoftmax_in3",
        "BinaryCrossEntropySum_in3",
        "CrossEntropySum_in3",
        "BinaryCrossEntropy_in2",
        "MaskedSequenceAccuracy_in3",
        "WeightedSum_in2",
    ],
)
def test_a_metric_prints_its_name_alone(name):
    assert str(getattr(tl, name.split("_")[0])()) == name


@pytest.mark.parametrize("make", [tl.CategoryCrossEntropy, tl.WeightedCategoryCrossEntropy])
def test_a_label_smoothing_out_of_range_is_refused(make):
    with pytest.raises(ValueError, match=r"from 0 to 1; got 1.5"):
        make(label_smoothing=1.5)


def test_targets_that_are_floats_are_refused():
    with pytest.raises(tl.LayerError, match=r"integers; got torch.float32 .*\(inputs, targets, w"):
        tl.WeightedCategoryCrossEntropy()((LOGITS, WEIGHTS, TARGETS))


@pytest.mark.parametrize(
    "metric", [tl.CategoryCrossEntropy(), tl.MacroAveragedFScore(), tl.CategoryAccuracy()]
)
def test_targets_of_another_shape_are_refused(metric):
    with pytest.raises(tl.LayerError, match=r"got.* (shapes )?\(4, 5(, 7)?\) and \(4, 1\)"):
        metric((LOGITS, TARGETS[:, :1]))


@pytest.mark.parametrize("make", [tl.L2Loss, tl.SmoothL1Loss, tl.BinaryCrossEntropyLoss])
def test_targets_that_would_broadcast_are_refused(make):
    """(4, 5) against (4, 1) is a mistake, not a wish."""
    with pytest.raises(tl.LayerError, match=r"equal; got \(4, 5\) and \(4, 1\)"):
        make()((OUTPUT, OUTPUT[:, :1], WEIGHTS))


def test_binary_targets_that_would_broadcast_are_refused():
    with pytest.raises(tl.LayerError, match=r"equal; got \(4, 1\) and \(4,\)"):
        tl.BinaryCrossEntropy()((OUTPUT[:, :1], BITS[:, 0]))


def test_targets_that_are_no_category_cost_nothing():
    """-1 is a common padding: its loss is 0, and its weight is what says whether it counts."""
    output = torch.zeros(1, 2, 3)
    targets, weights = torch.tensor([[1, -1]]), torch.tensor([[1.0, 0.0]])

    for loss in (tl.WeightedCategoryCrossEntropy(), tl.CrossEntropyLossWithLogSoftmax()):
        assert loss((output, targets, weights)).item() == pytest.approx(1.0986, rel=1e-4)
