"""Steps of transformers' models are compiled once, and the tokens stay the same."""

import copy

import pytest
import torch

pytest.importorskip("transformers", minversion="5.0")

import hugging_face as hf
from compiled_decoding import counted

from trax_torch import layers as tl
from trax_torch.interop import huggingface
from trax_torch.supervised import decoding
from trax_torch.supervised._generation import compiled_step

MAKERS = [hf.gpt2, hf.llama, hf.mistral, hf.gemma3, hf.t5, hf.bart]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def sample(model, inputs, **settings):
    settings = {"temperature": 0.0, "max_length": 10, "eos_id": -1, **settings}
    return decoding.autoregressive_sample(model, inputs, len(inputs), **settings)


def search(model, inputs, **settings):
    settings = {"n_beams": 3, "max_length": 10, "return_scores": True, **settings}
    return decoding.beam_search(model, inputs, len(inputs), **settings)


@pytest.fixture
def repeats(monkeypatch):
    """Counts the steps that go past torch's front door."""
    counts = []
    repeat = compiled_step.Calls.repeat
    monkeypatch.setattr(
        compiled_step.Calls, "repeat", lambda calls: (counts.append(1), repeat(calls))[1]
    )
    return counts


@pytest.mark.parametrize("make", MAKERS)
def test_calls_of_a_kind_share_a_program(make, repeats):
    model = make()
    graphs, backend = counted()
    fast = tl.Accelerate(huggingface.as_layer(model), backend=backend)

    for length, seed in ((7, 1), (4, 2), (7, 3)):
        inputs = hf.random_tokens(2, length, seed)
        assert torch.equal(sample(fast, inputs), sample(model, inputs, accelerate=False))
    assert len(graphs) <= (2 if make in (hf.t5, hf.bart) else 1)  # sources of two lengths
    assert len(repeats) > 15


@pytest.mark.parametrize("make", MAKERS)
def test_beams_of_compiled_steps_are_those_of_others(make, repeats):
    model = make()
    graphs, backend = counted()
    fast = tl.Accelerate(huggingface.as_layer(model), backend=backend)

    for seed in (1, 2):
        inputs = hf.random_tokens(2, 6, seed)
        tokens, scores = search(fast, inputs)
        want, want_scores = search(model, inputs, accelerate=False)
        assert torch.equal(tokens, want)
        assert torch.equal(scores, want_scores)
    assert len(graphs) == 1
    assert len(repeats) > 8


@pytest.mark.parametrize("make", [hf.gpt2, hf.llama, hf.mistral])
def test_rows_of_several_lengths_are_compiled_too(make, repeats):
    model = make()
    graphs, backend = counted()
    fast = tl.Accelerate(huggingface.as_layer(model), backend=backend)

    for lengths in ([4, 7, 2], [1, 2, 7]):
        inputs = hf.random_tokens(3, 7, sum(lengths))
        settings = {"prompt_lengths": lengths}
        want = sample(model, inputs, accelerate=False, **settings)
        assert torch.equal(sample(fast, inputs, **settings), want)
    assert len(graphs) == 1
    assert repeats


def test_a_warmed_up_model_is_compiled_in_later_calls_of_the_same_model(monkeypatch, caplog):
    graphs, backend = counted()
    monkeypatch.setattr(decoding, "_BACKEND", backend)
    caplog.set_level("INFO", "trax_torch")
    model, inputs = hf.llama(), hf.random_tokens(2, 5)
    want = sample(model, inputs)
    decoding.warmup(model, 2, 10, inputs=inputs)
    n_programs = len(graphs)
    caplog.clear()

    assert torch.equal(sample(model, inputs), want)
    assert "LlamaForCausalLM decodes compiled (known)" in caplog.text
    assert len(graphs) == n_programs == 1
    twin = copy.deepcopy(model)
    assert torch.equal(sample(twin, inputs), want)
    assert "decodes uncompiled" in caplog.text


def test_a_model_that_is_not_made_for_it_is_not_compiled():
    model, inputs = hf.gpt_neo(), hf.random_tokens(2, 5)

    with pytest.raises(ValueError, match="steps of GPTNeoForCausalLM cannot be compiled"):
        decoding.warmup(model, 2, 10, inputs=inputs)
    fast = tl.Accelerate(huggingface.as_layer(model))
    assert torch.equal(sample(fast, inputs), sample(model, inputs))


@pytest.mark.slow
@pytest.mark.parametrize("make", [hf.llama, hf.t5])
def test_inductors_programs_give_the_same_tokens(make):
    model, inputs = make(), hf.random_tokens(2, 5)
    want = sample(model, inputs, accelerate=False)
    decoding.warmup(model, 2, 10, inputs=inputs)

    assert torch.equal(sample(model, inputs), want)
