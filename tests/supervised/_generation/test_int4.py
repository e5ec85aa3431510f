"""Weights of 4 bits in groups: what they hold and compute, and that models decode by them."""

import shutil

import numpy as np
import pytest
import ties
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rounded import VOCAB, dense, noise, prompts, sample, search

from trax_torch import layers as tl
from trax_torch import models
from trax_torch._errors import CheckpointError
from trax_torch.supervised import decoding
from trax_torch.supervised._generation import groups, int4, int8

NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
# Inputs and how many share a scale: blocks of 128 and of one group, several groups, and one.
SHAPES = [(32, 32), (96, 32), (128, 32), (64, 64), (256, 64), (128, 128), (512, 256)]


def unpacked(layer):
    """The weights (n_units, d_in) that a layer stands for, in float64, taken apart bit by bit."""
    words = layer.weight.contiguous().numpy().view("<u4")
    n, size = len(words), 2 * layer.weight.shape[1] // layer.scale.shape[1]
    block = size if 8 * words.shape[1] % max(size, 64) else max(size, 64)
    integers = np.empty((n, 8 * words.shape[1]))
    for at in range(integers.shape[1]):
        start, place = at - at % block, at % block
        i, j = divmod(place, block // 8)
        bits = (words[:, start // 8 + j].astype(np.int64) >> 4 * i) & 15
        integers[:, at] = np.where(bits < 8, bits, bits - 16) if i == 7 else bits - 8
    return torch.from_numpy(integers) * layer.scale.double().repeat_interleave(size, 1)


def rounded_by_hand(w, size):
    """What the docstring says of weights in float64."""
    result = np.empty(w.shape)
    for row, weights in enumerate(w.tolist()):
        for start in range(0, len(weights), size):
            group = weights[start : start + size]
            scale = max(group, key=abs) / -8 or 1.0
            result[row, start : start + size] = [
                min(max(round(x / scale), -8), 7) * scale for x in group
            ]
    return torch.from_numpy(result)


@pytest.mark.parametrize(("d_in", "size"), SHAPES)
def test_weights_are_rounded_in_groups(d_in, size):
    layer = dense(d_in).double()
    layer.weight.data[1] = 0

    small = int4.Int4Dense(layer, size)

    assert small.weight.dtype == torch.uint8
    assert small.weight.shape == (6, d_in // 2)
    assert small.scale.shape == (6, d_in // size)
    assert torch.equal(unpacked(small), rounded_by_hand(layer.weight.detach(), size))


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 20),
    st.integers(-50, 30),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    st.integers(0, 99),
)
@example(20, -45, torch.float32, 0)  # what float32 has no more than a few bits for
@example(20, -7, torch.float16, 0)
def test_a_weight_is_within_half_a_scale_or_cut_off_within_one(n_units, power, kind, seed):
    """Of any type and size, the smallest that a type has included; and zero is zero."""
    layer = dense(96, n_units, seed).double()
    with torch.no_grad():
        layer.weight.mul_(10.0 ** (min(power, 3) if kind == torch.float16 else power))
        layer.weight[0] = 0
    small = int4.Int4Dense(layer.to(kind), 32)
    w, scale = layer.weight.detach().double(), small.scale.double().repeat_interleave(32, 1)
    found = unpacked(small)

    assert small.scale.dtype == kind
    is_cut = (found / scale).round() == 7
    room = 1e-6 if kind in (torch.float32, torch.float64) else 0.05
    assert ((found - w).abs() <= torch.where(is_cut, 1, 0.5).add(room) * scale.abs()).all()
    assert (found[0] == 0).all()


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (0,), (40,)])
def test_it_computes_what_its_weights_stand_for(shape, use_bias):
    for d_in, size in SHAPES:
        layer = int4.Int4Dense(dense(d_in, use_bias=use_bias), size)
        x = noise(*shape, d_in)
        want = x.double() @ unpacked(layer).t() + (layer.bias.double() if use_bias else 0)

        assert layer(x).shape == (*shape, 6)
        assert torch.allclose(layer(x).double(), want, atol=1e-4)


@pytest.mark.parametrize("n_rows", [1, 3, 8])
@pytest.mark.parametrize(("d_in", "size"), SHAPES)
def test_bits_taken_where_they_stand_are_the_same_product(d_in, size, n_rows):
    """With all sixteen in each of the eight places."""
    layer = int4.Int4Dense(dense(d_in, 32), size)
    layer.weight.copy_(torch.arange(16 * d_in).reshape(32, -1).mul(37).to(torch.uint8))
    layer.scale.copy_(noise(*layer.scale.shape, seed=2))
    x = noise(n_rows, 1, d_in)

    found = groups.by_words(x, layer.weight, layer.scale)

    assert found.shape == (n_rows, 1, 32)
    assert {int(b) for b in layer.weight.flatten()} == set(range(256))
    want = x.double() @ unpacked(layer).t()
    assert torch.allclose(found.double(), want, rtol=0, atol=1e-6 * 16 * d_in)
    x[0, 0, 3] = torch.nan
    found = groups.by_words(x, layer.weight, layer.scale)
    assert torch.equal(found.isnan(), (x @ unpacked(layer).t().float()).isnan())


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
def test_types_are_those_of_dense(kind):
    """Of inputs, of the weights before, and of the layer after a conversion."""
    layer, x = dense(64), noise(2, 64).to(kind)
    small = int4.Int4Dense(layer, 32)

    assert small(x).dtype == layer(x).dtype
    for found in (int4.Int4Dense(layer.to(kind), 32), small.to(kind)):
        assert found.weight.dtype == torch.uint8
        assert found(x).dtype == kind
        want = x.double() @ unpacked(found).t() + found.bias.double()
        assert torch.allclose(found(x).double(), want, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("n_rows", [1, 8, 9])
@pytest.mark.parametrize("predicts", [False, True])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
def test_it_compiles_to_what_it_computes(kind, predicts, n_rows):
    """Few rows and many, in predict mode and in others."""
    torch.compiler.reset()
    layer = int4.Int4Dense(dense(128), 32).eval().to(kind)
    if predicts:
        layer.init_cache(1, 1)
    x = noise(n_rows, 1, 128).to(kind)

    with torch.no_grad():
        found = torch.compile(layer, backend="eager", fullgraph=True)(x)

    assert found.dtype == kind
    assert torch.allclose(found, layer(x), atol=0.05 if kind == torch.bfloat16 else 1e-5)


def test_the_operation_keeps_to_the_rules_of_operations():
    layer = int4.Int4Dense(dense(64), 32)

    torch.library.opcheck(
        torch.ops.trax_torch.int8_product,
        (noise(9, 1, 64), layer.weight.data, layer.scale.data),
    )


@pytest.mark.parametrize("weights_only", [False, True])
def test_its_weights_go_to_files_and_back(tmp_path, weights_only):
    layer, other = (int4.Int4Dense(dense(64, seed=seed), 32) for seed in (0, 1))
    x = noise(2, 64)
    assert not torch.equal(layer(x), other(x))

    layer.save_to_file(tmp_path / "a", weights_only=weights_only)
    other.init_from_file(tmp_path / "a", weights_only=weights_only)

    assert torch.equal(layer(x), other(x))
    assert not any(p.requires_grad for p in layer.parameters())


def test_other_weights_are_not_taken_for_these(tmp_path):
    """Floats, bytes, and groups of another size; all is left as it was."""
    small = int4.Int4Dense(dense(64), 32)
    before = [t.clone() for t in small.weights]

    for name, other in (
        ("floats", dense(64)),
        ("bytes", int8.Int8Dense(dense(64))),
        ("groups", int4.Int4Dense(dense(64), 64)),
    ):
        other.save_to_file(tmp_path / name)
        with pytest.raises(CheckpointError):
            small.init_from_file(tmp_path / name)
        with pytest.raises(CheckpointError):
            other.init_from_file(small.save_to_file(tmp_path / "small") or tmp_path / "small")
    with pytest.raises(ValueError, match="Int4Dense_6 takes weights of 4 bits; got torch.float32"):
        small.weights = (dense(64).weight, small.scale, small.bias)

    assert all(torch.equal(a, b) for a, b in zip(small.weights, before, strict=True))


def lively(dtype=torch.float64, **kwargs):
    """A model whose rows differ, though nobody trained it."""
    model = models.TransformerLM(VOCAB, 64, 128, 2, 2, 160, dropout=0.0, **kwargs)
    model.init(torch.ones(1, 2, dtype=torch.int64), rng=4)
    for p in model.parameters():
        p.data *= 2
    return model.to(dtype).eval()


def test_a_model_says_nearly_the_same_in_half_the_bytes():
    model, tokens = lively(torch.float32), prompts(30)
    before = {key: t.clone() for key, t in model.state_dict().items()}
    small, larger = decoding.quantize(model, bits=4), decoding.quantize(model)

    with torch.no_grad():
        found, want = small(tokens), model(tokens)

    layers = [m for m in small.modules() if isinstance(m, int8.Int8Dense)]
    assert {type(m) for m in layers} == {int4.Int4Dense}
    assert 0 < (found - want).std() < 0.4 * want.std()
    n_bytes, n_bytes_8 = (
        sum(t.nbytes for t in m.state_dict().values() if not t.is_floating_point())
        for m in (small, larger)
    )
    assert n_bytes == n_bytes_8 / 2
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())


def test_steps_say_what_a_pass_says_whatever_is_beside_them():
    """Uncompiled and compiled, rows alone, from a stream."""
    small = decoding.quantize(lively(), bits=4, group_size=32)
    fast, want = tl.Accelerate(small, backend="eager"), sample(small, prompts(), seed=[5, 6])

    assert torch.equal(sample(small, prompts(), seed=[5, 6], eval_mode=True), want)
    assert torch.equal(sample(fast, prompts(), seed=[5, 6]), want)
    for row in (0, 1):
        alone = sample(small, prompts()[row : row + 1], seed=[5 + row])
        assert torch.equal(alone, want[row : row + 1])
    stream = decoding.autoregressive_sample_stream(
        small, prompts(), batch_size=2, temperature=0.5, seed=[5, 6]
    )
    found = torch.cat([next(stream) for _ in range(20)], 1)
    stream.close()
    assert torch.equal(found, want)


def test_compiled_steps_of_float32_choose_what_float64_does():
    """Sampled, and with beams; with few rows, which are computed as one loop, and with more."""
    small = decoding.quantize(lively(torch.float32), bits=4)
    fast, wide = tl.Accelerate(small, backend="eager"), ties.in_float64(small)

    tokens, want = (sample(m, prompts()) for m in (fast, wide))
    ties.assert_same_tokens(tokens, want, wide, prompts(), temperature=0.5, seed=3)
    for batch in (2, 4):
        inputs = prompts(batch=batch)
        beams, want = (search(m, inputs) for m in (fast, wide))
        ties.assert_same_beams(beams, want, ties.bound_of_scores(wide, inputs, want[0]))


@pytest.mark.exhaustive
@NEEDS_COMPILER
def test_inductor_gives_the_tokens_of_uncompiled_steps():
    """With several groups in a block, and with one."""
    small = decoding.quantize(lively(torch.float32), bits=4, group_size=32)
    fast, wide = tl.Accelerate(small), ties.in_float64(small)

    tokens, want = (sample(m, prompts()) for m in (fast, wide))
    ties.assert_same_tokens(tokens, want, wide, prompts(), temperature=0.5, seed=3)


def test_a_tied_weight_is_rounded_in_its_dense_alone():
    model = lively()
    model.sublayers[-1].weight = model.sublayers[1].weight
    embedding = model.sublayers[1].weight.detach().clone()

    small = decoding.quantize(model, bits=4)

    assert torch.equal(small.sublayers[1].weight, embedding)
    assert torch.equal(unpacked(small.sublayers[-1]), rounded_by_hand(embedding, 64))


def test_layers_whose_inputs_are_no_multiple_stay_at_8_bits():
    model = tl.Serial(tl.Dense(96), tl.Dense(64), tl.Dense(5))
    model.init(torch.zeros(1, 64), rng=0)

    small = decoding.quantize(model, bits=4)

    kept = [type(layer) for layer in small.sublayers]
    assert kept == [int4.Int4Dense, int8.Int8Dense, int4.Int4Dense]
    with pytest.raises(ValueError, match="in groups of 256 inputs; no tl.Dense of Serial has a"):
        decoding.quantize(model, bits=4, group_size=256)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"bits": 3}, "bits is 4 or 8; got 3"),
        ({"bits": 4, "group_size": 7}, r"one of \(32, 64, 128, 256\) with .*; got 7"),
        ({"bits": 4, "activations": "int8", "group_size": 32}, r"one of \(64, 128, 256\) with act"),
        ({"group_size": 64}, "group_size=64 with bits=8. Leave it out, or take bits=4"),
    ],
)
def test_what_does_not_go_together_is_refused(chosen, message):
    with pytest.raises(ValueError, match=message):
        decoding.quantize(lively(), **chosen)
