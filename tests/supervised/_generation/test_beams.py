"""Beam search: Trax's figures, and agreement with brute force."""

import functools
import itertools

import figures
import numpy as np
import pytest
import torch
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from trax_torch import layers as tl
from trax_torch import models, shapes
from trax_torch.layers._predict import kv_cache
from trax_torch.supervised import decoding
from trax_torch.supervised._generation.beams import best_continuations
from trax_torch.supervised._generation.nan_check import NanCheck

VOCAB = 4


def filled(case):
    info = figures.case(case)
    model = getattr(models, info["model"])(**info["kwargs"])
    sig = shapes.ShapeDtype((1, 3), np.int32)
    model.init(sig if model.n_in == 1 else (sig, sig))
    figures.set_flat_weights(model, figures.parts(info["weights_of"], "w"))
    return model


@pytest.mark.parametrize(
    ("case", "inputs", "n_beams"),
    [
        ("decode_TransformerLM", "beam_inputs", 1),
        ("decode_TransformerLM", "beam_inputs", 2),
        ("decode_TransformerLM", "beam_inputs", 4),
        ("decode_Transformer", "inputs", 3),
    ],
)
def test_beams_are_those_of_trax(case, inputs, n_beams):
    """Without end symbol and length penalty, tokens and sums of log-probabilities equal Trax's."""
    tokens, log_probs = (
        figures.part(case, f"beam{n_beams}_{part}") for part in ("tokens", "logprobs")
    )

    found, scores = decoding.beam_search(
        filled(case),
        figures.part(case, inputs),
        n_beams=n_beams,
        eos_id=-1,
        length_penalty=0,
        max_length=tokens.shape[1],
        return_scores=True,
    )

    assert found[0].tolist() == tokens.tolist()
    figures.assert_close(scores[0], log_probs)


def test_an_encoder_decoder_is_decoded_as_in_trax():
    """Greedy tokens of Transformer, with and without an end symbol."""
    case = "decode_Transformer"
    settings = {"inputs": figures.part(case, "inputs"), "temperature": 0.0}

    for part, eos_id in (("greedy", -1), ("greedy_eos1", 1)):
        want = figures.part(case, part)
        found = decoding.autoregressive_sample(
            filled(case), eos_id=eos_id, max_length=want.shape[1], **settings
        )
        assert found.tolist() == want.tolist()


@pytest.fixture(scope="module")
def model():
    model = models.TransformerLM(VOCAB, d_model=8, d_ff=8, n_layers=1, n_heads=2, max_len=16)
    model.init(torch.zeros(1, 1, dtype=torch.int64), rng=3)
    for p in model.parameters():
        p.data *= 2.5
    return model.double().eval()


def log_probs_of(model, prefix, sequence):
    """The log-probability of each token of a sequence after a prefix, in eval mode."""
    tokens = torch.tensor([[*prefix, *sequence]])
    with torch.no_grad():
        log_probs = torch.log_softmax(model(tokens)[0], dim=-1)
    return [float(log_probs[len(prefix) + i, t]) for i, t in enumerate(sequence)]


def by_brute_force(model, prefix, n, eos_id, alpha, length):
    """The best n hypotheses of all."""
    found = {}
    for sequence in itertools.product(range(VOCAB), repeat=length):
        if eos_id in sequence:
            sequence = sequence[: sequence.index(eos_id) + 1]
        if sequence not in found:
            score = sum(log_probs_of(model, prefix, sequence))
            found[sequence] = score / ((5 + len(sequence)) / 6) ** alpha
    best = sorted(found.items(), key=lambda item: -item[1])[:n]
    return [list(s) + [0] * (length - len(s)) for s, _ in best], [score for _, score in best]


@pytest.mark.parametrize("eos_id", [-1, 1, 2])
@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.5])
def test_enough_beams_find_what_brute_force_finds(model, eos_id, alpha):
    """With as many beams as there are sequences, the best are the best of all, scores included."""
    prefix, length, n = [3, 0, 2], 3, VOCAB**3
    want, want_scores = by_brute_force(model, prefix, n, eos_id, alpha, length)

    found, scores = decoding.beam_search(
        model,
        [prefix],
        n_beams=n,
        eos_id=eos_id,
        length_penalty=alpha,
        max_length=length,
        return_scores=True,
    )

    assert found[0, : len(want)].tolist() == want
    assert scores[0, : len(want)].tolist() == pytest.approx(want_scores, rel=1e-6)
    assert bool((scores[0, len(want) :] == -torch.inf).all())
    assert bool((found[0, len(want) :] == 0).all())


def test_one_beam_is_greedy(model):
    greedy = decoding.autoregressive_sample(
        model, [[3, 2]], temperature=0.0, eos_id=-1, max_length=10
    )
    beams = decoding.beam_search(model, [[3, 2]], n_beams=1, eos_id=-1, max_length=10)

    assert beams[:, 0].tolist() == greedy.tolist()


@pytest.mark.parametrize("eos_id", [-1, 1, 2])
def test_a_row_of_beams_does_not_depend_on_the_rows_beside_it(model, eos_id):
    prompts = torch.tensor([[1, 2], [3, 3], [2, 0]])
    settings = {"n_beams": 3, "eos_id": eos_id, "max_length": 8, "return_scores": True}
    together, scores = decoding.beam_search(model, prompts, batch_size=3, **settings)

    for i in range(3):
        alone, score = decoding.beam_search(model, prompts[i : i + 1], **settings)
        length = alone.shape[-1]
        assert together[i, :, :length].tolist() == alone[0].tolist()
        assert bool((together[i, :, length:] == 0).all())
        assert torch.allclose(scores[i], score[0], rtol=1e-6, atol=0)


def test_recurrent_models_are_searched_too():
    """Layers with a small recurrent state gather it: beams equal brute force."""
    model = models.GRULM(VOCAB, d_model=8, n_layers=1, mode="eval")
    model.init(torch.zeros(1, 1, dtype=torch.int64), rng=2)
    for p in model.parameters():
        p.data *= 3
    model.double()
    want, want_scores = by_brute_force(model, [2], 5, 1, 0.0, 3)

    found, scores = decoding.beam_search(
        model, [[2]], n_beams=64, eos_id=1, length_penalty=0.0, max_length=3, return_scores=True
    )

    assert found[0, :5].tolist() == want
    assert scores[0, :5].tolist() == pytest.approx(want_scores, rel=1e-6)


def simple_search(model, inputs, n_beams, eos_id, max_length, alpha, early_stopping=False):
    """The same search in lists, row by row, asking the model in eval mode: the oracle."""
    results = []
    for row in inputs.tolist():
        prefix, source = (row, None) if model.n_in == 1 else ([], torch.tensor([row]))
        living, finished, is_done = [(0.0, [])], [], False
        for n in range(1, max_length + 1):
            candidates = []
            for beam, (score, tokens) in enumerate(living):
                whole = torch.tensor([[*prefix, *tokens, 0]])
                with torch.no_grad():
                    logits = model(whole) if source is None else model((source, whole))[0]
                log_probs = torch.log_softmax(logits[0, len(prefix) + n - 1], -1).tolist()
                candidates += [(-score - p, beam, t) for t, p in enumerate(log_probs)]
            before, living = living, []
            for place, (minus, beam, token) in enumerate(sorted(candidates)[: 2 * n_beams]):
                grown = -minus, [*before[beam][1], token]
                if token != eos_id:
                    living.append(grown)
                elif place < n_beams:
                    finished.append((-minus / ((5 + n) / 6) ** alpha, grown[1]))
            living = living[:n_beams]
            finished = sorted(finished, key=lambda h: -h[0])[:n_beams]
            longest = max_length if alpha > 0 else min(n + 1, max_length)
            reach = living[0][0] / ((5 + longest) / 6) ** alpha
            full = len(finished) == n_beams
            if full and (early_stopping or finished[-1][0] >= reach):
                is_done = True
                break
        if not is_done:
            finished += [(s / ((5 + n) / 6) ** alpha, tokens) for s, tokens in living]
        results.append(sorted(finished, key=lambda h: -h[0])[:n_beams])
    length = max(len(tokens) for row in results for _, tokens in row)
    return (
        [[tokens + [0] * (length - len(tokens)) for _, tokens in row] for row in results],
        torch.tensor([[score for score, _ in row] for row in results]),
    )


def made(name, vocab=5):
    """A small model of a kind, whose beams differ though nobody trained it."""
    if name == "encoder-decoder":
        model = models.Transformer(vocab, None, 8, 8, 1, 1, 2, max_len=16)
    elif name == "seq2seq":
        model = models.LSTMSeq2SeqAttn(vocab, vocab, 8, 1, 1)
    elif name == "attention":
        model = models.TransformerLM(vocab, 8, 8, 1, 2, max_len=16)
    elif name == "RNNLM":
        model = models.RNNLM(vocab, 8, 2)
    else:
        cell = getattr(tl, name)(8)
        model = tl.Serial(tl.ShiftRight(), tl.Embedding(vocab, 8), cell, tl.Dense(vocab))
    one = torch.ones(1, 2, dtype=torch.int64)
    model.init(one if model.n_in == 1 else (one, one), rng=5)
    for p in model.parameters():
        p.data *= 2.5
    return model.double().eval()


KINDS = ["attention", "GRU", "LSTM", "SRU", "RNNLM", "encoder-decoder", "seq2seq"]
MODELS = functools.cache(made)


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    n_beams=st.integers(1, 5),
    eos_id=st.sampled_from([-1, 1, 2, 3]),
    alpha=st.sampled_from([0.0, 1.0, 0.6, -0.5]),
    batch=st.integers(1, 3),
    early_stopping=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_token_tree_finds_what_the_simple_search_finds(
    kind, n_beams, eos_id, alpha, batch, early_stopping, seed
):
    """Same tokens, and scores to float32's last bit or two, for every layer with a memory."""
    model = MODELS(kind)
    inputs = torch.randint(1, 5, (batch, 3), generator=torch.Generator().manual_seed(seed))
    want, want_scores = simple_search(model, inputs, n_beams, eos_id, 6, alpha, early_stopping)

    found, scores = decoding.beam_search(
        model,
        inputs,
        batch,
        n_beams,
        eos_id=eos_id,
        max_length=6,
        length_penalty=alpha,
        return_scores=True,
        early_stopping=early_stopping,
    )

    assert found.tolist() == want
    assert torch.allclose(scores, want_scores, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_one_beam_is_greedy_for_every_layer_with_a_memory(kind):
    inputs = torch.tensor([[1, 2, 3], [4, 4, 1]])
    chosen = {"inputs": inputs, "batch_size": 2, "eos_id": 2, "max_length": 8}

    greedy = decoding.autoregressive_sample(MODELS(kind), temperature=0.0, **chosen)

    assert torch.equal(decoding.beam_search(MODELS(kind), n_beams=1, **chosen)[:, 0], greedy)


@pytest.mark.parametrize("kind", ["attention", "GRU", "LSTM", "SRU"])
def test_beams_of_ragged_prompts_equal_those_of_each_prompt_alone(kind):
    model = MODELS(kind)
    prompts = torch.tensor([[1, 2, 3, 4], [4, 3, 9, 9], [2, 9, 9, 9]])
    settings = {"n_beams": 3, "eos_id": 2, "max_length": 6, "return_scores": True}

    together, scores = decoding.beam_search(model, prompts, 3, prompt_lengths=[4, 2, 1], **settings)

    for i, n in enumerate([4, 2, 1]):
        alone, score = decoding.beam_search(model, prompts[i : i + 1, :n], **settings)
        length = alone.shape[-1]
        assert together[i, :, :length].tolist() == alone[0].tolist()
        assert torch.allclose(scores[i], score[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("looks", [lambda n, device: True, lambda n, device: n == 1])
def test_a_long_row_that_is_done_leaves_a_short_one_its_room(looks, monkeypatch):
    """The model has 16 places, and the long prompt takes 14 of them."""
    monkeypatch.setattr(NanCheck, "is_time", staticmethod(looks))
    model, n_longer = MODELS("attention"), 0
    for seed, eos_id in itertools.product(range(12), range(5)):
        prompts = torch.randint(1, 5, (2, 13), generator=torch.Generator().manual_seed(seed))
        settings = {"n_beams": 2, "eos_id": eos_id, "early_stopping": True, "return_scores": True}
        try:
            long = decoding.beam_search(model, prompts[:1], max_length=12, **settings)
        except tl.LayerError:  # it does not end in time
            continue
        short = decoding.beam_search(model, prompts[1:, :3], max_length=12, **settings)

        together = decoding.beam_search(
            model, prompts, 2, max_length=12, prompt_lengths=[13, 3], **settings
        )

        for row, (alone, scores) in enumerate((long, short)):
            assert together[0][row, :, : alone.shape[2]].tolist() == alone[0].tolist()
            assert torch.allclose(together[1][row], scores[0], rtol=1e-6, atol=0)
        n_longer += short[0].shape[2] > 3
    assert n_longer > 1


def test_beams_share_the_memory_of_their_row():
    """Keys and values have a row for each sequence, not for each beam; so has what is kept."""
    model, rows = MODELS("encoder-decoder"), set()

    def look(module, inputs, outputs):
        for memory in module._memories():
            tensors = memory.tree() if isinstance(memory, kv_cache.Kept) else memory.buffers()
            rows.update(len(t) for t in tensors)

    prompts = [[1, 2], [3, 4]]
    decoding.beam_search(model, prompts, 2, n_beams=4, max_length=4)  # what is tried once, is now
    hook = model.register_forward_hook(look)
    decoding.beam_search(model, prompts, 2, n_beams=4, max_length=4)
    hook.remove()

    assert rows == {2}


def test_stopping_early_is_content_with_what_has_finished():
    """It is over when there are as many hypotheses as beams; the exact search goes on."""
    model = MODELS("attention")
    settings = {"n_beams": 2, "eos_id": 2, "max_length": 12, "return_scores": True}
    settings["length_penalty"] = 4.0
    differ = 0
    for row in itertools.product(range(1, 5), repeat=2):
        early, early_scores = decoding.beam_search(model, [row], early_stopping=True, **settings)
        exact, exact_scores = decoding.beam_search(model, [row], **settings)

        assert early.shape[-1] <= exact.shape[-1]
        assert bool((early_scores <= exact_scores).all())
        differ += not np.array_equal(early_scores, exact_scores)
    assert differ


def test_a_row_that_stopped_early_stays_as_it_is_while_others_go_on():
    """What it would find if it went on with them is not among its hypotheses."""
    model = MODELS("attention")
    rows = torch.tensor(list(itertools.product(range(1, 5), repeat=2)))
    settings = {"n_beams": 2, "max_length": 12, "length_penalty": 4.0, "return_scores": True}
    n_shorter = 0
    for eos_id in (1, 2, 3):
        settings.update(eos_id=eos_id, early_stopping=True)
        together, scores = decoding.beam_search(model, rows, len(rows), **settings)

        for i in range(len(rows)):
            alone, score = decoding.beam_search(model, rows[i : i + 1], **settings)
            assert torch.allclose(scores[i], score[0], rtol=1e-6, atol=0)
            assert together[i, :, : alone.shape[2]].tolist() == alone[0].tolist()
            n_shorter += alone.shape[2] < together.shape[2]
    assert n_shorter


def test_an_end_at_the_first_position_is_a_hypothesis():
    """And where nothing else is likely, a result of one token."""
    model = made("attention")
    model.sublayers[-1].bias.data[3] += 50

    found = decoding.beam_search(model, [[1]], n_beams=1, eos_id=3, pad_id=-1)

    assert found.tolist() == [[[3]]]


def test_more_beams_than_symbols_are_followed_from_the_second_position_on():
    """One position has no more continuations than the vocabulary; the missing score -inf."""
    model = MODELS("attention")
    found, scores = decoding.beam_search(
        model, [[1]], n_beams=9, eos_id=-1, max_length=1, return_scores=True, pad_id=-1
    )
    two, two_scores = decoding.beam_search(
        model, [[1]], n_beams=9, eos_id=-1, max_length=2, return_scores=True
    )

    assert sorted(found[0, :5, 0].tolist()) == [0, 1, 2, 3, 4]
    assert found[0, 5:].tolist() == [[-1]] * 4
    assert bool((scores[0, 5:] == -torch.inf).all())
    want, want_scores = simple_search(model, torch.tensor([[1]]), 9, -1, 2, 1.0)
    assert two.tolist() == want
    np.testing.assert_allclose(two_scores, want_scores, rtol=1e-6)


class Counter(torch.nn.Module):
    """A plain module with a cache of its own: likes what follows the last token."""

    last = None

    def init_cache(self, batch_size, max_length):
        self.last = torch.zeros(batch_size, dtype=torch.int64)

    def reset_cache(self):
        self.last.zero_()

    def forward(self, tokens):
        sums = self.last[:, None] + tokens.cumsum(1)
        self.last = sums[:, -1]
        return 2.0 * torch.nn.functional.one_hot((sums + 1) % 5, 5).float()


class Reordering(Counter):
    """The same for beams."""

    def reorder_cache(self, parents):
        self.last = self.last[parents]


def test_a_foreign_module_is_searched_by_reordering_its_cache():
    """Of a module in a module, the outer one is asked, once."""
    model = tl.Serial(tl.Dup(), tl.Drop(), torch.nn.Sequential(Reordering()))

    found, scores = decoding.beam_search(
        model, [[1], [2]], 2, n_beams=3, eos_id=-1, max_length=4, return_scores=True
    )

    for row, prefix in zip(range(2), (1, 2), strict=True):
        for sequence, score in zip(found[row].tolist(), scores[row].tolist(), strict=True):
            tokens = torch.tensor([[prefix, *sequence]])
            module = Reordering()
            module.init_cache(1, None)
            log_probs = torch.log_softmax(module(tokens)[0], -1)
            total = sum(float(log_probs[i, t]) for i, t in enumerate(sequence))
            assert score == pytest.approx(total / (9 / 6), abs=1e-5)
    with pytest.raises(TypeError, match="Counter has a cache and offers no reorder_cache"):
        decoding.beam_search(Counter(), n_beams=2)


def test_ties_go_to_the_lower_beam_and_token():
    scores = torch.tensor([[-1.0, -1.0, -torch.inf]])
    log_probs = torch.full((1, 3, 4), -2.0)
    log_probs[0, 1, 3] = -1.0

    values, parents, tokens = best_continuations(scores, log_probs, 4)

    assert values.tolist() == [[-2.0, -3.0, -3.0, -3.0]]
    assert parents.tolist() == [[1, 0, 0, 0]]
    assert tokens.tolist() == [[3, 0, 1, 2]]


def test_more_beams_than_continuations_leaves_some_empty():
    values, _, _ = best_continuations(torch.tensor([[0.0]]), torch.full((1, 1, 3), -1.0), 5)

    assert values.tolist() == [[-1.0, -1.0, -1.0, -torch.inf, -torch.inf]]


def test_what_cannot_be_searched_is_refused(model):
    with pytest.raises(ValueError, match="n_beams counts beams, so it is at least 1; got 0"):
        decoding.beam_search(model, n_beams=0)
    with pytest.raises(ValueError, match="at least 1; got 0"):
        decoding.beam_search(model, max_length=0)
    with pytest.raises(TypeError, match="n_beams is an integer; got 2.0"):
        decoding.beam_search(model, n_beams=2.0)
    with pytest.raises(TypeError, match="eos_id is an integer; got None; give -1 for none"):
        decoding.beam_search(model, eos_id=None)
    with pytest.raises(TypeError, match="pad_id is an integer; got None"):
        decoding.beam_search(model, pad_id=None)
    with pytest.raises(ValueError, match="batch of 1, but batch_size is 2"):
        decoding.beam_search(model, [[1]], batch_size=2)


@pytest.mark.parametrize(
    ("length_penalty", "error"),
    [
        *((value, ValueError) for value in (torch.nan, torch.inf, 1000.0, -1000.0)),
        *((value, TypeError) for value in (None, "1")),
    ],
)
def test_a_length_penalty_that_float32_cannot_hold_is_refused(model, length_penalty, error):
    with pytest.raises(error, match=f"stays between .*; got {length_penalty!r} for 20. Give one"):
        decoding.beam_search(model, max_length=20, length_penalty=length_penalty)


@pytest.mark.parametrize("length_penalty", [50.0, -50.0, torch.tensor(1.0), np.float32(0.5)])
def test_scores_are_finite_for_any_length_penalty_that_is_taken(model, length_penalty):
    """By 50 a hypothesis of 16 tokens has its score divided by 10 ** 27.2."""
    _, scores = decoding.beam_search(
        model, max_length=16, length_penalty=length_penalty, return_scores=True
    )

    assert bool(scores.isfinite().all())
    assert bool((scores < 0).all())


class Broken(tl.Layer):
    def __init__(self, value, n_good=0):
        super().__init__()
        self.shift = tl.ShiftRight()
        self.value, self.n_good = value, n_good

    def forward(self, x):
        self.n_good -= 1
        return torch.full((*x.shape, VOCAB), self.value if self.n_good < 0 else 0.0)


def test_beams_that_are_dead_and_rows_that_are_done_may_have_nothing_left():
    """Of a model that masks: rows are what each is alone, and the missing beams score -inf."""
    settings = {"start_id": 4, "max_length": 6, "length_penalty": 0.0, "return_scores": True}

    found, scores = decoding.beam_search(toys.Grammar(), n_beams=3, **settings)

    ends, goes_on, three = (
        float(torch.log_softmax(torch.tensor(pair), 0)[i])
        for pair, i in (([0.3, 0.1], 0), ([0.3, 0.1], 1), ([0.1, 0.7], 1))
    )
    two = float(torch.log_softmax(torch.tensor([0.1, 0.7]), 0)[0])
    assert found[0].tolist() == [[3, 1, 0], [2, 1, 0], [2, 2, 1]]
    assert scores[0].tolist() == pytest.approx([three, two + ends, two + goes_on + ends])
    for n_beams in (1, 2):
        together, its_scores = decoding.beam_search(
            toys.Grammar(), [[3], [2]], 2, n_beams, **settings
        )
        for row, prefix in enumerate((3, 2)):
            alone, score = decoding.beam_search(toys.Grammar(), [[prefix]], 1, n_beams, **settings)
            assert together[row, :, : alone.shape[2]].tolist() == alone[0].tolist()
            assert np.array_equal(its_scores[row], score[0])


def test_nothing_grows_from_a_dead_beam():
    scores = torch.tensor([[-1.0, -torch.inf]])
    log_probs = torch.tensor([[[-0.5, -1.5], [torch.nan, torch.nan]]])

    values, parents, tokens = best_continuations(scores, log_probs, 3)

    assert values.tolist() == [[-1.5, -2.5, -torch.inf]]
    assert (parents[0, :2].tolist(), tokens[0, :2].tolist()) == ([0, 0], [0, 1])


def test_logits_that_are_not_numbers_are_not_searched():
    for value in (torch.nan, torch.inf, -torch.inf):
        with pytest.raises(ValueError, match="logits for token 1 are not numbers: a row holds NaN"):
            decoding.beam_search(Broken(value))


def test_logits_that_are_not_numbers_are_found_at_the_end_at_the_latest(monkeypatch):
    """As on a GPU, which nobody waits for at every token."""
    monkeypatch.setattr(NanCheck, "is_time", staticmethod(lambda n, device: n == 1))
    for decode in (decoding.beam_search, decoding.autoregressive_sample):
        model = Broken(torch.nan, 100)
        decode(model, max_length=5)  # its parts are tried, which takes calls
        model.n_good = 3
        with pytest.raises(ValueError, match="logits for token 4 are not numbers"):
            decode(model, max_length=5, eos_id=-1)
