"""Reversible layers: reverse undoes forward."""

import copy
import pickle

import numpy as np
import pytest
import torch

from trax_torch import layers as tl
from trax_torch import shapes


def half_residual(**kwargs):
    layer = tl.ReversibleHalfResidual(
        tl.LayerNorm(), tl.Dense(16), tl.Relu(), tl.Dropout(0.5), tl.Dense(8), **kwargs
    )
    layer.init((shapes.ShapeDtype((4, 3, 8)), shapes.ShapeDtype((4, 3, 8))), rng=0)
    return layer


def pair():
    return torch.randn(4, 3, 8), torch.randn(4, 3, 8)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_swap_swaps_and_swaps_back():
    layer = tl.ReversibleSwap()
    x, y = np.array([1, 2]), np.array([10, 20])

    outputs = layer((x, y))

    assert [o.tolist() for o in outputs] == [[10, 20], [1, 2]]
    assert [i.tolist() for i in layer.reverse(outputs)] == [[1, 2], [10, 20]]
    assert str(layer) == "ReversibleSwap_in2_out2"


@pytest.mark.parametrize("indices", [[0], [2, 0, 1], [0, 1, 1], [1, 0, 2, 0, 1]])
def test_reverse_undoes_a_select_of_all_items(indices):
    layer = tl.ReversibleSelect(indices)
    items = tuple(torch.tensor(i) for i in range(max(indices) + 1))

    outputs = layer(items if len(items) > 1 else items[0])

    back = layer.reverse(outputs)
    assert (back if isinstance(back, tuple) else (back,)) == items
    assert layer.name == f"ReversibleSelect{indices}".replace(" ", "")


@pytest.mark.parametrize(("indices", "n_in"), [([0, 2], None), ([0, 1], 3), ([0, 1], 1)])
def test_a_select_that_loses_an_item_is_refused(indices, n_in):
    with pytest.raises(ValueError, match=r"has each of 0 to .* among its\s+indices.*got \(0, "):
        tl.ReversibleSelect(indices, n_in=n_in)


def test_half_residual_adds_what_its_layers_make_of_the_context():
    layer = half_residual().eval()
    x, y = pair()

    z, same = layer((x, y))

    assert same is y
    torch.testing.assert_close(z, x + layer.sublayers[0](y))
    assert layer.n_in == layer.n_out == 2


def test_reverse_of_half_residual_gives_its_inputs():
    layer = half_residual().eval()
    x, y = pair()

    back, same = layer.reverse(layer((x, y)))

    torch.testing.assert_close(back, x)
    assert same is y


def test_reverse_draws_the_random_numbers_of_the_forward_call_with_its_seed():
    layer = half_residual()
    x, y = pair()
    outputs = layer((x, y), rng=7)

    torch.testing.assert_close(layer.reverse(outputs, rng=7)[0], x)
    assert not torch.allclose(layer.reverse(outputs, rng=8)[0], x)


def test_reverse_takes_other_weights_than_its_own():
    layer, other = half_residual().eval(), half_residual().eval()
    other.init((shapes.ShapeDtype((4, 3, 8)), shapes.ShapeDtype((4, 3, 8))), rng=1)
    x, y = pair()

    back, _ = layer.reverse(other((x, y)), weights=other.weights, state=other.state)

    torch.testing.assert_close(back, x)


def test_reverse_plays_with_arrays():
    layer = half_residual().eval()
    x, y = (t.numpy() for t in pair())

    back, same = layer.reverse(layer((x, y)))

    np.testing.assert_allclose(back, x, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(same, y)


def test_blocks_in_series_are_undone_one_after_another():
    """The block of a reversible network: half a step, swap, half a step, swap."""
    layers = [half_residual().eval(), tl.ReversibleSwap()] * 4
    start = stack = pair()

    for layer in layers:
        stack = layer(stack)
    for layer in reversed(layers):
        stack = layer.reverse(stack)

    for got, want in zip(stack, start, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_half_residual_runs_an_attention_layer_after_the_others():
    """It maps (x, y, mask) to (x + attention(norm(y), mask), y, mask)."""
    mask = torch.ones(4, 1, 1, 3)
    attention = tl.Attention(8, n_heads=2, mode="eval")
    layer = tl.ReversibleHalfResidual(tl.LayerNorm(), attention_layer=attention)
    x, y = pair()
    weights, _ = layer.init(shapes.signature((x, y, mask)))

    outputs = layer((x, y, mask))

    assert layer.n_in == 3
    assert len(weights) == 2
    assert weights[0][0][0].shape == (8,)
    assert len(tl.flatten_weights_and_state(weights[1], ())[0]) == 8
    torch.testing.assert_close(outputs[0], x + attention((layer.sublayers[0](y), mask))[0])
    torch.testing.assert_close(layer.reverse(outputs)[0], x)


def test_half_residual_prints_its_layers():
    layer = tl.ReversibleHalfResidual(tl.Dense(8), tl.Relu(), name="Half")

    assert str(layer) == "Half_in2_out2[\n  Serial[\n    Dense_8\n    Relu\n  ]\n]"


def test_gradients_reach_inputs_and_every_weight():
    layer = half_residual()
    x, y = (t.requires_grad_() for t in pair())

    z, same = layer((x, y))
    (z.square().sum() + same.sum()).backward()

    assert all(p.grad is not None for p in layer.parameters())
    torch.testing.assert_close(x.grad, 2 * z.detach())
    assert y.grad.any()


def test_weights_and_state_dict_round_trip():
    layer, twin, third = half_residual().eval(), half_residual().eval(), half_residual().eval()
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
    x = pair()

    twin.weights = layer.weights
    third.load_state_dict(layer.state_dict())

    assert torch.equal(twin(x)[0], layer(x)[0])
    assert torch.equal(third(x)[0], layer(x)[0])


def test_a_reversible_layer_copies_pickles_and_compiles():
    torch.compiler.reset()
    layer, x = half_residual().eval(), pair()
    want = layer(x)[0]

    for twin in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.compile(layer, backend="eager", fullgraph=True),
    ):
        torch.testing.assert_close(twin(x)[0], want)


def test_a_layer_that_overrides_no_reverse_says_so():
    with pytest.raises(TypeError, match="ReversibleLayer has no reverse"):
        tl.ReversibleLayer().reverse(torch.ones(1))


def test_pairs_and_shapes_are_put_back():
    """Bit for bit; other axes stay."""
    x, y = pair()
    joined = tl.ReversibleConcatenatePair()
    reshaped = tl.ReversibleReshape(x.shape[:2], (x.shape[0], 1, x.shape[1]), n_in=2)

    both = joined((x, y))
    assert torch.equal(both[0], torch.cat([x, y], dim=-1))
    assert torch.equal(both[1], both[0])
    for layer, items in ((joined, (x, y)), (reshaped, (x, y))):
        assert all(map(torch.equal, layer.reverse(layer(items)), items))
    assert reshaped((x, y))[0].shape == (x.shape[0], 1, *x.shape[1:])
    single = tl.ReversibleReshape([2, 3], [6])
    assert single.reverse(single(torch.ones(2, 3, 4))).shape == (2, 3, 4)
    assert single.name == "ReversibleReshape_[2, 3]_[6]"
    with pytest.raises(ValueError, match=r"as many entries; got \(2,\) and \(3,\)"):
        tl.ReversibleReshape([2], [3])


def test_shapes_are_printed_once_a_pass(capsys):
    """Not again when the backward pass runs a row of layers backwards; gradients are as without."""
    torch.manual_seed(0)
    halves = [tl.ReversibleHalfResidual(tl.Dense(4)) for _ in range(2)]
    printed = tl.Serial(halves[0], tl.ReversiblePrintShape(n_in=2, msg="mid"), halves[1])
    plain = tl.Serial(*halves)
    x = (torch.rand(3, 4), torch.rand(3, 4))
    printed.init(x)
    grads = []
    for model in (printed, plain):
        model.zero_grad()
        capsys.readouterr()
        model(x)[0].square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
        lines = capsys.readouterr().out.splitlines()
        assert lines == ["PrintShape: mid: [(3, 4)[float32], (3, 4)[float32]]"] * (model is printed)

    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)
    assert tl.ReversiblePrintShape().reverse(x[0]) is x[0]


def test_a_series_is_reversed_without_random_numbers_and_takes_reversible_layers_alone():
    half = half_residual().eval()
    series = tl.ReversibleSerial([half, tl.ReversibleSwap()], half_residual().eval())
    x, y = pair()
    outputs = series((x, y))

    torch.testing.assert_close(series.reverse(outputs), (x, y))
    torch.testing.assert_close(series.reverse(outputs, series.weights, series.state), (x, y))
    with pytest.raises(ValueError, match="reversed without an rng, .*; got one. Reverse in eval"):
        series.reverse(outputs, rng=0)
    with pytest.raises(ValueError, match="takes reversible layers, .*; its layer 1 is Dense_8."):
        tl.ReversibleSerial(tl.ReversibleSwap(), tl.Dense(8))
