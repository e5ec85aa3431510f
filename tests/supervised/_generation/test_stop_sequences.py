"""Rows end before a stop sequence, and a stream tells nothing of it."""

import decoding_by_hand as by_hand
import pytest
import torch
from decoders import PROMPTS, VOCAB, sample
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trax_torch.supervised import decoding
from trax_torch.supervised._generation.stop_sequences import Endings, stop_sequences

PADDING = -1


class Spelling(torch.nn.Module):
    """A plain module that makes given rows of tokens, whatever it is asked."""

    def __init__(self, rows):
        super().__init__()
        self.rows = torch.tensor(rows)

    def init_cache(self, batch_size, max_length):
        self.place = 0

    def reset_cache(self):
        self.place = 0

    def forward(self, tokens):
        if tokens.shape[1] != 1 or len(tokens) != len(self.rows):  # while it is being tried
            return torch.zeros(*tokens.shape, 3)
        new = self.rows[:, self.place : self.place + 1]
        self.place += 1
        return torch.nn.functional.one_hot(new, 3).double()


ROW = st.lists(st.integers(0, 2), min_size=8, max_size=8)
STOPS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=3)


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(ROW, min_size=1, max_size=3), stops=STOPS, ends=st.sampled_from([-1, 2]))
@example(rows=[[0, 0, 0, 1, 0, 0, 1, 2]], stops=[[0, 0, 1]], ends=-1)  # begins within itself
@example(rows=[[0, 1, 2, 0, 0, 0, 0, 0]], stops=[[1, 2], [2], [0, 1, 2, 2]], ends=2)
@example(rows=[[1, 0, 0, 0, 0, 0, 0, 0], [2] * 8], stops=[[1], [2]], ends=-1)  # nothing is left
def test_rows_end_before_the_first_stop_sequence(rows, stops, ends):
    """Against plain search in lists: whole calls, and streams, which give no more and no less."""
    want = [by_hand.cut(row, stops, (ends,)) for row in rows]
    length = max(len(row) for row in want)
    asked = {"batch_size": len(rows), "temperature": 0.0, "max_length": 8, "pad_id": PADDING}

    found, log_probs = decoding.autoregressive_sample(
        Spelling(rows), eos_id=ends, stop=stops, return_log_probs=True, **asked
    )

    padded = [row + [PADDING] * (length - len(row)) for row in want]
    assert found.tolist() == padded
    assert found.shape == log_probs.shape == (len(rows), length)
    assert bool((log_probs[found == PADDING] == 0).all())
    if ends == -1:
        stream = decoding.autoregressive_sample_stream(Spelling(rows), stop=stops, **asked)
        streamed = list(stream)
        assert len(streamed) == length
        assert torch.equal(torch.cat([*streamed, found[:, :0]], dim=1), found)


@settings(deadline=None)
@given(row=ROW, stops=STOPS)
def test_a_token_is_held_back_as_long_as_it_may_be_of_a_stop_sequence(row, stops):
    """No longer, and no shorter: whether some way to go on would cut it."""
    endings = Endings((), tuple(map(tuple, stops)), 1)
    for n in range(1, 9):
        endings.meet(torch.tensor([row[n - 1]]))
        if endings.all_have_ended():
            return
        may_be_cut = max(
            (
                k
                for stop in stops
                for k in range(1, len(stop))
                if row[max(0, n - k) : n] == stop[:k]
            ),
            default=0,
        )
        assert endings.settled() == n - may_be_cut


def test_a_stop_sequence_is_of_what_was_made_alone(model):
    """One that the prompt begins is none."""
    plain = sample(model, inputs=PROMPTS)
    stop = [[int(prompt[-1]), int(row[0])] for prompt, row in zip(PROMPTS, plain, strict=True)]
    made = {tuple(row[i : i + 2].tolist()) for row in plain for i in range(9)}

    found = sample(model, inputs=PROMPTS, stop=[s for s in stop if tuple(s) not in made])

    assert torch.equal(found, plain)


@pytest.mark.parametrize("eval_mode", [False, True])
def test_rows_of_a_model_that_have_stopped_change_no_others(model, eval_mode):
    """Each row is the beginning of the same row without stop sequences."""
    asked = {"inputs": PROMPTS, "prompt_lengths": [3, 1, 2], "temperature": 1.0, "seed": 3}
    plain = sample(model, eval_mode=eval_mode, **asked).tolist()
    stop = [plain[0][2:4], plain[1][5:6]]
    want = [by_hand.cut(row, stop) for row in plain]

    found = sample(model, eval_mode=eval_mode, stop=stop, pad_id=PADDING, **asked)

    assert [[t for t in row if t != PADDING] for row in found.tolist()] == want


def test_a_stream_without_a_stop_sequence_holds_nothing_back(model):
    stream = decoding.autoregressive_sample_stream(model, PROMPTS, 3, temperature=0.0)
    stopping = decoding.autoregressive_sample_stream(
        model, PROMPTS, 3, temperature=0.0, stop=[[VOCAB + 1]]
    )

    for _ in range(5):
        assert torch.equal(next(stream), next(stopping))


@pytest.mark.parametrize(
    ("stop", "error", "match"),
    [
        ([5, 6], TypeError, r"as in \[\[5, 6\], \[7\]\]; got \[5, 6\]"),
        ([[]], ValueError, r"got \[\[\]\]. An empty one would end every row before it begins"),
        ("END", TypeError, "got 'END'. Encode texts as the model's tokens"),
        (["END"], TypeError, r"got \['END'\]. Encode texts"),
        ([[1.5]], TypeError, r"stop is a list of sequences of token ids, .*; got \[\[1.5\]\]"),
        (7, TypeError, "stop is a list of sequences of token ids, .*; got 7"),
    ],
)
def test_stop_sequences_that_are_none_are_refused(model, stop, error, match):
    with pytest.raises(error, match=match):
        sample(model, stop=stop)


def test_stop_sequences_may_be_arrays():
    assert stop_sequences(torch.tensor([[5, 6]])) == ((5, 6),)
    assert stop_sequences([torch.tensor([5, 6]), (7,)]) == ((5, 6), (7,))
