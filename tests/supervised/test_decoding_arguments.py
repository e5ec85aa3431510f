"""What decoding is given may come in several forms, and what makes no sense is refused."""

import numpy as np
import pytest
import torch
from decoders import PROMPTS, VOCAB, sample
from torch import nn

from trax_torch import layers as tl
from trax_torch.supervised import decoding
from trax_torch.supervised._generation.sampling import Sampler


def test_numpy_and_lists_are_taken_as_tokens(model):
    expected = sample(model, inputs=PROMPTS)

    for inputs in (PROMPTS.numpy().astype(np.int32), PROMPTS.tolist()):
        assert sample(model, inputs=inputs).tolist() == expected.tolist()
    one = sample(model, start_id=np.int64(3), seed=np.int64(4), temperature=1.0)
    assert torch.equal(one, sample(model, start_id=3, seed=4, temperature=1.0))
    for start in (torch.tensor(3), np.array(3), [[3]] * 3):
        other = sample(model, start_id=start, seed=4, temperature=1.0)
        assert other.tolist() == one.tolist()
    empty = sample(model, inputs=[[], [], []])
    assert empty.tolist() == sample(model).tolist()


KINDS = {
    "arrays": (PROMPTS.numpy(), np.ndarray),
    "lists": (PROMPTS.tolist(), np.ndarray),
    "a tokenizer's lists": ({"input_ids": PROMPTS.tolist()}, np.ndarray),
    "a tokenizer's arrays": ({"input_ids": PROMPTS.numpy()}, np.ndarray),
    "tensors": (PROMPTS, torch.Tensor),
    "a tokenizer's tensors": ({"input_ids": PROMPTS}, torch.Tensor),
    "none": (None, torch.Tensor),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_of_the_kind_of_its_prompt(model, kind):
    """Arrays for arrays and lists, tensors for tensors; the numbers are the same."""
    inputs, answer = KINDS[kind]
    settings = {"inputs": inputs, "batch_size": 3, "max_length": 4}
    tensors = settings | {"inputs": None if inputs is None else PROMPTS}

    def all_of(settings):
        sampled = decoding.autoregressive_sample(
            model, temperature=0.0, eos_id=-1, return_log_probs=True, **settings
        )
        streamed = list(decoding.autoregressive_sample_stream(model, temperature=0.0, **settings))
        found = decoding.beam_search(model, eos_id=-1, return_scores=True, **settings)
        return [*sampled, *streamed, *found]

    for ours, theirs in zip(all_of(settings), all_of(tensors), strict=True):
        assert type(ours) is answer
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_start_symbols_that_are_arrays_are_a_prompt_where_there_is_no_other(model):
    starts = np.full((3, 1), 2)

    assert type(sample(model, start_id=starts)) is np.ndarray
    assert type(sample(model, start_id=torch.from_numpy(starts))) is torch.Tensor
    assert type(sample(model, inputs=PROMPTS, start_id=starts)) is torch.Tensor
    assert type(sample(model, start_id=2)) is torch.Tensor


def test_symbols_of_an_array_are_numbers_that_hash(model):
    """In a set, as a key, and joined to what a program has already."""
    row = sample(model, inputs=PROMPTS.numpy())[0]
    words = {i: f"word{i}" for i in range(100)}

    assert len(set(row)) == len({int(i) for i in row})
    assert [words[i] for i in row] == [words[int(i)] for i in row]
    assert np.concatenate([[5], row]).shape == (len(row) + 1,)


def test_a_stream_of_arrays_is_closed_with_its_run(model):
    """As one of tensors: the model is then between runs, and predicts no more."""
    stream = decoding.autoregressive_sample_stream(model, PROMPTS.numpy(), batch_size=3)
    next(stream)
    stream.close()

    assert next(stream, None) is None


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"eval_mode": True, "start_id": 5}, ValueError, "its own start symbol, 0"),
        ({"inputs": PROMPTS, "batch_size": 2}, ValueError, "batch of 3, but batch_size is 2"),
        ({"inputs": PROMPTS.float()}, TypeError, r"integers .*; got torch.float32. Make rows"),
        ({"inputs": PROMPTS > 0}, TypeError, r"integers .*; got torch.bool"),
        ({"inputs": PROMPTS[0]}, ValueError, r"shape \(batch, length\); got shape \(3,\). One seq"),
        ({"inputs": [[1, 2], [3]]}, TypeError, r"got \[\[1, 2\], \[3\]\]. .* give prompt_lengths"),
        (
            {"inputs": "abc"},
            TypeError,
            r"integers of shape \(batch, length\); got 'abc'. Encode the text",
        ),
        ({"inputs": np.array(["a"])}, TypeError, r"integers of shape \(batch, length\); got array"),
        (
            {"inputs": list(PROMPTS)},
            TypeError,
            r"length\); got \[tensor.*. Make rows of one length",
        ),
        (
            {"start_id": np.zeros((3, 2), int)},
            ValueError,
            r"\(batch, 1\); got shape \(3, 2\). Give",
        ),
        ({"start_id": [3, 2, 1]}, ValueError, r"\(batch, 1\); got shape \(3,\). Give one for each"),
        (
            {"inputs": PROMPTS, "prompt_lengths": [1.0, 2.0, 3.0]},
            TypeError,
            "row; got torch.float32",
        ),
        (
            {"inputs": PROMPTS, "prompt_lengths": "abc"},
            TypeError,
            "row; got 'abc'. Count the tokens",
        ),
        ({"start_id": None}, TypeError, r"start_id is an integer, or .*; got None. Give 0"),
        ({"start_id": 1.5}, TypeError, r"start_id is an integer, or .*; got torch.float32"),
        ({"start_id": True}, TypeError, r"start_id is an integer, or .*; got torch.bool"),
        ({"start_id": np.zeros((2, 1), int)}, ValueError, "start_id have a batch of 2"),
        ({"temperature": -0.5}, ValueError, "temperature is a number, 0 or more; got -0.5"),
        ({"max_length": 0}, ValueError, "max_length counts tokens, so it is at least 1; got 0"),
        ({"max_length": 5.0}, TypeError, "max_length is an integer; got 5.0"),
        (
            {"max_length": None},
            TypeError,
            "max_length is an integer; got None; give a number: a stream",
        ),
        ({"eval_min_length": 0}, ValueError, "eval_min_length counts positions, so .*; got 0"),
        ({"eval_min_length": -3}, ValueError, "counts positions, so it is at least 1; got -3"),
        ({"eval_min_length": 2.5}, TypeError, "eval_min_length is an integer; got 2.5"),
        ({"eval_min_length": "3"}, TypeError, "eval_min_length is an integer; got '3'"),
        ({"pad_id": 1.5}, TypeError, "pad_id is an integer; got 1.5"),
        ({"batch_size": 0}, ValueError, "batch_size counts sequences, so it is at least 1; got 0"),
        ({"eos_id": None}, TypeError, "eos_id is an integer; got None; give -1 for none"),
        ({"seed": [1, 2], "temperature": 1.0}, ValueError, "got 2 for 3 rows"),
    ],
)
def test_what_cannot_be_decoded_is_refused(model, kwargs, error, match):
    with pytest.raises(error, match=match):
        sample(model, **kwargs)


def test_a_stream_alone_may_be_without_end(model):
    """What is returned whole must end, and so must what is compiled for."""
    for search in (decoding.autoregressive_sample, decoding.beam_search, decoding.warmup):
        with pytest.raises(
            TypeError, match="max_length is an integer; got None; give a number: a stream"
        ):
            search(model, max_length=None)
    assert next(decoding.autoregressive_sample_stream(model, max_length=None)).shape == (1, 1)
    with pytest.raises(ValueError, match="max_length counts tokens, so it is at least 1; got 0"):
        decoding.autoregressive_sample_stream(model, max_length=0)


def test_filters_are_handed_to_the_sampler(model, monkeypatch):
    seen = {}

    def sampler(temperature, batch_size, seed, **filters):
        seen.update(filters)
        return Sampler(temperature, batch_size, seed)

    monkeypatch.setattr(decoding, "Sampler", sampler)
    sample(model, top_k=3, min_p=0.1)
    assert seen == {"top_k": 3, "top_p": None, "min_p": 0.1}
    next(decoding.autoregressive_sample_stream(model, top_p=0.9))
    assert seen == {"top_k": None, "top_p": 0.9, "min_p": None}


@pytest.mark.parametrize("eval_mode", [False, True])
@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        (
            {"inputs": [[1, 7, 2]]},
            "Token id 7 is outside the vocabulary of 7, whose ids are 0 to 6",
        ),
        ({"inputs": [[1, -3, 2]]}, "Token id -3 is outside the vocabulary of 7"),
    ],
)
def test_ids_outside_the_vocabulary_are_named(model, kwargs, match, eval_mode):
    with pytest.raises(tl.LayerError, match=match):
        sample(model, batch_size=1, eval_mode=eval_mode, **kwargs)
    with pytest.raises(tl.LayerError, match="Token id 8 is outside the vocabulary of 7"):
        sample(model, start_id=8)


class ByKeyword(nn.Module):
    """A plain module that calls its embedding as it likes."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, VOCAB)

    def forward(self, tokens):
        return self.embedding(input=nn.functional.pad(tokens, (1, 0))[:, :-1])


def test_an_embedding_may_be_called_by_keyword():
    module = ByKeyword()

    assert sample(module, eval_mode=True).shape == (3, 10)
    with pytest.raises(tl.LayerError, match="Token id 7 is outside the vocabulary of 7"):
        sample(module, inputs=[[7, 1]], batch_size=1, eval_mode=True)


def test_a_seed_may_be_a_tensor(model):
    chosen = {"temperature": 1.0, "inputs": PROMPTS}

    one = sample(model, seed=torch.tensor(7), **chosen)
    several = sample(model, seed=torch.tensor([7, 8, 9]), **chosen)

    assert torch.equal(one, sample(model, seed=7, **chosen))
    assert torch.equal(several, sample(model, seed=[7, 8, 9], **chosen))
