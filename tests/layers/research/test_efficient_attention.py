"""The Reformer's attention: chunks, hashing, and what predict mode sees of the past."""

import functools

import brute_attention
import figures
import numpy as np
import pytest
import reformers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trax_torch import layers as tl
from trax_torch import shapes
from trax_torch.layers import _efficient

D = 6
SelfAttention = functools.partial(tl.SelfAttention, 2, 3, 4)
LSH = functools.partial(tl.LSHSelfAttention, 2, 3, 4)
EncDec = functools.partial(tl.EncDecAttention, 2, 3, 4)


def built(layer, seed=0, batch=2):
    """In double precision, with biases that are not 0."""
    shape = shapes.ShapeDtype((batch, 8, D))
    mask = shapes.ShapeDtype((batch, 8), np.bool_)
    layer.init((shape,) * (layer.n_in - 1) + (mask,) if layer.n_in > 1 else shape, rng=seed)
    with torch.no_grad():
        for name, p in layer.named_parameters():
            if name.startswith("b"):
                p.normal_(generator=torch.Generator().manual_seed(seed))
    return layer.double().eval()


def vectors(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def masks(batch, length, seed=0):
    """Some of each row is content, its first position always."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, length, generator=generator) < 0.6
    mask[:, 0] = True
    return mask


def own_arrays(layer):
    return {name: p.detach().numpy() for name, p in layer.named_parameters()}


def rotations_of(layer, length):
    factors, rotations = layer._rotations(layer.hash_key, length)
    return rotations.double().numpy(), factors


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(1, 13),
    chunk_len=st.none() | st.integers(1, 6),
    beside=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    causal=st.booleans(),
    share_qk=st.booleans(),
    masked=st.booleans(),
    bias=st.booleans(),
)
def test_attention_in_chunks_is_that_of_each_query_to_its_keys(
    length, chunk_len, beside, causal, share_qk, masked, bias
):
    """For any length, in whole chunks or not, however many chunks are seen."""
    before, after = beside if chunk_len else (0, 0)
    layer = built(
        SelfAttention(
            share_qk, causal, masked, chunk_len, before, after, bias, n_parallel_heads=None
        )
    )
    x, mask = vectors(2, length, D), masks(2, length) if masked else None

    got = layer((x, mask) if masked else x)

    for row in range(2):
        want = brute_attention.self_attention(
            x[row].numpy(),
            own_arrays(layer),
            None if mask is None else mask[row].numpy(),
            chunk_len=chunk_len,
            before=before,
            after=after,
            causal=causal,
            share_qk=share_qk,
        )
        np.testing.assert_allclose(got[row].detach(), want, atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(1, 15),
    chunk_len=st.integers(1, 6),
    beside=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    n_hashes=st.integers(1, 3),
    n_buckets=st.sampled_from([None, 2, 4, [4], [2, 4], [2, 2, 2]]),
    causal=st.booleans(),
    masked=st.booleans(),
    bias=st.booleans(),
)
def test_attention_by_hash_is_that_of_each_query_to_its_sorted_keys(
    length, chunk_len, beside, n_hashes, n_buckets, causal, masked, bias
):
    """Rounds sorted by bucket and position, cut into chunks, and weighed by what they saw."""
    layer = built(
        LSH(
            causal=causal,
            masked=masked,
            chunk_len=chunk_len,
            n_chunks_before=beside[0],
            n_chunks_after=beside[1],
            n_hashes=n_hashes,
            n_buckets=n_buckets,
            bias=bias,
        )
    )
    x, mask = vectors(2, length, D), masks(2, length) if masked else None

    got = layer((x, mask) if masked else x)

    for row in range(2):
        want = brute_attention.lsh_attention(
            x[row].numpy(),
            own_arrays(layer),
            None if mask is None else mask[row].numpy(),
            *rotations_of(layer, length),
            chunk_len=chunk_len,
            before=beside[0],
            after=beside[1],
            causal=causal,
        )
        np.testing.assert_allclose(got[row].detach(), want, atol=1e-10)


PARALLEL = [
    functools.partial(tl.SelfAttention, 4, 3, 4, causal=True),
    functools.partial(tl.SelfAttention, 4, 3, 4, chunk_len=3, masked=True),
    functools.partial(tl.LSHSelfAttention, 4, 3, 4, chunk_len=3, n_hashes=2, masked=True),
    functools.partial(tl.EncDecAttention, 4, 3, 4),
]


@pytest.mark.parametrize("make", PARALLEL)
@pytest.mark.parametrize("n", [1, 2, 4, 8, 12, 100])
def test_how_many_heads_run_at_once_changes_no_result(make, n):
    """Nor gradients, and what is dropped."""
    x, mask = vectors(5, 7, D), masks(5, 7)
    results = []
    for n_parallel_heads in (None, n):
        rates = {"attention_dropout": 0.3, "output_dropout": 0.2}
        layer = built(make(n_parallel_heads=n_parallel_heads, **rates)).train()
        leaf = x.clone().requires_grad_()
        inputs = {1: leaf, 2: (leaf, mask), 3: (leaf, leaf, mask)}[layer.n_in]
        y = layer(inputs, rng=5)
        (y * vectors(5, 7, D, seed=1)).sum().backward()
        results.append([y.detach(), leaf.grad, *(p.grad for p in layer.parameters())])

    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", PARALLEL)
def test_heads_in_parts_keep_no_scores(make):
    """What the graph keeps, weights and inputs apart, does not depend on the number of heads."""
    x, mask = vectors(2, 32, D).requires_grad_(), masks(2, 32)

    def kept(n_parallel_heads):
        layer = built(make(n_parallel_heads=n_parallel_heads))
        inputs = {1: x, 2: (x, mask), 3: (x, x, mask)}[layer.n_in]
        apart = {p.untyped_storage().data_ptr() for p in (*layer.parameters(), x, mask)}
        found = {}

        def pack(t):
            if t.untyped_storage().data_ptr() not in apart:
                found[t.untyped_storage().data_ptr()] = t
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            layer(inputs)
        return sum(t.untyped_storage().nbytes() for t in found.values())

    assert kept(1) == 0
    assert kept(None) > 8 * x.nbytes


CAUSAL = {
    "all": SelfAttention(causal=True),
    "biased": SelfAttention(causal=True, bias=True),
    "shared": SelfAttention(causal=True, share_qk=True),
    "chunks": SelfAttention(causal=True, chunk_len=3),
    "chunks before": SelfAttention(causal=True, chunk_len=2, n_chunks_before=2, share_qk=True),
    "chunks, and a longer memory": SelfAttention(
        causal=True, chunk_len=3, predict_mem_len=9, predict_drop_len=2
    ),
    "one bucket": LSH(causal=True, chunk_len=12, n_hashes=2, n_buckets=2, bias=True),
    "a chunk": LSH(causal=True, chunk_len=16),
}


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(sorted(CAUSAL)), parts=st.lists(st.integers(1, 12), max_size=12))
def test_predicting_equals_evaluating_for_any_cut_of_a_sequence(kind, parts):
    """With hashing, where a chunk holds the whole sequence."""
    layer = CAUSAL[kind]
    if not layer.is_initialized:
        built(layer)
    x = vectors(2, 12, D)
    with torch.no_grad():
        whole = layer(x)
        pieces, at = [], 0
        with layer.predict(2, 12):
            for n in [*parts, 12]:
                if at < 12:
                    pieces.append(layer(x[:, at : at + n]))
                at += n

    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("make", [SelfAttention, functools.partial(LSH, chunk_len=8)])
def test_predict_mode_heeds_a_mask(make):
    layer = built(make(causal=True, masked=True))
    x, mask = vectors(2, 8, D), masks(2, 8)
    with torch.no_grad():
        whole = layer((x, mask))
        with layer.predict():
            pieces = [layer((x[:, s], mask[:, s])) for s in (slice(3), slice(3, 4), slice(4, 8))]

    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-10)


def test_a_memory_of_no_given_length_grows():
    layer = built(SelfAttention(causal=True), batch=1)
    x = vectors(1, 600, D)
    with torch.no_grad():
        whole = layer(x)
        with layer.predict():
            pieces = [layer(part) for part in x.split([200, 1, 99, 300], dim=1)]

    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("mem_len", "drop_len"), [(1, 1), (4, 1), (4, 3), (4, 4), (5, 2)])
def test_what_is_forgotten_is_not_seen(mem_len, drop_len):
    """When `mem_len` are remembered, the first `drop_len` go at once."""
    sight = _efficient.Sight(mem_len, drop_len)
    remembered, want = [], []
    for place in range(20):
        if len(remembered) == mem_len:
            remembered = remembered[drop_len:]
        remembered.append(place)
        want.append(remembered[0])

    assert sight.first(torch.arange(20)).tolist() == want


@pytest.mark.parametrize("make", [SelfAttention, functools.partial(LSH, chunk_len=16)])
def test_predict_mode_forgets(make):
    """Vectors of positions that are forgotten change nothing, however calls are cut."""
    layer = built(make(causal=True, predict_mem_len=4, predict_drop_len=2))
    x = vectors(2, 9, D)
    other = x.clone()
    other[:, :4] = vectors(2, 4, D, seed=1)
    outputs = []
    with torch.no_grad():
        for given_x in (x, other):
            for sizes in ([9], [1] * 9):
                with layer.predict():
                    outputs.append(torch.cat([layer(p) for p in given_x.split(sizes, 1)], 1))

    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-10)
    torch.testing.assert_close(outputs[2], outputs[3], rtol=0, atol=1e-10)
    # Position 6 is the first to have forgotten 0 to 3.
    torch.testing.assert_close(outputs[0][:, 6:], outputs[2][:, 6:], rtol=0, atol=1e-10)
    assert not torch.allclose(outputs[0][:, 5], outputs[2][:, 5])


@settings(max_examples=20, deadline=None)
@given(
    n_hashes=st.integers(1, 2),
    before=st.integers(0, 1),
    sizes=st.sampled_from([[14], [1] * 14, [5, 1, 1, 7]]),
)
def test_predict_mode_sees_those_alike_and_then_the_latest(n_hashes, before, sizes):
    """As many as a query sees in eval mode; however calls are cut."""
    layer = built(
        LSH(causal=True, chunk_len=2, n_chunks_before=before, n_hashes=n_hashes, n_buckets=4)
    )
    x, own = vectors(1, 14, D), own_arrays(layer)
    most = n_hashes * 2 * (1 + before)
    with torch.no_grad(), layer.predict():
        got = torch.cat([layer(part) for part in x.split(sizes, 1)], 1)[0]

    rotations, factors = rotations_of(layer, 14)
    q, v = (brute_attention.by_head(x[0].numpy(), own[f"w_{s}"]) for s in "qv")
    want = np.zeros((14, D))
    for h in range(2):
        buckets = brute_attention.buckets_of(q[h], rotations[h], factors)
        k = brute_attention.normalized(q[h])
        for i in range(14):
            alike = [bool((buckets[:, j] == buckets[:, i]).any()) for j in range(i + 1)]
            keys = sorted(range(i + 1), key=lambda j: (alike[j], j))[-most:]
            own_key = [j == i for j in keys]
            found, _ = brute_attention.attend(
                q[h, i], k[keys], v[h, keys], own_key, [False] * len(keys)
            )
            want[i] += found @ own["w_o"][h]
    np.testing.assert_allclose(got, want, atol=1e-10)


def test_rows_go_on_from_the_past_of_others():
    layer = built(LSH(causal=True, chunk_len=2, n_buckets=4))
    x, new = vectors(2, 6, D), vectors(2, 1, D, seed=1)
    with torch.no_grad(), layer.predict():
        layer(x)
        layer.reorder_cache(torch.tensor([1, 1]))
        swapped = layer(new)
    with torch.no_grad(), layer.predict():
        layer(x[[1, 1]])
        expected = layer(new)

    torch.testing.assert_close(swapped, expected)


def test_training_draws_other_rotations_at_each_call_and_evaluating_does_not():
    layer = built(LSH(chunk_len=2, n_buckets=8))
    x = vectors(2, 12, D)

    assert torch.equal(layer(x), layer(x))
    layer.train()
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer(x, rng=3), layer(x, rng=3))
    assert not torch.equal(layer(x, rng=3), layer(x, rng=4))


def test_the_key_of_rotations_is_the_layers_state():
    one, other = built(LSH(chunk_len=2, n_buckets=8), 0), built(LSH(chunk_len=2, n_buckets=8), 1)
    other.weights = one.weights
    x = vectors(2, 12, D)

    assert not torch.equal(one(x), other(x))
    other.state = one.state
    assert torch.equal(one(x), other(x))


def test_rotations_are_normal_and_independent():
    """By moments, of two seeds and within one."""
    a, b = (
        _efficient.rotations_for(torch.tensor(seed), 4, 64, 4, (64, 64)).flatten().double()
        for seed in (2**61 + 1, 2**61 + 2)
    )
    n = len(a)

    for x in (a, b):
        assert abs(x.mean()) < 4 / n**0.5
        assert abs(x.var() - 1) < 4 * (2 / n) ** 0.5
        assert abs((x**4).mean() - 3) < 4 * (96 / n) ** 0.5
    for lag in (1, 64):
        assert abs((a[lag:] * a[:-lag]).mean()) < 4 / n**0.5
    assert abs((a * b).mean()) < 4 / n**0.5
    high, low = torch.tensor([2**40, 2**40 + 2**33])
    assert not torch.equal(*(_efficient.rotations_for(s, 1, 2, 1, (2,)) for s in (high, low)))


def test_vectors_alike_share_a_bucket_and_lengths_do_not_matter():
    rotations = _efficient.rotations_for(torch.tensor(0), 2, 8, 3, (16,))
    x = vectors(2, 500, 8)
    near = x + 0.05 * vectors(2, 500, 8, seed=1)
    far = vectors(2, 500, 8, seed=2)

    buckets, scaled, of_near, of_far = (
        _efficient.buckets_of(v, rotations, (16,)) for v in (x, 7 * x, near, far)
    )

    assert torch.equal(buckets, scaled)
    assert (buckets == of_near).double().mean() > 0.8
    assert (buckets == of_far).double().mean() < 0.1
    assert buckets.unique().tolist() == list(range(16))


def test_buckets_by_default_are_two_a_chunk_in_two_factors_if_many():
    assert _efficient.factors_for(None, 512, 64) == (16,)
    assert _efficient.factors_for(None, 5, 64) == (2,)
    assert _efficient.factors_for(None, 2**16, 64) == (64, 32)


def test_dropout_drops_alike_in_all_rows_and_keeps_the_mean():
    layer = built(SelfAttention(output_dropout=0.5)).train()
    kept = layer(vectors(3, 8, D), rng=0) != 0

    assert torch.equal(kept, kept[:1, :1].expand_as(kept))
    layer = built(LSH(chunk_len=4, attention_dropout=0.3))
    x = vectors(2, 8, D)
    layer.eval()
    want = layer(x).detach()
    layer.train()
    key = layer.hash_key
    with torch.no_grad():
        mean = sum(with_key(layer, key, x, seed) for seed in range(400)) / 400
    assert (mean - want).abs().max() < 0.1 * want.abs().max()


def with_key(layer, key, x, seed):
    """A call while training, with given rotations."""
    choose = layer._buckets
    layer._buckets = lambda x, own, _: choose(x, own, key)
    try:
        return layer(x, rng=seed)
    finally:
        del layer._buckets


@pytest.mark.parametrize("make", [SelfAttention, functools.partial(LSH, chunk_len=4)])
def test_positions_that_see_nothing_attend_evenly(make):
    layer = built(make(masked=True))
    mask = torch.zeros(2, 4, dtype=torch.bool)
    x = vectors(2, 4, D)

    got = layer((x, mask))

    assert torch.isfinite(got).all()
    v = torch.einsum("bld,hdk->bhlk", x, layer.w_v).mean(2)
    want = torch.einsum("bhk,hkd->bd", v, layer.w_o)
    torch.testing.assert_close(got, want[:, None].expand_as(got))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "make",
    [SelfAttention, functools.partial(LSH, chunk_len=4), functools.partial(SelfAttention, True)],
)
def test_half_precision_is_near(make, dtype):
    """Though -1e9 is too low for it."""
    layer = built(make(causal=True, masked=True))
    x, mask = vectors(2, 8, D), masks(2, 8)
    want = layer((x, mask)).detach()

    got = layer.to(dtype)((x.to(dtype), mask))

    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=0.1, atol=0.1)


def test_cross_attention_remembers_the_source_if_it_is_to():
    x, source, mask = vectors(2, 5, D), vectors(2, 7, D, seed=1), masks(2, 7)
    for caches in (False, True):
        layer = built(EncDec(cache_KV_in_predict=caches))
        with torch.no_grad():
            whole = layer((x, source, mask))
            with layer.predict():
                first = layer((x[:, :2], source, mask))
                rest = layer((x[:, 2:], 0 * source if caches else source, mask))

        torch.testing.assert_close(torch.cat([first, rest], 1), whole, rtol=0, atol=1e-10)


def test_masked_cross_attention_of_trax_adds_up_the_source_unseen():
    """What Trax 1.4.1 finds is the sum of all content's values, whatever the scores."""
    name = "EncDecAttention_as_it_is"
    layer = reformers.built(name)
    layer.w_q.data.zero_()
    inputs = reformers.inputs_of(name)

    evenly = layer(inputs).detach()

    n_content = inputs[2].sum(1)[:, None, None]
    figures.assert_close(n_content * evenly, figures.part(name, "out0", reformers.FOLDER), 2e-6)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: SelfAttention(mode="predict"), "needs causal=True and n_chunks_after=0; got ca"),
        (
            lambda: LSH(causal=True, n_chunks_after=1, mode="predict"),
            "needs causal=True and n_chunks_after=0; got causal=True, n_chunks_after=1. Decode in",
        ),
        (lambda: SelfAttention(n_chunks_before=1), "without chunk_len there are none. Give a"),
        (lambda: SelfAttention(chunk_len=0), "chunk_len is at least 1, .*; got chunk_len=0"),
        (
            lambda: SelfAttention(n_parallel_heads=3),
            "a multiple of it .*; got 3 and n_heads=2. None",
        ),
        (
            lambda: SelfAttention(predict_mem_len=2, predict_drop_len=3),
            "0 < predict_drop_len <= predict_mem_len; got 3 and 2",
        ),
        (lambda: LSH(n_buckets=3), "an even number, or .*; got 3. None chooses"),
        (lambda: LSH(n_buckets=[4, 5]), r"an even number, or .*; got \[4, 5\]. None chooses"),
        (lambda: SelfAttention(attention_dropout=1.0), "A dropout rate is at least 0 and below 1"),
        (lambda: SelfAttention(mode="test"), "A mode is one of"),
    ],
)
def test_arguments_out_of_range_are_refused(make, error):
    with pytest.raises(ValueError, match=error):
        make()


def test_a_layer_that_sees_what_is_not_there_yet_is_refused_when_it_predicts():
    layer = built(SelfAttention())
    with (
        layer.predict(),
        pytest.raises(tl.LayerError, match="needs causal=True and n_chunks_after"),
    ):
        layer(vectors(2, 1, D))


@pytest.mark.parametrize(
    ("layer", "inputs", "error"),
    [
        (SelfAttention(masked=True), vectors(2, 4, D), "takes 2 inputs, the mask included; got 1"),
        (
            SelfAttention(masked=True),
            (vectors(2, 4, D), torch.ones(2, 1, 1, 4)),
            r"a mask \(batch, length\) of its keys, here \(2, 4\), .*; got \(2, 1, 1, 4\). tokens",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(layer, inputs, error):
    with pytest.raises(tl.LayerError, match=error):
        built(layer)(inputs)


def test_first_weights_are_drawn_as_if_all_heads_were_one_matrix():
    layer = tl.SelfAttention(8, 16, 32)
    layer.init(shapes.ShapeDtype((1, 4, 64)), rng=0)

    for name, d_head in (("w_q", 16), ("w_k", 16), ("w_v", 32), ("w_o", 32)):
        limit = (6 / (64 + 8 * d_head)) ** 0.5
        w = getattr(layer, name)
        assert w.abs().max() <= limit
        assert abs(w.var() / (limit**2 / 3) - 1) < 0.1
