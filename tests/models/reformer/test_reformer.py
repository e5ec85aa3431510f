"""Reformers: nothing is kept for the backward pass, and predict mode goes on where it was."""

import copy
import functools
import itertools
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trax_torch import layers as tl
from trax_torch import models, optimizers
from trax_torch.supervised import decoding, training
from trax_torch.supervised._generation import engine

VOCAB, LENGTH = 9, 12
LSH = functools.partial(tl.LSHSelfAttention, chunk_len=4, n_hashes=2, n_buckets=4)
CHUNKS = functools.partial(tl.SelfAttention, chunk_len=4, n_chunks_before=1)
SIZES = {"d_model": 8, "d_ff": 12, "n_heads": 2, "max_len": 32}
OF_LM = {**SIZES, "d_attention_key": 4, "d_attention_value": 4}


def lm(attention_type=tl.SelfAttention, n_layers=2, dropout=0.1, **kwargs):
    model = models.ReformerLM(
        VOCAB, n_layers=n_layers, dropout=dropout, attention_type=attention_type, **OF_LM, **kwargs
    )
    model.init(torch.zeros(1, 2, dtype=torch.int64), rng=0)
    return model.double()


def reformer(dropout=0.1, **kwargs):
    model = models.Reformer(
        VOCAB, n_encoder_layers=2, n_decoder_layers=2, dropout=dropout, **SIZES, **kwargs
    )
    tokens = torch.zeros(1, 2, dtype=torch.int64)
    model.init((tokens, tokens), rng=0)
    return model.double()


def tokens_of(*shape, seed=0):
    return torch.randint(1, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def plain(model):
    """The same model, whose reversible layers keep their activations."""
    twin = copy.deepcopy(model)
    for layer in twin.modules():
        if isinstance(layer, tl.Serial):
            layer._runs = ()
    return twin


MODELS = {
    "attention": lm,
    "chunks": functools.partial(lm, CHUNKS),
    "hashing": functools.partial(lm, LSH),
    "in turn": functools.partial(lm, [CHUNKS, LSH], n_layers=4),
    "few heads": functools.partial(lm, functools.partial(tl.SelfAttention, n_parallel_heads=1)),
    "pieces": functools.partial(lm, ff_chunk_size=6, attention_chunk_size=1),
    "with SRUs": functools.partial(lm, ff_use_sru=(1, 8)),
    "transformer's": functools.partial(lm, tl.CausalAttention),
    "two sequences": reformer,
}


@pytest.mark.parametrize("kind", MODELS)
def test_gradients_are_those_of_activations_that_are_kept(kind):
    """To rounding, in double precision; dropout and random rotations are the same."""
    model = MODELS[kind]()
    inputs = tokens_of(2, LENGTH)
    inputs = (inputs, tokens_of(2, 7, seed=1)) if model.n_in == 2 else inputs
    found = []
    for each in (model, plain(model)):
        torch.manual_seed(5)
        outputs = each(inputs)
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        (logits * logits.sin()).sum().backward()
        found.append([logits.detach(), *(p.grad for p in each.parameters())])

    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= 1e-11 * max(1.0, b.abs().max())


def peak_of_kept_bytes(model, tokens):
    """The most bytes that autograd's graphs keep at any time of a step, weights apart."""
    apart = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes, counts, peak = {}, {}, 0

    def let_go(place):
        counts[place] -= 1

    class Kept:
        def __init__(self, tensor):
            self.tensor = tensor

    def pack(tensor):
        nonlocal peak
        place = tensor.untyped_storage().data_ptr()
        kept = Kept(tensor.detach())  # whose graph would hold it, and it the graph
        if place in apart:
            return kept
        sizes[place] = tensor.untyped_storage().nbytes()
        counts[place] = counts.get(place, 0) + 1
        weakref.finalize(kept, let_go, place)
        peak = max(peak, sum(sizes[p] for p, n in counts.items() if n))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        model(tokens).logsumexp(-1).sum().backward()
    return peak


@pytest.mark.parametrize("attention_type", [tl.SelfAttention, LSH])
def test_32_layers_keep_at_most_a_tenth_of_what_activations_take(attention_type):
    """At any time of a step, the backward pass included."""
    model = lm(attention_type, n_layers=32)
    tokens = tokens_of(1, 16)

    assert peak_of_kept_bytes(model, tokens) <= 0.1 * peak_of_kept_bytes(plain(model), tokens)


def test_buckets_are_chosen_once_though_activations_are_computed_again():
    """A vector between two buckets falls into that of the forward pass, rounded as it may be."""
    model = lm(LSH, dropout=0.0).float()
    counts = []
    for layer in model.modules():
        if isinstance(layer, tl.LSHSelfAttention):
            choose = layer._buckets
            layer._buckets = lambda *args, choose=choose: counts.append(1) or choose(*args)

    model(tokens_of(2, LENGTH)).sum().backward()

    assert len(counts) == 2


@pytest.mark.parametrize("kind", ["attention", "chunks", "pieces", "with SRUs", "transformer's"])
@settings(max_examples=8, deadline=None)
@given(parts=st.lists(st.integers(1, LENGTH), max_size=LENGTH))
def test_predicting_equals_evaluating_for_any_cut_of_a_sequence(kind, parts):
    """Eval mode on a sequence shifted by its own ShiftRight = predict mode on its pieces."""
    model = built_once(kind).eval()
    tokens = tokens_of(2, LENGTH)
    seen = torch.cat([torch.zeros(2, 1, dtype=torch.int64), tokens[:, :-1]], dim=1)
    with torch.no_grad():
        whole = model(tokens)
        pieces, at = [], 0
        with model.predict(2, LENGTH):
            for n in [*parts, LENGTH]:
                if at < LENGTH:
                    pieces.append(model(seen[:, at : at + n]))
                at += n

    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-11)


@functools.cache
def built_once(kind):
    return MODELS[kind]()


@pytest.mark.parametrize("how", ["built to predict", "predicting for a while"])
def test_a_reformer_of_two_sequences_predicts_what_it_evaluates(how):
    model = reformer().eval()
    source, target = tokens_of(2, 6), tokens_of(2, 8, seed=1)
    source[1, 4:] = 0
    seen = torch.cat([torch.zeros(2, 1, dtype=torch.int64), target[:, :-1]], dim=1)
    with torch.no_grad():
        whole, _ = model((source, target))
        if how == "built to predict":
            other = reformer(mode="predict")
            other.weights = model.weights
            other.reset_cache()
            pieces = [other((source, part))[0] for part in seen.split([3, 1, 4], 1)]
        else:
            with model.predict(2, 8):
                pieces = [model((source, part))[0] for part in seen.split([3, 1, 4], 1)]

    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", ["attention", "chunks", "hashing"])
def test_rows_with_prompts_of_several_lengths_are_decoded_like_rows_alone(kind):
    """Eval mode gives the same tokens, where hashing does not come in."""
    model = built_once(kind).eval()
    prompt, lengths = tokens_of(3, 5), [5, 3, 4]
    sample = functools.partial(
        decoding.autoregressive_sample,
        model,
        temperature=0.0,
        max_length=7,
        eos_id=-1,
        accelerate=False,
    )
    alone = [sample(prompt[i : i + 1, :n]) for i, n in enumerate(lengths)]

    together = sample(prompt, batch_size=3, prompt_lengths=torch.tensor(lengths))

    assert together.tolist() == torch.cat(alone).tolist()
    if kind != "hashing":
        in_eval_mode = sample(prompt[:1], eval_mode=True)
        assert in_eval_mode.tolist() == alone[0].tolist()


@pytest.mark.parametrize("attention_type", [tl.SelfAttention, LSH])
def test_a_model_without_a_longest_sequence_goes_on_for_ever(attention_type, monkeypatch):
    """Its caches grow; a stream has the tokens of a run whose length is known."""
    model = lm(attention_type, pos_type="no").eval()
    kwargs = {"inputs": tokens_of(1, 3), "temperature": 0.0, "accelerate": False}
    known = decoding.autoregressive_sample(model, max_length=20, eos_id=-1, **kwargs)
    monkeypatch.setattr(engine, "_FIRST_SLOTS", 4)

    stream = decoding.autoregressive_sample_stream(model, **kwargs)

    assert torch.cat(list(itertools.islice(stream, 20)), dim=1).tolist() == known.tolist()


def test_beams_go_on_from_each_others_past():
    """A beam's score is what the model says of its tokens alone."""
    model = lm([CHUNKS, LSH], dropout=0.0).eval()
    prompt = tokens_of(2, 5)

    found, scores = decoding.beam_search(
        model,
        prompt,
        batch_size=2,
        n_beams=3,
        max_length=6,
        eos_id=-1,
        length_penalty=0,
        accelerate=False,
        return_scores=True,
    )

    start = torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        for row in range(2):
            for beam in range(3):
                ids = torch.cat([start, prompt[row], found[row, beam]])
                with model.predict(1, 16):
                    log_probs = model(ids[None, :-1])[0, 5:].log_softmax(-1)
                total = log_probs.gather(-1, found[row, beam][:, None]).sum()
                assert abs(total - scores[row, beam]) < 1e-5


def copy_task(rng, n=16):
    """(w, w) after a 0: the second half can be foretold."""
    while True:
        half = rng.integers(1, 8, (n, 5))
        zeros = np.zeros((n, 1), np.int64)
        tokens = np.concatenate([zeros, half, zeros, half], 1)
        weights = np.concatenate([np.zeros((n, 7)), np.ones((n, 5))], 1).astype(np.float32)
        yield tokens, tokens, weights


@pytest.mark.slow
@pytest.mark.parametrize("attention_type", [tl.SelfAttention, functools.partial(LSH, chunk_len=8)])
def test_a_small_language_model_learns_to_copy(attention_type):
    model = models.ReformerLM(
        8,
        d_model=32,
        d_ff=64,
        d_attention_key=16,
        d_attention_value=16,
        n_layers=2,
        n_heads=2,
        dropout=0.0,
        max_len=16,
        attention_type=attention_type,
    )
    task = training.TrainTask(
        copy_task(np.random.default_rng(0)),
        tl.WeightedCategoryCrossEntropy(),
        optimizers.Adam(0.01),
        n_steps_per_checkpoint=10_000,
    )
    loop = training.Loop(model, [task], output_dir=None, random_seed=0)

    loop.run(250)

    tokens, *_ = next(copy_task(np.random.default_rng(2), 4))
    copied = decoding.autoregressive_sample(
        loop.model,
        inputs=tokens[:, :7],
        batch_size=4,
        temperature=0.0,
        max_length=5,
        eos_id=-1,
        accelerate=False,
    )
    assert np.mean(np.asarray(copied) == tokens[:, 1:6]) > 0.9


def test_a_shortened_model_sees_nothing_of_what_it_foretells():
    """Nor of what comes after; and it sees what comes before."""
    model = models.ReformerShortenLM(VOCAB, 3, 8, n_layers=2, dropout=0.0, **OF_LM)
    tokens = tokens_of(1, 12)
    model.init(tokens, rng=0)
    model.double().eval()
    for place in range(12):
        other = tokens.clone()
        other[:, place] = other[:, place] % (VOCAB - 1) + 1

        changed = (model(tokens) - model(other)).abs().amax((0, 2)) > 0

        assert not changed[: place + 1].any()
        assert place == 11 or changed[place + 1 :].any()


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: lm([LSH, CHUNKS], n_layers=3), "divides n_layers; got 2 types for 3 layers"),
        (lambda: lm(ff_sparsity=4), "sparse layers are not built here, so ff_sparsity is 0; got 4"),
        (lambda: lm(loss_sparsity=4), "so loss_sparsity is 0; got 4. Leave it out"),
        (lambda: lm(loss_sparsity_prob=0.5), "so loss_sparsity_prob is 0; got 0.5"),
        (lambda: lm(pos_type="infinite"), "pos_type is .*; got 'infinite', which is not built"),
        (
            lambda: models.ReformerShortenLM(VOCAB, 2, mode="predict"),
            "cannot go on from one to the next; got mode='predict'. Decode in eval mode",
        ),
        (lambda: models.Reformer(None), "output_vocab_size, or input_vocab_size .*; got neither"),
    ],
)
def test_what_is_not_built_is_refused(make, error):
    with pytest.raises(ValueError, match=error):
        make()


def test_a_length_that_cannot_be_shortened_is_refused():
    model = models.ReformerShortenLM(VOCAB, 3, 8, n_layers=1, **OF_LM)
    with pytest.raises(tl.LayerError, match="multiples of shorten_factor=3; got 7 positions. Pad"):
        model.init(tokens_of(1, 7))


def test_models_lie_where_trax_has_them():
    from trax_torch.models import reformer as package
    from trax_torch.models.reformer import reformer as module

    assert package.ReformerLM is module.ReformerLM is models.ReformerLM
    assert module.DecoderBlock is package.DecoderBlock


def test_a_saved_reformer_computes_the_same(tmp_path):
    model, other = (
        lm([CHUNKS, LSH]),
        models.ReformerLM(VOCAB, n_layers=2, attention_type=[CHUNKS, LSH], **OF_LM),
    )
    model.save_to_file(str(tmp_path / "model.safetensors"))

    other.init_from_file(str(tmp_path / "model.safetensors"))

    tokens = tokens_of(2, LENGTH)
    assert torch.equal(other.double().eval()(tokens), model.eval()(tokens))
