"""Attention, masks, and positions."""

import copy
import pickle

import figures
import numpy as np
import pytest
import torch

from trax_torch import layers as tl
from trax_torch import shapes


def attend_by_the_book(q, k, v, visible):
    """Softmax of the scores over sqrt(d), where what is not visible scores -1e9; in float64."""
    q, k, v = (t.double() for t in (q, k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    scores = torch.where(visible, scores, torch.full_like(scores, -1e9))
    return scores.softmax(dim=-1) @ v


def heads(n, d=8, batch=2):
    return torch.randn(batch, 3, n, d)


@pytest.fixture(autouse=True)
def _afresh():
    """Draws the same numbers whatever ran before, and counts no recompilation of other tests."""
    torch.manual_seed(0)
    torch.compiler.reset()


# Scores and masks.


@pytest.mark.parametrize("rows", [1, 4], ids=["a row for all queries", "a row for each query"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_attention_sees_where_the_mask_is_not_0(dtype, rows):
    q, k, v = heads(4), heads(6), heads(6)
    visible = torch.rand(2, 1, rows, 6) < 0.5
    visible[..., 0] = True
    mask = visible.to(dtype) * (1 if dtype == torch.bool else -3)

    found = tl.DotProductAttention()((q, k, v, mask.to(dtype)))

    torch.testing.assert_close(found, attend_by_the_book(q, k, v, visible).float())


def test_attention_without_a_mask_sees_all():
    q, k, v = heads(4), heads(6), heads(6)

    found = tl.DotProductAttention()((q, k, v, None))

    everything = torch.ones(1, dtype=torch.bool)
    torch.testing.assert_close(found, attend_by_the_book(q, k, v, everything).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 4])
def test_a_query_that_sees_nothing_attends_evenly(dtype, rows):
    """However large the scores are: -1e9 is one number, and half precision does not have it."""
    q, k, v = (100 * heads(4)).to(dtype), heads(6).to(dtype), heads(6).to(dtype)
    visible = torch.ones(2, 1, rows, 6, dtype=torch.bool)
    visible[1, 0, 0] = False

    found = tl.DotProductAttention()((q, k, v, visible))

    even = v[1].float().mean(dim=-2)
    torch.testing.assert_close(found[1, :, 0].float(), even, rtol=1e-2, atol=1e-2)
    assert found.isfinite().all()


def test_a_query_that_sees_nothing_has_the_gradients_of_the_book():
    tensors = [t.requires_grad_() for t in (heads(4), heads(6), heads(6))]
    visible = torch.ones(2, 1, 4, 6, dtype=torch.bool)
    visible[1, 0, 1:3] = False
    visible[0, 0, :, 3:] = False
    weights = torch.randn(2, 3, 4, 8)

    (tl.DotProductAttention()((*tensors, visible)) * weights).sum().backward()
    got = [t.grad for t in tensors]
    for t in tensors:
        t.grad = None
    (attend_by_the_book(*tensors, visible) * weights).sum().backward()

    for g, t in zip(got, tensors, strict=True):
        torch.testing.assert_close(g, t.grad, rtol=1e-4, atol=1e-5)


def test_pure_attention_splits_heads_and_gives_the_mask_back():
    q, k, v = torch.randn(2, 4, 8), torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    mask = torch.ones(2, 1, 1, 6)
    split = tl.SplitIntoHeads(2, merged_batch_and_head=False)
    merge = tl.MergeHeads(2, merged_batch_and_head=False)

    found, same = tl.PureAttention(n_heads=2)((q, k, v, mask))

    assert same is mask
    by_hand = tl.DotProductAttention()((split(q), split(k), split(v), mask))
    torch.testing.assert_close(found, merge(by_hand))


@pytest.mark.parametrize("make", [tl.PureAttention, tl.DotProductAttention])
def test_attention_drops_weights_while_training_alone(make):
    n_heads_axis = () if make is tl.PureAttention else (1,)
    q = torch.randn(2, *n_heads_axis, 6, 8)
    inputs = (q, q, q, torch.ones(2, 1, 1, 6))
    layer = make(dropout=0.5)

    def first(outputs):
        return outputs[0] if isinstance(outputs, tuple) else outputs

    assert not torch.equal(first(layer(inputs, rng=1)), first(layer(inputs, rng=2)))
    layer.eval()
    assert torch.equal(first(layer(inputs)), first(make(mode="eval")(inputs)))


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [("Attention", {"n_heads": 2}), ("AttentionQKV", {"n_heads": 4, "cache_KV_in_predict": True})],
)
def test_attention_has_the_gradients_of_trax(name, kwargs):
    """Relative to the largest gradient: the key's bias has none but rounding errors."""
    case = {"Attention": "layer_6_Attention", "AttentionQKV": "layer_7_AttentionQKV"}[name]
    layer = getattr(tl, name)(8, mode="eval", **kwargs)
    inputs = tuple(map(torch.from_numpy, figures.parts(case, "in")))
    layer.init(shapes.signature(inputs))
    figures.set_flat_weights(layer, figures.parts(case, "w"))

    outputs, _ = layer(inputs)
    (outputs * torch.from_numpy(figures.part(case, "c0"))).sum().backward()

    figures.assert_close(outputs.detach(), figures.part(case, "out0"))
    want = figures.parts(case, "grad")
    largest = max(np.abs(w).max() for w in want)
    for g, w in zip(figures.flat_gradients(layer), want, strict=True):
        np.testing.assert_allclose(g / largest, w / largest, atol=1e-5)


def test_attention_prints_as_in_trax():
    assert str(tl.Attention(4)) == (
        "Serial_in2_out2[\n"
        "  Select[0,0,0]_out3\n"
        "  Serial_in4_out2[\n"
        "    Parallel_in3_out3[\n"
        "      Dense_4\n"
        "      Dense_4\n"
        "      Dense_4\n"
        "    ]\n"
        "    PureAttention_in4_out2\n"
        "    Dense_4\n"
        "  ]\n"
        "]"
    )
    assert str(tl.PaddingMask(7)) == "PaddingMask(7)"
    assert str(tl.EncoderDecoderMask()) == "EncoderDecoderMask_in2"


def test_a_mask_for_another_number_of_keys_is_refused():
    q = torch.randn(2, 6, 8)
    with pytest.raises(tl.LayerError, match=r"6 queries and 6 keys .*shape \(2, 1, 1, 5\)"):
        tl.PureAttention()((q, q, q, torch.ones(2, 1, 1, 5)))
    with pytest.raises(tl.LayerError, match=r"6 queries and 6 keys .*shape \(2, 1, 4, 6\)"):
        tl.PureAttention()((q, q, q, torch.ones(2, 1, 4, 6)))


# Queries, keys and values from where you like.


def test_a_layer_without_its_own_dense_takes_queries_and_results_as_they_are():
    layer = tl.AttentionQKV(8, n_heads=2, q_sparsity="noop", result_sparsity="noop")
    x = torch.randn(2, 5, 8), torch.randn(2, 6, 3), torch.randn(2, 6, 3), torch.ones(2, 1, 1, 6)
    layer.init(shapes.signature(x))
    key, value = layer.sublayers[0].sublayers[1:]

    found, _ = layer(x)

    torch.testing.assert_close(found, tl.PureAttention(2)((x[0], key(x[1]), value(x[2]), x[3]))[0])
    assert len(list(layer.parameters())) == 4


@pytest.mark.parametrize("name", ["q_sparsity", "result_sparsity"])
def test_sparse_layers_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is None, .* or 'noop', for none; got 4"):
        tl.AttentionQKV(8, **{name: 4})


@pytest.mark.parametrize("make", [tl.Attention, tl.AttentionQKV, tl.CausalAttention])
def test_heads_that_do_not_divide_the_vectors_are_refused(make):
    with pytest.raises(ValueError, match="d_feature=8 and n_heads=3"):
        make(8, n_heads=3)


@pytest.mark.parametrize(
    "make", [tl.PureAttention, tl.DotProductAttention, tl.DotProductCausalAttention]
)
def test_a_dropout_rate_out_of_range_is_refused(make):
    with pytest.raises(ValueError, match=r"at least 0 and below 1; got 1.0"):
        make(dropout=1.0)


@pytest.mark.parametrize("mode", ["train", "predict"])
def test_keys_and_values_are_kept_in_predict_mode(mode):
    """From the second call on they are those of the first; the mask and the queries are new."""
    layer = tl.AttentionQKV(8, n_heads=2, mode=mode, cache_KV_in_predict=True)
    source, other = torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    queries, mask = torch.randn(2, 2, 8), torch.ones(2, 1, 1, 6)
    layer.init(shapes.signature((queries, source, source, mask)))
    fresh = tl.AttentionQKV(8, n_heads=2, mode="eval")
    fresh.init(shapes.signature((queries, source, source, mask)))
    fresh.weights = tl.unflatten_weights_and_state(
        tl.flatten_weights_and_state(layer.weights, ())[0], [], (fresh.weights, ())
    )[0]
    want = fresh((queries, source, source, mask))[0]

    with layer.predict():
        layer((torch.randn(2, 3, 8), source, source, mask))
        kept, _ = layer((queries, other, other, mask))
        for part in layer.modules():
            if isinstance(part, tl.Layer):
                part.reset_cache()
        anew, _ = layer((queries, other, other, mask))

    torch.testing.assert_close(kept, want)
    torch.testing.assert_close(anew, fresh((queries, other, other, mask))[0])


def test_keys_and_values_are_not_kept_unless_asked():
    layer = tl.AttentionQKV(8, mode="predict")
    source, mask = torch.randn(2, 6, 8), torch.ones(2, 1, 1, 6)
    layer.init(shapes.signature((source, source, source, mask)))
    first, _ = layer((source, source, source, mask))

    second, _ = layer((source, 2 * source, source, mask))

    assert not torch.allclose(first, second)


# Masks made of tokens.


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_padding_mask_marks_what_is_not_padding(dtype):
    tokens = np.array([[5, 0, 3, 0], [0, 0, 1, 1]], dtype=dtype)

    mask = tl.PaddingMask()(tokens)

    assert mask.dtype == bool
    assert mask.tolist() == [[[[True, False, True, False]]], [[[False, False, True, True]]]]
    assert tl.PaddingMask(pad=5)(tokens)[0].tolist() == [[[False, True, True, True]]]


def test_padding_mask_refuses_vectors():
    with pytest.raises(
        tl.LayerError, match=r"\(batch, length\); got a tensor of shape \(2, 3, 4\)"
    ):
        tl.PaddingMask()(np.ones((2, 3, 4)))


@pytest.mark.parametrize("dtype", [bool, np.int32, np.float32])
def test_encoder_decoder_mask_has_a_row_for_each_position_of_the_target(dtype):
    mask = np.array([[[[1, 0, 1, 0]]], [[[0, 0, 1, 1]]]], dtype=dtype)

    rows = tl.EncoderDecoderMask()((np.ones((2, 3, 8)), mask))

    assert rows.dtype == dtype
    np.testing.assert_array_equal(rows, np.broadcast_to(mask, (2, 1, 3, 4)))


def test_encoder_decoder_mask_refuses_tokens():
    with pytest.raises(tl.LayerError, match=r"got vectors of shape \(2, 3\). Put it after"):
        tl.EncoderDecoderMask()((np.ones((2, 3)), np.ones((2, 1, 1, 4))))


# Positions.


def test_shift_right_moves_by_positions_and_fills_with_zeros():
    x = np.array([[[9.0], [8.0], [7.0]]])

    assert tl.ShiftRight()(x).ravel().tolist() == [0, 9, 8]
    assert tl.ShiftRight(2, mode="eval")(x).ravel().tolist() == [0, 0, 9]
    assert tl.ShiftRight(5)(x).ravel().tolist() == [0, 0, 0]
    assert tl.ShiftRight(mode="predict")(x).ravel().tolist() == [9, 8, 7]


@pytest.mark.parametrize("d_feature", [None, 4])
def test_positions_in_predict_mode_go_on_from_call_to_call(d_feature):
    x = np.random.default_rng(0).normal(size=(2, 4, 2))
    layer = tl.PositionalEncoding(max_len=8, d_feature=d_feature)
    layer.init(shapes.signature(x))
    layer.double()
    want = layer(x)

    with layer.predict(2, 4):
        found = [layer(x[:, :1]), layer(x[:, 1:3]), layer(x[:, 3:])]

    np.testing.assert_allclose(np.concatenate(found, axis=1), want, rtol=0, atol=1e-14)


@pytest.mark.parametrize("mode", ["train", "predict"])
def test_positions_that_are_not_stepwise_start_anew_in_each_call(mode):
    layer = tl.PositionalEncoding(max_len=8, mode=mode, stepwise=False)
    layer.init(shapes.ShapeDtype((2, 6, 4)))
    x = torch.randn(2, 6, 4)

    with layer.predict(2, max_length=3):
        first, second = layer(x), layer(x)

    assert torch.equal(first, second)
    assert torch.equal(first, layer(x))


def test_positions_beyond_the_table_are_refused():
    layer = tl.PositionalEncoding(max_len=4)
    layer.init(shapes.ShapeDtype((2, 3, 4)))

    with pytest.raises(tl.LayerError, match=r"5 positions came, .* max_len=4. Cut the sequences"):
        layer(torch.zeros(2, 5, 4))
    with pytest.raises(tl.LayerError, match="room for 4 positions; 0 are"), layer.predict():
        layer(torch.zeros(2, 5, 4))


def test_positions_start_at_random_offsets_while_training():
    layer = tl.PositionalEncoding(max_len=9, start_from_zero_prob=0.5, max_offset_to_add=4)
    layer.init(shapes.ShapeDtype((1, 5, 4)))
    x, table = torch.zeros(1, 5, 4), layer.weights
    possible = [table[start : start + 5] for start in range(4)]

    def start_of(marks):
        return next(i for i, p in enumerate(possible) if torch.equal(marks, p))

    starts = [start_of(layer(x)[0]) for _ in range(200)]
    compiled = torch.compile(layer, backend="eager", fullgraph=True)

    assert set(starts) == {0, 1, 2, 3}
    assert starts.count(0) > 90  # half of the time, and by chance
    assert start_of(compiled(x)[0]) in range(4)
    layer.eval()
    assert start_of(layer(x)[0]) == 0


def test_random_offsets_beyond_the_table_are_refused():
    layer = tl.PositionalEncoding(max_len=8, start_from_zero_prob=0.5, max_offset_to_add=4)

    with pytest.raises(tl.LayerError, match="need a max_len of at least 9; got 8"):
        tl.Serial(layer, tl.Dense(2)).init(shapes.ShapeDtype((1, 5, 4)))


# What all of them obey.


def cases():
    x, source = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])[:, None, None]
    return {
        "Attention": (tl.Attention(8, 2), (source, mask)),
        "AttentionQKV": (
            tl.AttentionQKV(8, 2, cache_KV_in_predict=True),
            (x, source, source, mask),
        ),
        "PureAttention": (tl.PureAttention(2), (x, source, source, mask)),
        "DotProductAttention": (tl.DotProductAttention(), (x, source, source, mask[:, 0])),
        "EncoderDecoderMask": (tl.EncoderDecoderMask(), (x, mask)),
        "PositionalEncoding": (tl.PositionalEncoding(max_len=9, d_feature=4), x),
    }


@pytest.mark.parametrize("name", list(cases()))
def test_a_layer_copies_pickles_compiles_and_plays_with_arrays(name):
    layer, x = cases()[name]
    layer.init(shapes.signature(x))
    bare = name == "PositionalEncoding"

    def first(outputs):
        return outputs[0] if isinstance(outputs, tuple) else outputs

    want = first(layer(x))

    twins = [
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.compile(layer, backend="eager", fullgraph=True),
    ]
    for twin in twins:
        torch.testing.assert_close(first(twin(x)), want)
    played = first(layer(x.numpy() if bare else tuple(t.numpy() for t in x)))
    np.testing.assert_allclose(played, want.detach(), rtol=1e-6)


@pytest.mark.parametrize("name", ["Attention", "AttentionQKV", "PositionalEncoding"])
def test_gradients_reach_every_weight(name):
    layer, x = cases()[name]
    layer.init(shapes.signature(x))

    outputs = layer(x)
    (outputs[0] if isinstance(outputs, tuple) else outputs).square().sum().backward()

    assert all(p.grad is not None and p.grad.any() for p in layer.parameters())
