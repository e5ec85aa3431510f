"""Convolutions, against a loop over windows, and how their kernels are kept."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trax_torch import layers as tl
from trax_torch import shapes


@pytest.fixture(autouse=True)
def _afresh():
    torch.manual_seed(0)
    torch.compiler.reset()


def slide(x, kernel, strides, pads, spread=None, dilation=None):
    """Sums windows of (batch, space..., in) by kernel (space..., in, out), one output at a time.

    `spread` sets the inputs apart, and `dilation` the kernel's values, by that many positions.
    """
    n = x.ndim - 2
    spread, dilation = spread or (1,) * n, dilation or (1,) * n
    sizes = [(m - 1) * s + 1 for m, s in zip(x.shape[1:-1], spread, strict=True)]
    apart = np.zeros((x.shape[0], *sizes, x.shape[-1]))
    apart[(slice(None), *(slice(None, None, s) for s in spread))] = x
    apart = np.pad(apart, [(0, 0), *pads, (0, 0)])
    reach = [(k - 1) * d + 1 for k, d in zip(kernel.shape[:n], dilation, strict=True)]
    out = [(m - r) // s + 1 for m, r, s in zip(apart.shape[1:-1], reach, strides, strict=True)]
    y = np.zeros((x.shape[0], *out, kernel.shape[-1]))
    for at in itertools.product(*map(range, out)):
        window = tuple(
            slice(i * s, i * s + r, d)
            for i, s, r, d in zip(at, strides, reach, dilation, strict=True)
        )
        picked = apart[(slice(None), *window)].reshape(x.shape[0], -1)
        y[(slice(None), *at)] = picked @ kernel.reshape(-1, kernel.shape[-1])
    return y


def same(size, window, stride):
    """TensorFlow's rule: size / stride outputs, rounded up, the odd zero at the end."""
    total = max((int(np.ceil(size / stride)) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def randn(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def named(spec, sizes):
    return [sizes[letter] for letter in spec]


@settings(max_examples=30, deadline=None)
@given(
    n_axes=st.integers(1, 3),
    window=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    strides=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    padding=st.sampled_from(["VALID", "SAME", "same", "given"]),
)
def test_conv_sums_windows(n_axes, window, strides, padding):
    window, strides = tuple(window[:n_axes]), tuple(strides[:n_axes])
    space, pairs = "DHW"[-n_axes:], ((1, 0), (2, 1), (0, 0))[:n_axes]
    names = (f"N{space}C", f"{space}IO", f"N{space}C")
    given_padding = pairs if padding == "given" else padding
    x = randn(2, *(4, 5, 3)[:n_axes], 2)
    layer = tl.Conv(3, window, strides, given_padding, names)
    (kernel, bias), _ = layer.init(shapes.signature(x))
    sizes = zip(x.shape[1:-1], window, strides, strict=True)
    pads = {"given": pairs, "VALID": [(0, 0)] * n_axes}.get(padding) or [same(*s) for s in sizes]

    y = layer(x)

    wanted = slide(x, kernel.detach().numpy(), strides, pads) + bias.detach().numpy()
    np.testing.assert_allclose(y, wanted, atol=1e-5)


@pytest.mark.parametrize(
    "names",
    [
        ("NCHW", "OIHW", "NCHW"),
        ("NHWC", "HWIO", "NCHW"),
        ("NHWC", "WHIO", "NHWC"),
        ("NWHC", "HWIO", "NHWC"),
        ("HWNC", "HOWI", "HWCN"),
    ],
)
@pytest.mark.parametrize("make", [tl.Conv, tl.ConvTranspose])
def test_axes_are_found_by_their_names(make, names):
    """Sizes of windows and strides stand in the order of the kernel's axes of space."""
    sizes = {"N": 2, "C": 3, "H": 5, "W": 6}
    window, strides = {"H": 2, "W": 3}, {"H": 2, "W": 1}
    space = [c for c in names[1] if c in "HW"]
    x, kernel = randn(*named("NHWC", sizes)), randn(2, 3, 3, 4)
    plain = make(4, (2, 3), (2, 1), "SAME")
    plain.init(x)
    plain.weights = kernel, np.arange(4, dtype=np.float32)
    layer = make(4, named(space, window), named(space, strides), "SAME", dimension_numbers=names)
    turned = x.transpose(["NHWC".index(c) for c in names[0]])
    layer.init(turned)
    bias = np.arange(4, dtype=np.float32).reshape(layer.weights[1].shape)
    layer.weights = kernel.transpose(["HWIO".index(c) for c in names[1]]), bias

    y = layer(turned)

    wanted = plain(x).transpose(["NHWC".index(c) for c in names[2]])
    np.testing.assert_allclose(y, wanted, atol=1e-5)
    assert list(bias.shape) == [4] + [1] * (3 - names[2].index("C"))


def test_kernels_are_shown_in_the_order_of_trax_and_kept_in_that_of_torch():
    layer = tl.Conv(4, (2, 3))
    (kernel, bias), _ = layer.init(shapes.ShapeDtype((1, 5, 6, 3)))
    values = randn(2, 3, 3, 4)

    layer.weights = values, bias

    assert kernel.shape == (2, 3, 3, 4)
    assert layer.weight.shape == (4, 3, 2, 3)
    assert dict(layer.named_parameters()).keys() == {"weight", "bias"}
    np.testing.assert_array_equal(kernel.detach(), values)  # live, not a copy
    assert tl.Conv(4, (2, 3), use_bias=False).init(torch.zeros(1, 5, 6, 3))[0].shape == kernel.shape


def test_conv_merges_leading_axes_with_the_batch():
    layer = tl.Conv(4, (2, 2))
    x = torch.randn(2, 3, 5, 6, 3)
    layer.init(x)

    y = layer(x)

    assert y.shape == (2, 3, 4, 5, 4)
    torch.testing.assert_close(y, torch.stack([layer(part) for part in x]))


def test_conv_takes_integers():
    layer = tl.Conv(4, (2, 2))
    x = np.arange(75, dtype=np.uint8).reshape(1, 5, 5, 3)
    layer.init(x)

    np.testing.assert_array_equal(layer(x), layer(x.astype(np.float32)))


def test_first_kernels_count_the_window():
    """Glorot's variance, 2 / (window * (in + out)); Trax 1.4.1 leaves the window out."""
    kernel, bias = tl.Conv(64, (3, 3)).init(shapes.ShapeDtype((1, 5, 5, 32)), rng=0)[0]

    assert abs(kernel.std().item() / np.sqrt(2 / (9 * 96)) - 1) < 0.02
    assert bias.abs().max() < 1e-5


def test_conv1d_slides_over_one_axis():
    layer = tl.Conv1d(4, 3, stride=2, padding="SAME", use_bias=False)
    x = randn(2, 7, 3)
    kernel, _ = layer.init(x)

    wanted = slide(x, kernel.detach().numpy(), (2,), [same(7, 3, 2)])

    np.testing.assert_allclose(layer(x), wanted, atol=1e-5)
    assert str(layer) == "Conv"


@pytest.mark.parametrize("make", [tl.CausalConv, tl.CausalDepthwiseConv])
def test_causal_convolutions_do_not_see_what_comes_later(make):
    layer = tl.CausalConv(4, 3) if make is tl.CausalConv else tl.CausalDepthwiseConv(3)
    x = torch.randn(2, 6, 4)
    layer.init(x)
    later = x.clone()
    later[:, 4:] += 1

    y, z = layer(x), layer(later)

    torch.testing.assert_close(y[:, :4], z[:, :4])
    assert (y[:, 4:] != z[:, 4:]).any(-1).all()
    assert y.shape == x.shape


def test_causal_depthwise_conv_weighs_each_channel_by_itself():
    """The kernel's first row weighs a position itself, the next the one before it."""
    layer = tl.CausalDepthwiseConv(kernel_size=3)
    x = randn(2, 6, 4)
    kernel, _ = layer.init(x)
    w = kernel.detach().numpy()
    padded = np.pad(x, [(0, 0), (2, 0), (0, 0)])

    y = layer(x)

    wanted = padded[:, 2:] * w[0] + padded[:, 1:-1] * w[1] + padded[:, :-2] * w[2]
    np.testing.assert_allclose(y, wanted, atol=1e-6)


def test_causal_depthwise_conv_keeps_bfloat16_weights_on_request():
    layer = tl.CausalDepthwiseConv(use_bfloat16=True)
    layer.init(shapes.ShapeDtype((2, 6, 4)))

    assert layer.weights.dtype == torch.bfloat16
    assert layer(torch.zeros(2, 6, 4)).dtype == torch.float32


@pytest.mark.parametrize("length", [0, 1])
def test_causal_convolutions_take_sequences_shorter_than_their_window(length):
    conv, depthwise = tl.CausalConv(5, 3), tl.CausalDepthwiseConv(3)
    conv.init(shapes.ShapeDtype((2, 4, 4)))
    depthwise.init(shapes.ShapeDtype((2, 4, 4)))

    assert conv(torch.zeros(2, length, 4)).shape == (2, length, 5)
    assert depthwise(torch.zeros(2, length, 4)).shape == (2, length, 4)


@settings(max_examples=30, deadline=None)
@given(
    n_axes=st.integers(1, 3),
    window=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    strides=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    dilation=st.lists(st.integers(1, 2), min_size=3, max_size=3),
    padding=st.sampled_from(["VALID", "SAME"]),
)
def test_conv_transpose_slides_over_inputs_set_apart(n_axes, window, strides, dilation, padding):
    """JAX's rule for what is added on each side; the kernel is not mirrored."""
    window, strides, dilation = (tuple(v[:n_axes]) for v in (window, strides, dilation))
    space = "DHW"[-n_axes:]
    names = (f"N{space}C", f"{space}IO", f"N{space}C")
    x = randn(2, *(2, 3, 2)[:n_axes], 2)
    layer = tl.ConvTranspose(3, window, strides, padding, dilation, names)
    (kernel, bias), _ = layer.init(shapes.signature(x))
    pads = []
    for k, s, d in zip(window, strides, dilation, strict=True):
        reach = (k - 1) * d + 1
        total = reach + s - 2 + (max(reach - s, 0) if padding == "VALID" else 0)
        before = reach - 1 if padding == "VALID" or s > reach - 1 else int(np.ceil(total / 2))
        pads.append((before, total - before))

    y = layer(x)

    ones = (1,) * n_axes
    wanted = slide(x, kernel.detach().numpy(), ones, pads, strides, dilation)
    np.testing.assert_allclose(y, wanted + bias.detach().numpy(), atol=1e-5)


def test_conv_transpose_has_the_shape_of_trax():
    layer = tl.ConvTranspose(30, (3, 3))
    x = np.ones((9, 5, 5, 20))
    layer.init(x)

    assert layer(x).shape == (9, 7, 7, 30)
    assert layer(x[None]).shape == (1, 9, 7, 7, 30)
    assert [w.shape for w in layer.weights] == [(3, 3, 20, 30), (30,)]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: tl.Conv(4, (2, 2), (1,)), r"a stride for each; got kernel_size=\(2, 2\) and"),
        (lambda: tl.Conv(4, (2,) * 4), "kernels of 1 to 3 axes"),
        (lambda: tl.Conv(4, (2, 2), padding="FULL"), "'SAME', 'VALID', or a pair.* got 'FULL'"),
        (lambda: tl.Conv(4, (2, 2), padding=[(1, 1)]), r"each of 2 axes; got \[\(1, 1\)\]"),
        (lambda: tl.Conv(4, (2,)), r"1 axes of space.*got \('NHWC', 'HWIO', 'NHWC'\)"),
        (
            lambda: tl.Conv(4, (2, 2), dimension_numbers=("NHWC", "HWIO", "NHWD")),
            "needs dimension_numbers that name batch N",
        ),
        (lambda: tl.ConvTranspose(4, (2, 2), rhs_dilation=(2,)), r"rhs_dilation=\(2,\)"),
        (lambda: tl.ConvTranspose(4, (2, 2), padding=[(1, 1)] * 2), "pads by 'SAME' or 'VALID'"),
    ],
)
def test_convolutions_refuse_settings_that_do_not_fit(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (tl.Conv(4, (2, 2)), (5, 5, 3), r"axes NHWC; got shape \(5, 5, 3\)"),
        (
            tl.Conv(4, (2, 2), dimension_numbers=("HWNC", "HWIO", "HWNC")),
            (1, 5, 5, 2, 3),
            "More axes are taken for batch where N comes first",
        ),
    ],
)
def test_convolutions_refuse_tensors_without_their_axes(layer, shape, message):
    """Called, or found by shapes that flow through a model."""
    layer.init(torch.zeros(1, 5, 5, 3))
    for way in (layer, layer.output_signature, tl.Serial(layer, tl.Relu()).init):
        with pytest.raises(tl.LayerError, match=message):
            way(torch.zeros(shape))


def test_conv_refuses_weights_of_another_form():
    layer = tl.Conv(4, (2, 2))
    layer.init(torch.zeros(1, 5, 5, 3))
    before = [w.detach().clone() for w in layer.weights]

    with pytest.raises(ValueError, match=r"needs a kernel with axes HWIO; got shape \(2, 2\)"):
        layer.weights = np.zeros((2, 2)), np.zeros(4)
    with pytest.raises(ValueError, match=r"wants \(kernel, bias\); the tree brings 1"):
        layer.weights = (np.zeros((2, 2, 3, 4)),)
    torch.testing.assert_close([w.detach() for w in layer.weights], before)
