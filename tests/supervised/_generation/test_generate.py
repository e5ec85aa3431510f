"""Many prompts on one cache: each becomes what it becomes alone, whatever runs beside it."""

import gc
import itertools
import logging
import random

import numpy as np
import pytest
import torch
from compiled_decoding import MAKERS as RECURRENT
from compiled_decoding import around, counted
from decoders import Caching
from drafting import MAKERS, VOCAB, lively

from trax_torch import layers as tl
from trax_torch import models
from trax_torch.supervised import decoding
from trax_torch.supervised._generation.generating import Prompts
from trax_torch.supervised._generation.refilled import RefilledRun

CONVOLUTION = {"convolution": lambda: around(tl.CausalConv(8, 3), tl.CausalAttention(8, n_heads=2))}
ALL = {**MAKERS, **RECURRENT, **CONVOLUTION}
SETTINGS = {"batch_size": 3, "temperature": 0.0, "eos_id": -1, "max_length": 12}


def generate(model, prompts, **kwargs):
    return decoding.generate(model, prompts, **{**SETTINGS, **kwargs})


def drawn(draws, is_source=False):
    """Prompts, and settings of a call, those of each prompt in lists."""
    n = draws.choice([1, 4, 9])
    lengths = [draws.randrange(1 if is_source else 0, 14) for _ in range(n)]
    prompts = [[draws.randrange(1, VOCAB) for _ in range(length)] for length in lengths]
    settings = {
        "batch_size": draws.choice([1, 2, 3, 5]),
        "temperature": draws.choice([0.0, 0.3, 1.0, 1.7]),
        "eos_id": draws.choice([-1, 1, (2, 3)]),
        "max_length": [draws.choice([1, 2, 7, 20]) for _ in prompts],
        "seed": [draws.randrange(99) for _ in prompts],
        "stop": draws.choice([None, None, [[2, 3], [4]]]),
        "top_k": draws.choice([None, None, 3]),
        "top_p": draws.choice([None, None, 0.7]),
        "min_p": draws.choice([None, None, 0.1]),
        "start_id": draws.choice([0, 2]),
        "return_log_probs": True,
    }
    return prompts, settings


def alone(model, prompt, **settings):
    """What a call makes of one prompt."""
    inputs = torch.tensor([prompt], dtype=torch.int64)
    return decoding.autoregressive_sample(model, inputs, **settings)


def assert_as_alone(model, prompts, results, settings):
    """Asserts that each of the results is what its prompt becomes alone; settings as of `drawn`."""
    assert sorted(result.index for result in results) == list(range(len(prompts)))
    for result in results:
        i = result.index
        own = {"max_length": settings["max_length"][i], "seed": [settings["seed"][i]]}
        want = alone(model, prompts[i], **{**settings, **own, "batch_size": 1})
        assert result.tokens.tolist() == want[0][0].tolist(), (i, settings)
        np.testing.assert_allclose(result.log_probs, want[1][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(ALL))
def test_each_prompt_becomes_what_it_becomes_alone(name):
    """And so do log-probabilities; in float64, where there are no ties."""
    draws = random.Random(name)
    model = lively(name, makers=ALL)
    for _ in range(4):
        prompts, settings = drawn(draws, model.n_in > 1)
        results = list(decoding.generate(model, prompts, **settings))
        assert_as_alone(model, prompts, results, settings)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ALL))
def test_each_prompt_becomes_what_it_becomes_alone_in_many_drawn_settings(name):
    """With weights of 8 bits, too."""
    draws = random.Random(name)
    model = lively(name, makers=ALL)
    for each in (model, decoding.quantize(model)):
        for _ in range(8):
            prompts, settings = drawn(draws, model.n_in > 1)
            results = list(decoding.generate(each, prompts, **settings))
            assert_as_alone(each, prompts, results, settings)


def test_sources_may_become_longer():
    """Those of rows that go on are read again, and what these have made stays."""
    model = lively("encoder-decoder")
    prompts = [[5, 3, 1], [2, 3], [1, 2, 3, 4, 5, 6] * 4, [4], [6, 1, 2] * 13, [2, 2]]
    settings = {"eos_id": -1, "return_log_probs": True, "temperature": 1.0}
    settings |= {"batch_size": 2, "max_length": [30, 3, 9, 9, 9, 5], "seed": range(6)}
    for fast in (model, tl.Accelerate(model, backend="eager")):
        assert_as_alone(
            model, prompts, list(decoding.generate(fast, prompts, **settings)), settings
        )


def test_weights_of_8_bits_make_the_same_of_many_prompts():
    """As they make of each alone."""
    model = decoding.quantize(lively("two layers"))
    prompts, settings = drawn(random.Random(5))
    assert_as_alone(model, prompts, list(decoding.generate(model, prompts, **settings)), settings)


def test_one_seed_is_for_all_prompts_as_for_the_rows_of_a_batch():
    """Each draws by it and its place among them all."""
    model = lively("attention")
    prompts = torch.tensor([[1, 2, 3, 1], [4, 5, 6, 4], [2, 2, 2, 2], [1, 1, 1, 1], [3, 2, 1, 5]])

    found = [r.tokens for r in generate(model, prompts, temperature=1.0, seed=7, batch_size=2)]

    want = decoding.autoregressive_sample(
        model, prompts, batch_size=5, seed=7, eos_id=-1, max_length=12
    )
    assert torch.equal(torch.stack(found), want)


def test_without_a_seed_torch_s_default_generator_rules():
    """As in other calls."""
    model, found = lively("attention"), []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append([r.tokens.tolist() for r in generate(model, [[1]] * 4, temperature=9.0)])

    assert found[0] == found[1] != found[2]


def test_results_come_in_order_or_as_they_end():
    """Each with the index of its prompt."""
    model, lengths = lively("attention"), [9, 2, 4, 1, 1]
    for ordered, want in ((True, [0, 1, 2, 3, 4]), (False, [1, 3, 4, 2, 0])):
        results = list(generate(model, [[1]] * 5, max_length=lengths, ordered=ordered))
        assert [r.index for r in results] == want
        assert [len(r.tokens) for r in results] == [lengths[i] for i in want]


def test_answers_are_of_the_kind_of_the_prompts():
    """Tensors for tensors; arrays for arrays, lists, and what tokenizers give."""
    prompts = [torch.tensor([1, 2]), np.array([1, 2]), [1, 2], {"input_ids": [1, 2]}]

    results = list(generate(lively("attention"), prompts, return_log_probs=True))

    assert [type(r.tokens) for r in results] == [torch.Tensor, *[np.ndarray] * 3]
    assert [type(r.log_probs) for r in results] == [torch.Tensor, *[np.ndarray] * 3]
    assert len({tuple(r.tokens.tolist()) for r in results}) == 1


def test_prompts_are_asked_for_when_there_are_rows_for_them():
    """So they may be made on the way, and without end."""
    taken = []

    def endless():
        for i in itertools.count():
            taken.append(i)
            yield [i % VOCAB]

    results = generate(lively("attention"), endless(), batch_size=2, max_length=3)
    assert taken == []
    for n in range(1, 6):
        assert next(results).index == n - 1
        assert len(taken) <= n + 2
    results.close()


def test_the_model_is_free_between_results():
    """It decodes, evaluates and trains, also in the iterable; a call that is left holds nothing."""
    model = lively("attention").train()
    want = alone(model, [1, 2], temperature=0.0, eos_id=-1, max_length=12)

    def prompts():
        for _ in range(5):
            assert model.training
            assert torch.is_grad_enabled()
            assert torch.equal(
                alone(model, [1, 2], temperature=0.0, eos_id=-1, max_length=12), want
            )
            yield [1, 2]

    results = generate(model, prompts(), max_length=[3, 12, 5, 12, 12], batch_size=2)
    for result in itertools.islice(results, 3):
        assert torch.equal(alone(model, [1, 2], temperature=0.0, eos_id=-1, max_length=12), want)
        assert result.tokens.tolist() == want[0, : len(result.tokens)].tolist()
    del results
    gc.collect()

    assert model.training
    assert torch.equal(alone(model, [1, 2], temperature=0.0, eos_id=-1, max_length=12), want)


def test_two_calls_go_side_by_side():
    """On one model, result by result."""
    model = lively("attention")
    one, two = ([[1, 2]] * 4, [[3], [4, 5]] * 2)
    want = [[r.tokens.tolist() for r in generate(model, prompts)] for prompts in (one, two)]

    pairs = list(zip(generate(model, one), generate(model, two), strict=True))

    assert [[r.tokens.tolist() for r in results] for results in zip(*pairs, strict=True)] == want


def test_what_the_iterable_raises_is_raised():
    """What had ended was given before; the model is as it was."""
    model, got = lively("attention").train(), []

    def prompts():
        yield from [[1], [2], [3]]
        raise OSError("the line is dead")

    with pytest.raises(OSError, match="the line is dead"):
        got.extend(r.index for r in generate(model, prompts(), max_length=[2, 9, 9]))
    assert got == [0]  # the fourth was asked for when the first had ended
    assert model.training


def test_no_prompts_make_no_results():
    """And nothing is asked of the model."""
    assert list(generate(lively("attention"), [])) == []
    assert list(generate(lively("attention"), iter(()))) == []


def test_room_is_told_by_prompt():
    """One that is too long, and one that goes on too long; as long as it fits, all is well."""
    model = lively("attention")  # for 80 positions

    with pytest.raises(ValueError, match=r"Prompt 1: .* built for 80 .* takes 91.*shorter"):
        list(generate(model, [[1], [2] * 90]))
    with pytest.raises(ValueError, match=r"Prompt 2: .* built for 80 .* at most 20 tokens"):
        list(generate(model, [[1], [2], [2] * 60], max_length=21))
    assert [len(r.tokens) for r in generate(model, [[1], [2] * 60], max_length=20)] == [20, 20]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"prompts": [[1], [99]]}, tl.LayerError, "Token id 99 is outside"),
        ({"prompts": [[1], [1.5]]}, TypeError, "prompt 1 is not; got torch.float"),
        ({"prompts": [[1], "text"]}, TypeError, "prompt 1 is not.*Encode the text"),
        ({"prompts": [[[1, 2]]]}, ValueError, r"prompt 0 is not; got shape \(1, 2\)"),
        ({"prompts": "text"}, TypeError, "prompts is an iterable of one a prompt"),
        ({"prompts": 5}, TypeError, "prompts is an iterable of one a prompt"),
        ({"max_length": [3]}, ValueError, "max_length has one for each .* before prompt 1"),
        ({"max_length": 0}, ValueError, "max_length counts tokens, so it is at least 1"),
        ({"max_length": None}, TypeError, "max_length is an iterable of one a prompt; got None"),
        ({"seed": [1], "temperature": 1.0}, ValueError, "seed has one for each"),
        ({"seed": [1, 0.5]}, TypeError, "seed is an integer"),
        ({"batch_size": 0}, ValueError, "batch_size counts sequences"),
        ({"temperature": -1}, ValueError, "A temperature is a number"),
        ({"max_new_tokens": 3}, TypeError, "max_length=20"),
    ],
)
def test_what_cannot_be_is_refused(change, error, words):
    """With the prompt that is meant."""
    model = lively("attention")
    with pytest.raises(error, match=words):
        list(generate(model, **{"prompts": [[1], [2]], **change}))


def test_an_id_outside_the_vocabulary_is_told_with_its_prompt():
    """By a note, since the layers raise it."""
    with pytest.raises(tl.LayerError, match="outside the vocabulary") as caught:
        list(generate(lively("attention"), [[1], [99]]))
    assert caught.value.__notes__ == ["That is prompt 1, from 0."]


def test_logits_that_are_no_numbers_are_refused():
    """With the token and its prompt."""
    model = lively("attention")
    model.sublayers[1].weight.data[6] = float("nan")
    with pytest.raises(ValueError, match="logits for token 1 of prompt 1 are not numbers"):
        list(generate(model, [[2], [6]], max_length=1))


def test_models_whose_rows_are_unknown_are_refused():
    """In words that say what to do."""
    with pytest.raises(
        TypeError, match="Caching, in .* has a memory of another kind.*prompt_lengths"
    ):
        list(generate(Caching(), [[1]]))


@pytest.fixture
def n_rows(monkeypatch):
    """How many rows each step has."""
    noted = []
    look = RefilledRun.look
    monkeypatch.setattr(RefilledRun, "look", lambda run, t: (noted.append(len(t)), look(run, t))[1])
    return noted


def test_steps_are_as_many_as_the_longest_rows_need(n_rows):
    """A row that ends is refilled at once: nobody waits for the longest of a batch."""
    prompts, lengths = ([1] for _ in range(6)), [21, 2, 11, 11, 11, 2]

    list(generate(lively("attention"), prompts, max_length=lengths, batch_size=2))

    assert n_rows == [2] * 30  # 20 and 10 in one row; 1, 10, 10 and 1 in the other


@pytest.mark.parametrize("ordered", [True, False])
def test_the_last_of_prompts_that_can_be_counted_begin_with_the_longest(n_rows, ordered):
    """So no row goes on alone for long; what becomes of them, and in which order, is the same."""
    model, lengths = lively("attention"), [3, 3, 3, 3, 21]
    settings = {"max_length": lengths, "batch_size": 2, "ordered": ordered, "temperature": 1.0}
    results = list(generate(model, [[i] for i in range(5)], seed=range(5), **settings))

    n_steps = len(n_rows)
    unknown = list(generate(model, ([i] for i in range(5)), seed=range(5), **settings))
    assert (n_steps, len(n_rows) - n_steps) == (20, 24)
    assert [(r.index, r.tokens.tolist()) for r in results] == [
        (r.index, r.tokens.tolist()) for r in unknown
    ]


def test_only_the_last_prompts_wait_for_longer_ones():
    """Four times as many as go on side by side; equal ones come in their order."""
    lengths = [5, 9, 1, 2, 8, 8, 3, 4, 7, 7, 6]
    prompts = Prompts(lively("attention"), [[1]] * 11, 0, iter(lengths), range(11), 2)

    taken = [prompts.take(n) for n in (1, 3, 2, 9, 1)]

    indices = [[row.index for row in rows] for rows in taken]
    assert indices == [[0], [1, 2, 4], [5, 8], [9, 10, 7, 6, 3], []]
    assert all(row.key == (row.index, "sample") for rows in taken for row in rows)


def test_caches_grow_with_the_prompts_and_no_further():
    """Those of many prompts are as long as those of the longest."""
    model = models.TransformerLM(VOCAB, 8, 8, 1, 2, max_len=2048)
    model.init(torch.zeros(1, 1, dtype=torch.int64))
    lengths = []
    begin = RefilledRun.begin

    def noting(run):
        lengths.append(run)
        return begin(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RefilledRun, "begin", noting)
        list(generate(model, [[1], [2] * 300, *[[3] * (i % 9) for i in range(200)]], max_length=3))

    (run,) = lengths
    assert [len(cache.keys[0, 0]) for cache in run._caches] == [600 + 2]


def test_arrays_of_many_prompts_are_no_more_than_of_few():
    """Nothing is kept of prompts that have ended."""
    model = lively("attention")

    def n_tensors(n):
        results = generate(model, [[1, 2, 3]] * n, ordered=False, max_length=2)
        for _ in range(n - 4):
            next(results)
        gc.collect()
        count = sum(isinstance(x, torch.Tensor) for x in gc.get_objects())
        results.close()
        return count

    n_tensors(8)
    assert n_tensors(150) <= n_tensors(8) + 5


@pytest.mark.parametrize("name", ["attention", "convolution", "GRU"])
def test_compiled_steps_make_the_same_with_one_program(name, caplog):
    """Whatever prompts; rows are at places of their own."""
    caplog.set_level(logging.INFO, logger="trax_torch")
    graphs, backend = counted()
    model = lively(name, makers=ALL)
    fast = tl.Accelerate(model, backend=backend)
    decoding.warmup(fast, 3, 20, inputs=[[1] * 14] * 3, many_prompts=True)
    draws = random.Random(0)
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in range(3):
            prompts, settings = drawn(draws)
            settings["batch_size"] = 3
            results = list(decoding.generate(fast, prompts, **settings))
            assert "compiled (known)" in caplog.messages[-1]
            assert_as_alone(model, prompts, results, settings)
    assert len(graphs) == 1


@pytest.mark.parametrize("other", [{"n_beams": 2}, {"draft": "prompt"}, {"prompt_lengths": [1]}])
def test_a_warmup_for_many_prompts_takes_what_generate_takes(other):
    """All else is refused."""
    (name,) = other
    with pytest.raises(ValueError, match=f"for generate, which takes no {name}"):
        decoding.warmup(lively("attention"), inputs=[[1]], many_prompts=True, **other)


def test_a_longer_prompt_makes_a_program_of_its_own():
    """Caches grow while rows go on, and what they hold stays."""
    graphs, backend = counted()
    model = lively("attention")
    prompts, settings = drawn(random.Random(1))
    prompts, settings = [[1], [2], [3] * 60, [1, 2]], {**settings, "batch_size": 2}
    settings |= {"max_length": [18, 2, 5, 20], "seed": range(4), "eos_id": -1, "stop": None}

    fast = tl.Accelerate(model, backend=backend)
    assert_as_alone(model, prompts, list(decoding.generate(fast, prompts, **settings)), settings)
    assert len(graphs) == 2


@pytest.mark.slow
def test_the_compiler_s_steps_make_the_same():
    """Those of torch's own compiler, in float64."""
    model = lively("two layers")
    prompts, settings = drawn(random.Random(3))
    settings["batch_size"] = 3
    results = list(decoding.generate(tl.Accelerate(model), prompts, **settings))
    assert_as_alone(model, prompts, results, settings)
