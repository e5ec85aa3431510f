"""An encoder-decoder from its training to its beams, in small."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from trax_torch import models
from trax_torch.examples import reverse

SMALL = ["--length", "4", "--n-words", "20", "--n-beams", "2", "--device", "cpu"]
TINY = [*SMALL, "--d-model", "16", "--d-ff", "16", "--n-heads", "2", "--batch-size", "8"]


def measured(name, text):
    return [float(x) for x in re.findall(rf"eval .*{name} \|\s+([\d.]+)", text)]


def test_it_trains_saves_answers_and_resumes(tmp_path, capsys):
    """The loss falls, a word comes letter by letter, beams are listed, a second run goes on."""
    args = [*TINY, "--output-dir", str(tmp_path / "run"), "--eval-every", "20"]
    right = reverse.main([*args, "--steps", "40"])
    first = capsys.readouterr().out
    reverse.main([*args, "--steps", "60"])
    second = capsys.readouterr().out

    losses = measured("loss", first)
    assert len(losses) == 3
    assert losses == sorted(losses, reverse=True)
    assert "sequence accuracy" in first
    assert "At step 40, a word it has not seen" in first
    assert (
        len(re.findall(r"^ *[a-z]{1,4} -> [a-z]* +-\d+\.\d{3}( +wrong: [a-z]+)?$", first, re.M))
        == 10
    )
    assert f"\n{right:.1%} of 20 words are right." in first
    assert f"files are in {tmp_path / 'run'}" in first
    assert "Resumed" in second
    assert "At step 60, a word" in second
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {"train", "eval", "model.json"}


@pytest.mark.slow
def test_it_learns_to_turn_words_it_has_not_seen(tmp_path, capsys):
    """After 400 steps: of 200 words of up to 8 letters over nine in ten, and all evals say so."""
    settings = ["--length", "8", "--steps", "400", "--device", "cpu"]
    right = reverse.main([*settings, "--output-dir", str(tmp_path)])
    text = capsys.readouterr().out

    assert right > 0.9
    accuracies = measured("sequence accuracy", text)
    assert accuracies[0] == 0
    assert accuracies[-1] > 0.9
    word, answer = re.search(r"([a-z]+) -> ([a-z]+)\n\nMore", text).groups()
    assert answer == word[::-1]


def test_a_words_answer_is_its_letters_from_the_end_and_an_end_symbol():
    source, target, weights = next(reverse.Words(50, 5, seed=0))

    for s, t, w in zip(source.tolist(), target.tolist(), weights.tolist(), strict=True):
        n = len(reverse.spell(s))
        assert 1 <= n <= 5
        assert t == [*s[:n][::-1], reverse.END, *[reverse.PAD] * (5 - n)]
        assert w == [1] * (n + 1) + [0] * (5 - n)
    assert {np.count_nonzero(s) for s in source} == {1, 2, 3, 4, 5}
    assert source.max() < reverse.VOCAB_SIZE


def test_no_word_that_is_held_out_is_trained_on():
    """The word decides, so that no seed and no batch mixes the two."""
    trained, held_out = (
        {reverse.spell(s) for s in next(reverse.Words(2000, 3, 0, held_out=kind))[0]}
        for kind in (False, True)
    )

    assert not trained & held_out
    assert len(held_out) > 100


def test_words_are_the_same_whenever_they_are_asked_for():
    words = reverse.Words(4, 6, seed=0)
    batches = [next(words) for _ in range(5)]
    other = reverse.Words(4, 6, seed=0)
    other.load_state_dict({"n": 3})

    assert np.array_equal(next(other)[0], batches[3][0])
    assert other.state_dict() == {"n": 4}
    assert not np.array_equal(batches[0][0], batches[1][0])


def test_a_stream_ends_with_the_end_symbol_or_when_there_is_no_more_to_say():
    """Letters come one at a time, no more than the word has places."""
    model = models.Transformer(reverse.VOCAB_SIZE, 8, 8, 1, 1, n_heads=2, max_len=8)
    source = np.array([[2, 3, 4, 0]])
    model.init((torch.tensor(source), torch.tensor(source)), rng=0)
    last = model.sublayers[-1]
    taken = {}
    for symbol in (reverse.PAD, reverse.END, 5):
        with torch.no_grad():
            last.bias.zero_()
            last.bias[symbol] = 1e3
        taken[symbol] = list(reverse.stream(model, source))

    assert taken == {reverse.PAD: [], reverse.END: [], 5: ["d"] * 4}


def test_the_command_is_this_module():
    assert Path(reverse.__file__).stem == "reverse"
    assert reverse.parse([]).output_dir == "reverse"
