"""Values and gradients where a function has a tie or a corner: those of Trax, in every release."""

import pytest
import torch
from torch.nn import functional as F

from trax_torch import layers as tl

INF = float("inf")

# A layer, where, its value there, and its slope there, as JAX gives them for Trax's own formulas.
CORNERS = {
    "Relu": (tl.Relu, [0.0], [0.0], [0.0]),
    "ParametricRelu": (lambda: tl.ParametricRelu(a=3.0), [0.0], [0.0], [1.5]),
    "LeakyRelu": (lambda: tl.LeakyRelu(a=0.25), [0.0, -0.0], [0.0, -0.0], [1.0, 1.0]),
    "Elu": (lambda: tl.Elu(a=0.25), [0.0], [0.0], [0.25]),
    "Selu": (lambda: tl.Selu(alpha=0.25, lmbda=2.0), [0.0], [0.0], [0.5]),
    "HardSigmoid": (tl.HardSigmoid, [-1.0, 0.0], [0.0, 1.0], [0.5, 0.5]),
    "HardTanh": (tl.HardTanh, [-1.0, 1.0], [-1.0, 1.0], [0.5, 0.5]),
    "Max": (lambda: tl.Max(axis=-1), [2.0, 1.0, 2.0], 2.0, [0.5, 0.0, 0.5]),
    "Min": (lambda: tl.Min(axis=-1), [1.0, 2.0, 1.0, 1.0], 1.0, [1 / 3, 0.0, 1 / 3, 1 / 3]),
    "MaxPool": (
        lambda: _on_a_line(tl.MaxPool(pool_size=(1, 3), strides=(1, 3))),
        [2.0, 2.0, 1.0, 0.0, 0.0, 0.0],
        [2.0, 0.0],
        [1.0, 0.0, 0.0, 1.0, 0.0, 0.0],
    ),
}


def _on_a_line(pool):
    """A layer that takes a pool's windows along a vector."""
    n = 1, 1, -1, 1
    return tl.Serial(tl.Fn("In", lambda x: x.view(n)), pool, tl.Fn("Out", lambda x: x.flatten()))


def slopes(layer, at, dtype):
    x = torch.tensor(at, dtype=dtype, requires_grad=True)
    y = layer(x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    return y.detach(), grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", CORNERS)
def test_a_corner_has_traxs_value_and_slope(name, dtype):
    make, at, value, slope = CORNERS[name]

    y, grad = slopes(make(), at, dtype)

    torch.testing.assert_close(y, torch.tensor(value, dtype=dtype))
    torch.testing.assert_close(grad, torch.tensor(slope, dtype=dtype))


@pytest.mark.parametrize("name", CORNERS)
def test_a_compiled_corner_has_them_too(name):
    """The compiler writes gradients out by rules of its own."""
    torch.compiler.reset()
    make, at, value, slope = CORNERS[name]

    compiled = torch.compile(make(), backend="aot_eager_decomp_partition", fullgraph=True)
    y, grad = slopes(compiled, at, torch.float32)

    torch.testing.assert_close(y, torch.tensor(value))
    torch.testing.assert_close(grad, torch.tensor(slope))


@pytest.mark.parametrize("name", [n for n in CORNERS if n not in ("Max", "Min", "MaxPool")])
def test_forward_mode_agrees_at_a_corner(name):
    make, at, _, slope = CORNERS[name]
    x = torch.tensor(at)

    _, tangent = torch.func.jvp(make(), (x,), (torch.ones_like(x),))

    torch.testing.assert_close(tangent, torch.tensor(slope))


@pytest.mark.parametrize("name", ["Relu", "LeakyRelu", "HardSigmoid", "HardTanh", "ParametricRelu"])
def test_what_is_no_number_stays_none(name):
    y = CORNERS[name][0]()(torch.tensor([float("nan"), INF, -INF]))

    assert y.isnan().tolist() == [True, False, False]


@pytest.mark.parametrize("name", ["HardSigmoid", "HardTanh"])
def test_integers_stay_integers(name):
    y = CORNERS[name][0]()(torch.tensor([-3, -1, 0, 1, 3]))

    assert y.tolist() == ([0, 0, 1, 1, 1] if name == "HardSigmoid" else [-1, -1, 0, 1, 1])


def test_a_zero_initialised_dense_before_a_hard_sigmoid_trains():
    """All its outputs are at the corner, where a slope of 0 would leave it for good."""
    model = tl.Serial(tl.Dense(3, lambda shape, rng: torch.zeros(shape), use_bias=False))
    model = tl.Serial(model, tl.HardSigmoid())
    x = torch.ones(2, 4)
    model.init(x)

    model(x).sum().backward()

    (weight,) = model.parameters()
    torch.testing.assert_close(weight.grad, torch.full_like(weight, 2 * 0.5))


def test_a_threshold_shares_the_gradient_of_a_tie():
    layer = tl.ThresholdedLinearUnit()
    layer.init(torch.zeros(1))
    x = torch.zeros(4, requires_grad=True)

    layer(x).sum().backward()

    assert x.grad.tolist() == [0.5] * 4
    assert float(layer.threshold.grad) == 2.0


def test_a_cutoff_takes_half_of_a_gradient_at_itself():
    """An item whose cross-entropy is the cutoff: half way between what counts and what does not."""
    logits = torch.zeros(1, 4, requires_grad=True)
    whole = F.cross_entropy(logits, torch.tensor([1]), reduction="none")
    (slope,) = torch.autograd.grad(whole.sum(), logits)

    loss = tl.WeightedCategoryCrossEntropy(cutoff=whole.item())(
        (logits, torch.tensor([1]), torch.ones(1))
    )
    loss.backward()

    assert loss.item() == 0
    torch.testing.assert_close(logits.grad, slope / 2)


@pytest.mark.parametrize("loss", [tl.SmoothL1Loss, tl.L2Loss])
def test_a_regression_that_is_right_has_no_gradient(loss):
    x = torch.tensor([[1.0, -2.0]], requires_grad=True)

    loss()((x, x.detach(), torch.ones(1, 2))).backward()

    assert x.grad.tolist() == [[0.0, 0.0]]


def test_certain_probabilities_have_bounded_gradients():
    """A probability of 0 or 1: 100 nats where it is wrong, and a slope of 1e12 at most."""
    p = torch.tensor([0.0, 1.0, 0.0, 1.0], requires_grad=True)
    targets, weights = torch.tensor([0.0, 1.0, 1.0, 0.0]), torch.ones(4)

    loss = tl.BinaryCrossEntropySum()((p, targets, weights))
    loss.backward()

    assert loss.item() == 200
    assert p.grad.isfinite().all()
    assert p.grad[:2].tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_largest_is_the_first_of_its_equals(dtype):
    x = torch.zeros(3, 1000, dtype=dtype)
    x[1, 500:] = 1
    x[2, [7, 900]] = 1

    assert tl.ArgMax()(x).tolist() == [0, 500, 7]
    assert tl.logsoftmax_sample(x, temperature=0.0).tolist() == [0, 500, 7]
