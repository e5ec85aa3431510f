"""Dense layers with weights of 8 bits: what they hold, and what they compute."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rounded import dense

from trax_torch import layers as tl
from trax_torch import shapes
from trax_torch._errors import CheckpointError
from trax_torch.supervised._generation import int8, quantizing


def floats(layer):
    """The weights (n_units, d_in) that a layer stands for, in float64."""
    return layer.weight.double() * layer.scale.double()[:, None]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(-50, 30),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    st.integers(0, 99),
)
@example(1, 29, -41, torch.float32, 0)  # half of whose scale is not among the numbers of its type
def test_a_weight_is_within_half_a_scale(d_in, n_units, power, kind, seed):
    """Of any type and size, the smallest that a type has included; and zero is zero."""
    layer = dense(d_in, n_units, seed).double()
    with torch.no_grad():
        layer.weight.mul_(10.0 ** (min(power, 3) if kind == torch.float16 else power))
        layer.weight[0] = 0
    small = int8.Int8Dense(layer.to(kind))
    w = layer.weight.detach().double()

    assert small.weight.dtype == torch.int8
    assert small.scale.dtype == kind
    assert ((floats(small) - w).abs() <= 0.5001 * small.scale.double()[:, None]).all()
    assert (floats(small)[0] == 0).all()


def test_float64_weights_may_be_larger_than_float32_holds():
    layer = dense().double()
    layer.weight.data *= 1e39

    assert torch.allclose(floats(int8.Int8Dense(layer)), layer.weight, atol=1e37)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("shape", [(8,), (1, 8), (2, 3, 8), (0, 8)])
def test_it_computes_what_its_weights_stand_for(shape, use_bias):
    layer = int8.Int8Dense(dense(use_bias=use_bias))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    want = x.double() @ floats(layer).t() + (layer.bias.double() if use_bias else 0)

    assert torch.allclose(layer(x).double(), want, atol=1e-5)
    assert layer(x).shape == (*shape[:-1], 6)


def test_a_large_matrix_is_computed_in_parts():
    layer = int8.Int8Dense(dense(600, 4000))
    x = torch.randn(3, 600, generator=torch.Generator().manual_seed(1))

    assert layer.weight.numel() > 2**21
    assert torch.allclose(layer(x).double(), x.double() @ floats(layer).t() + layer.bias, atol=1e-3)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16, torch.int64])
def test_types_are_those_of_dense(kind):
    """Of inputs, of the weights before, and of the layer after a conversion."""
    layer, x = dense(), torch.arange(16).reshape(2, 8).to(kind)

    small = int8.Int8Dense(layer)
    assert small(x).dtype == layer(x).dtype
    assert torch.allclose(small(x).double(), layer(x).double(), rtol=0.05, atol=0.5)
    if kind.is_floating_point:
        for found in (int8.Int8Dense(layer.to(kind)), small.to(kind)):
            assert found.weight.dtype == torch.int8
            assert found(x).dtype == kind
            assert torch.allclose(found(x).double(), layer(x).double(), rtol=0.05, atol=0.5)


def test_sums_that_fit_into_float16_are_not_lost():
    """Of 8 bits alone they would be 127 x 30 x 64, more than it holds."""
    layer, x = dense(64), torch.full((1, 64), 30.0, dtype=torch.float16)
    layer.weight.data.fill_(0.01)

    small = int8.Int8Dense(layer.half())

    assert torch.allclose(small(x), layer(x), rtol=1e-2)


def test_signatures_are_those_of_dense():
    layer = dense()
    for shape in ((3, 8), (2, 1, 8)):
        signature = shapes.ShapeDtype(shape)
        assert int8.Int8Dense(layer).output_signature(signature) == layer.output_signature(
            signature
        )


def test_autocast_decides_as_for_dense():
    layer, x = dense(), torch.ones(2, 8)
    small = int8.Int8Dense(layer)

    with torch.autocast("cpu", torch.bfloat16):
        assert small(x).dtype == layer(x).dtype == torch.bfloat16


@pytest.mark.parametrize("n_rows", [1, 3, 8])
def test_four_weights_at_a_time_are_the_same_product(n_rows):
    """With every byte there is, in each of the four places."""
    q = torch.arange(-128, 128, dtype=torch.int8).repeat(4).reshape(4, 256)
    q = torch.cat([q.roll(i, 1) for i in range(4)])
    x = torch.randn(n_rows, 256, generator=torch.Generator().manual_seed(1))

    found = int8._by_words(x[:, None], q)

    assert found.shape == (n_rows, 1, 16)
    want = x.double() @ q.double().t()
    assert torch.allclose(found[:, 0].double(), want, rtol=0, atol=3e-6 * 128 * 256)
    x[0, 3], x[0, 4] = torch.inf, 3e36
    assert torch.equal(int8._by_words(x, q).isnan(), (x @ q.float().t()).isnan())


@pytest.mark.parametrize("d_in", [8, 6])
@pytest.mark.parametrize("n_rows", [1, 8, 9])
@pytest.mark.parametrize("predicts", [False, True])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
def test_it_compiles_to_what_it_computes(kind, predicts, n_rows, d_in):
    """Few rows and many, in predict mode and in others, and rows that words do not divide."""
    torch.compiler.reset()
    layer = int8.Int8Dense(dense(d_in)).eval().to(kind)
    if predicts:
        layer.init_cache(1, 1)
    x = torch.randn(n_rows, 1, d_in, generator=torch.Generator().manual_seed(1)).to(kind)

    with torch.no_grad():
        found = torch.compile(layer, backend="eager", fullgraph=True)(x)

    assert found.dtype == kind
    assert torch.allclose(found, layer(x), atol=0.05 if kind == torch.bfloat16 else 1e-5)


def test_the_operation_keeps_to_the_rules_of_operations():
    q = torch.randint(-127, 128, (6, 8), dtype=torch.int8)

    torch.library.opcheck(
        torch.ops.trax_torch.int8_product, (torch.randn(9, 1, 8), q, torch.ones(6))
    )


@pytest.mark.parametrize("weights_only", [False, True])
def test_its_weights_go_to_files_and_back(tmp_path, weights_only):
    layer, other = (int8.Int8Dense(dense(seed=seed)) for seed in (0, 1))
    x = torch.ones(2, 8)
    assert not torch.equal(layer(x), other(x))

    layer.save_to_file(tmp_path / "a", weights_only=weights_only)
    other.init_from_file(tmp_path / "a", weights_only=weights_only)

    assert torch.equal(layer(x), other(x))
    assert layer.state == ()
    assert [t.shape for t in layer.weights] == [(6, 8), (6,), (6,)]
    assert not any(p.requires_grad for p in layer.parameters())


def test_floats_are_not_taken_for_integers(tmp_path):
    """Neither by name, nor as a tree, nor from a file; nor the other way round."""
    layer, small = dense(), int8.Int8Dense(dense())
    before = [t.clone() for t in small.weights]

    floats_by_name = {**layer.state_dict(), "scale": small.scale}
    with pytest.raises(RuntimeError, match="Int8Dense_6 takes weights of 8 bits; got torch.float"):
        small.load_state_dict(floats_by_name, strict=False)
    with pytest.raises(ValueError, match="takes weights of 8 bits; got torch.float32"):
        small.weights = (layer.weight, small.scale, small.bias)
    layer.save_to_file(tmp_path / "floats")
    with pytest.raises(CheckpointError, match="scale is not in the file"):
        small.init_from_file(tmp_path / "floats")
    assert all(torch.equal(a, b) for a, b in zip(small.weights, before, strict=True))

    small.save_to_file(tmp_path / "integers")
    for other in (dense(), tl.Dense(6)):  # with weights, and waiting for some
        with pytest.raises(CheckpointError, match="scale is not in the model"):
            other.init_from_file(tmp_path / "integers")


def test_it_draws_no_weights():
    with pytest.raises(tl.LayerError, match="Int8Dense_6 takes its weights from a model's"):
        int8.Int8Dense(dense()).init(torch.zeros(1, 8), rng=0)


def test_weights_that_are_no_numbers_are_refused():
    layer = dense()
    layer.weight.data[1, 2:4] = torch.nan

    with pytest.raises(ValueError, match=r"finite weights; Dense_6 \(0\) has 2 that are not"):
        quantizing.quantized(tl.Serial(layer))
    with pytest.raises(ValueError, match=r"Dense_6 \(the model\) has no weights yet"):
        quantizing.quantized(tl.Dense(6))


def test_a_default_type_of_torch_changes_nothing():
    layer = int8.Int8Dense(dense()).eval()
    layer.init_cache(1, 1)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            found = torch.compile(layer, backend="eager")(torch.ones(1, 8, dtype=torch.float32))
    finally:
        torch.set_default_dtype(torch.float32)

    assert found.dtype == torch.float32
