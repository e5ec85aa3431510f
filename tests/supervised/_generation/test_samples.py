"""Several samples of a prompt: as if it were given several times, but read once."""

import pytest
import torch
from decoders import PROMPTS, VOCAB, Caching, livelier, recurrent, sample

from trax_torch import layers as tl
from trax_torch import models
from trax_torch.supervised import decoding


def encoder_decoder():
    model = models.Transformer(VOCAB, None, 8, 8, 1, 1, 2, max_len=32)
    one = torch.ones(1, 2, dtype=torch.int64)
    return livelier(model, (one, one))


MAKERS = {
    "GRU": lambda: recurrent(tl.GRU(8)),
    "LSTM": lambda: recurrent(tl.LSTM(8)),
    "encoder-decoder": encoder_decoder,
    "a cache of its own": Caching,
}


@pytest.fixture(scope="module")
def model_of(model):
    return {"attention": model, **{name: make() for name, make in MAKERS.items()}}


@pytest.mark.parametrize("kind", ["attention", *MAKERS])
@pytest.mark.parametrize("eval_mode", [False, True])
def test_samples_are_those_of_prompts_that_are_repeated(model_of, kind, eval_mode):
    """To the token, by one seed and by one for each; log-probabilities, too."""
    model = model_of[kind]
    twice = PROMPTS.repeat_interleave(4, 0)
    for seed in (7, list(range(12))):
        asked = {"temperature": 1.0, "seed": seed, "eval_mode": eval_mode, "eos_id": 2}
        found, log_probs = sample(
            model, inputs=PROMPTS, n_samples=4, return_log_probs=True, **asked
        )
        want, wanted = sample(model, inputs=twice, batch_size=12, return_log_probs=True, **asked)

        assert found.shape[:2] == (3, 4)
        assert torch.equal(found.flatten(0, 1), want)
        torch.testing.assert_close(log_probs.flatten(0, 1), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["attention", "GRU"])
def test_samples_of_prompts_of_several_lengths(model_of, kind):
    """With all else that may be asked."""
    rules = {
        "repetition_penalty": 1.5,
        "frequency_penalty": 0.5,
        "banned": [3],
        "stop": [[1, 2], [6, 6]],
        "logits_processor": lambda tokens, logits: logits - (tokens == 5).sum(1, keepdim=True),
    }
    asked = {"temperature": 1.0, "seed": 1, "top_p": 0.95, **rules}
    found = sample(
        model_of[kind],
        inputs=PROMPTS,
        prompt_lengths=[3, 1, 2],
        n_samples=2,
        forced={1: [1, 2, 4]},
        **asked,
    )
    want = sample(
        model_of[kind],
        inputs=PROMPTS.repeat_interleave(2, 0),
        batch_size=6,
        prompt_lengths=[3, 3, 1, 1, 2, 2],
        forced={1: [1, 1, 2, 2, 4, 4]},
        **asked,
    )

    assert torch.equal(found.flatten(0, 1), want)


def test_a_stream_yields_the_samples_of_each_prompt(model_of):
    asked = {"temperature": 1.0, "seed": 2, "max_length": 6, "n_samples": 3}
    stream = decoding.autoregressive_sample_stream(model_of["attention"], PROMPTS, 3, **asked)
    found = list(stream)

    assert found[0].shape == (3, 3, 1)
    want = sample(model_of["attention"], inputs=PROMPTS, **asked)
    assert torch.equal(torch.cat(found, dim=-1), want)


def test_a_prompt_is_read_once_for_all_its_samples(model_of):
    """By as many rows as there are prompts; later the samples of each lie side by side."""
    shapes = []
    model = model_of["attention"]
    embedding = next(m for m in model.modules() if isinstance(m, tl.Embedding))
    hook = embedding.register_forward_pre_hook(lambda m, args: shapes.append(args[0].shape))
    sample(model, inputs=PROMPTS, n_samples=5, max_length=3)
    hook.remove()

    assert [tuple(shape) for shape in shapes] == [(3, 4), (3, 5), (3, 5)]


def test_one_sample_has_an_axis_of_its_own(model_of):
    model = model_of["attention"]
    found = sample(model, inputs=PROMPTS, n_samples=1)

    assert torch.equal(found[:, 0], sample(model, inputs=PROMPTS))


@pytest.mark.usefixtures("_compiler_afresh")
def test_compiled_steps_make_the_same_samples(model_of):
    """The program of as many beams serves; penalties and stop sequences look at it from outside."""
    asked = {"inputs": PROMPTS, "temperature": 1.0, "seed": 1, "n_samples": 2}
    asked |= {"repetition_penalty": 1.4, "stop": [[1, 2]]}
    model = model_of["attention"]
    want = sample(model, **asked)
    fast = tl.Accelerate(model, backend="aot_eager")

    assert torch.equal(sample(fast, **asked), want)


@pytest.mark.parametrize(
    ("n", "error", "match"),
    [
        (0, ValueError, "n_samples counts sequences of a prompt, so it is at least 1; got 0"),
        (1.5, TypeError, "n_samples is an integer; got 1.5"),
    ],
)
def test_samples_are_counted(model_of, n, error, match):
    with pytest.raises(error, match=match):
        sample(model_of["attention"], n_samples=n)
    with pytest.raises(ValueError, match="one seed, or one a row; got 3 for 6 rows"):
        sample(model_of["attention"], temperature=1.0, seed=[1, 2, 3], n_samples=2)
