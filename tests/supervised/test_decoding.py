"""Decoding makes the same tokens in either mode, row by row, in each call and in a stream."""

import itertools

import pytest
import torch
from decoders import PROMPTS, VOCAB, recurrent, sample
from hypothesis import given, settings
from hypothesis import strategies as st

from trax_torch import layers as tl
from trax_torch import models
from trax_torch.supervised import decoding


def test_eval_mode_makes_the_same_tokens_as_predict_mode(model):
    """At temperature 0, and at 1 for the same seeds."""
    for temperature in (0.0, 1.0):
        chosen = {"inputs": PROMPTS, "temperature": temperature, "seed": 5}
        fast, slow = sample(model, **chosen), sample(model, **chosen, eval_mode=True)

        assert torch.equal(fast, slow)
    assert torch.equal(fast, sample(model, **chosen, eval_mode=True, eval_min_length=32))


def test_a_row_does_not_depend_on_the_rows_beside_it(model):
    """A batch equals each row alone, for seeds per row."""
    batch = sample(model, inputs=PROMPTS, temperature=1.0, seed=[7, 8, 9])
    alone = [
        sample(model, inputs=PROMPTS[i : i + 1], temperature=1.0, seed=[7 + i], batch_size=1)
        for i in range(3)
    ]

    assert torch.equal(batch, torch.cat(alone))


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "SRU"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_of_a_recurrent_model_does_not_depend_on_the_rows_beside_it(kind, temperature):
    model = recurrent(getattr(tl, kind)(8))
    settings = {"temperature": temperature, "max_length": 15}

    together = sample(model, inputs=PROMPTS, seed=[7, 8, 9], **settings)

    for i in range(3):
        alone = sample(model, inputs=PROMPTS[[i]], seed=[7 + i], batch_size=1, **settings)
        assert together[i].tolist() == alone[0].tolist()


def test_each_call_starts_afresh_and_leaves_the_model_as_it_was(model):
    model.train()
    first, second = sample(model, inputs=PROMPTS), sample(model, inputs=PROMPTS)

    assert torch.equal(first, second)
    assert model.training
    assert model.sublayers[0].mode == "train"


def test_a_prefix_in_one_pass_equals_a_prefix_by_single_steps(model):
    with torch.no_grad(), model.predict(3, 16):
        symbols = torch.cat([torch.zeros(3, 1, dtype=torch.int64), PROMPTS], dim=1)
        for i in range(symbols.shape[1]):
            logits = model(symbols[:, i : i + 1])
        tokens = []
        for _ in range(10):
            tokens.append(logits[:, -1].argmax(-1, keepdim=True))
            logits = model(tokens[-1])

    assert torch.equal(torch.cat(tokens, dim=1), sample(model, inputs=PROMPTS))


def test_the_stream_yields_one_position_after_another_without_end(model):
    stream = decoding.autoregressive_sample_stream(model, PROMPTS, 3, temperature=0.0)
    taken = list(itertools.islice(stream, 10))

    assert all(t.shape == (3, 1) and t.dtype == torch.int64 for t in taken)
    assert torch.equal(torch.cat(taken, dim=1), sample(model, inputs=PROMPTS))
    assert model.sublayers[0].mode != "predict"


def test_what_follows_the_end_symbol_is_padding(model):
    """The end is kept, the row is padded, and the batch stops when all have ended."""
    free = sample(model, inputs=PROMPTS, max_length=20)
    eos = int(free[0, 3])
    ended = sample(model, inputs=PROMPTS, max_length=20, eos_id=eos, pad_id=-7)

    for row, full in zip(ended.tolist(), free.tolist(), strict=True):
        if eos in full:
            end = full.index(eos)
            assert row[: end + 1] == full[: end + 1]
            assert set(row[end + 1 :]) <= {-7}
        else:
            assert row == full[: len(row)]
    solo = sample(model, inputs=PROMPTS[:1], batch_size=1, max_length=20, eos_id=eos)
    assert solo.shape == (1, free[0].tolist().index(eos) + 1)


def test_eval_mode_stays_within_a_models_length():
    """Padding to a power of two goes no further than there will be tokens."""
    model = models.TransformerLM(VOCAB, 8, 8, 1, 2, max_len=12)
    model.init(torch.zeros(1, 1, dtype=torch.int64), rng=0)
    settings = {"batch_size": 1, "max_length": 12}

    assert torch.equal(sample(model, **settings), sample(model, eval_mode=True, **settings))


def test_an_end_at_the_first_position_ends_a_row_there(model):
    """The end symbol is the result, others go on; and where all end, all is over."""
    first = sample(model, inputs=PROMPTS, max_length=1)
    eos = int(first[1])

    tokens = sample(model, inputs=PROMPTS, eos_id=eos, pad_id=-5)

    assert tokens[1, 0] == eos
    assert set(tokens[1, 1:].tolist()) <= {-5}
    solo = sample(model, inputs=PROMPTS[1:2], batch_size=1, eos_id=eos)
    assert solo.tolist() == [[eos]]
    twice = sample(model, inputs=PROMPTS[[1, 1]], batch_size=2, eos_id=eos)
    assert twice.tolist() == [[eos], [eos]]
    assert first.shape == (3, 1)


def test_only_the_last_position_of_a_prompt_goes_through_the_last_layers(model):
    """The logits of the others would be most of a prompt's work, and nobody wants them."""
    sizes = []
    hook = model.sublayers[-1].register_forward_hook(lambda m, x, y: sizes.append(y.shape[1]))

    sample(model, inputs=PROMPTS, max_length=3)
    hook.remove()

    assert sizes == [1, 1, 1]
    assert not model.sublayers[-2]._forward_pre_hooks


@settings(max_examples=25, deadline=None)
@given(n=st.integers(0, 9), batch=st.integers(1, 4), seed=st.integers(0, 1000))
def test_predict_mode_equals_eval_mode_for_any_prompts(model, n, batch, seed):
    prompts = torch.randint(VOCAB, (batch, n), generator=torch.Generator().manual_seed(seed))
    chosen = {"inputs": prompts, "batch_size": batch, "temperature": 0.5, "seed": seed}

    assert torch.equal(sample(model, **chosen), sample(model, **chosen, eval_mode=True))


def test_without_a_seed_torchs_generator_decides(model):
    def draw(seed):
        torch.manual_seed(seed)
        return sample(model, temperature=1.0, max_length=20)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_eval_mode_leaves_the_memories_of_a_model_that_predicts_alone(model):
    expected = sample(model, inputs=PROMPTS)

    with model.predict(3, 20):
        for _ in range(2):
            assert torch.equal(sample(model, inputs=PROMPTS, eval_mode=True), expected)
        assert [m.filled for m in model._memories()] == [0, 0, 0]
        model(PROMPTS)
        assert [m.filled for m in model._memories()] == [3, 3, 3]


def test_a_stream_ends_after_max_length_tokens(model):
    """Also of a model that has room for more, or for any number."""
    for one in (model, recurrent(tl.GRU(8))):
        stream = decoding.autoregressive_sample_stream(one, temperature=0.0, max_length=3)
        assert len(list(stream)) == 3


def test_eval_mode_pads_to_its_shortest_length_whatever_max_length_is(model):
    lengths = []
    hook = model.register_forward_pre_hook(lambda m, x: lengths.append(x[0].shape[1]))
    sample(model, eval_mode=True, eval_min_length=32)
    hook.remove()

    assert set(lengths) == {32}
