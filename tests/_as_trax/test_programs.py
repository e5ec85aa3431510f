"""Programs written for Trax, of the kinds that are public, run as they are, and reach what is said.

They lie in programs/trax: they import `trax`, and know nothing of this library.
"""

import runpy
from pathlib import Path

import numpy as np
import pytest

PROGRAMS = Path(__file__).parents[1] / "programs" / "trax"


@pytest.fixture
def run(trax, tmp_path, monkeypatch):
    """Runs a program in a folder of its own, and returns its names."""
    monkeypatch.chdir(tmp_path)
    return lambda name: runpy.run_path(str(PROGRAMS / f"{name}.py"), run_name="__main__")


@pytest.mark.slow
def test_tweets_are_told_apart(run):
    names = run("sentiment")

    assert names["test_accuracy"] > 0.95
    assert names["answers"] == (1, 0)
    assert names["slope"] == pytest.approx(30.0)
    assert names["made_by_hand"].shape == (1, 10)


@pytest.mark.slow
def test_a_character_model_learns_its_lines(run):
    """In a new model, filled from the file that the loop wrote; as if by chance it were 256."""
    names = run("characters")

    assert names["perplexity"] < 14
    assert names["line"][0] == "t"


@pytest.mark.slow
def test_names_in_sentences_are_tagged(run):
    names = run("entities")

    assert names["accuracy"] > 0.97
    assert names["tagged"] == ["O", "O", "B-geo", "B-per", "O"]


@pytest.mark.slow
def test_questions_that_mean_the_same_are_found(run):
    """The triplet loss gives 0.5 for two pairs whose answer is known by hand."""
    names = run("duplicates")

    assert names["accuracy"] > 0.9
    assert [float(x) for x in names["checked"]] == pytest.approx([0.5, 0.5])


@pytest.mark.slow
def test_sentences_are_translated(run):
    """Each word plus 1, greedily, and by the sample that is most like the others."""
    names = run("translation")

    assert names["accuracy"] > 0.97
    assert names["translation"] == [6, 10, 5, 1]
    assert names["consensus"] == [8, 4, 1]
    assert names["first_symbols"] == [6, 6]
    assert -0.2 < names["log_prob"] < 0


@pytest.mark.slow
def test_texts_are_summed_up(run):
    """By attention written by hand."""
    names = run("summarizer")

    assert names["accuracy"] > 0.97
    assert names["summary"] == [*names["text"][:2], 1]


@pytest.mark.slow
def test_the_quick_start_is_what_it_says(run):
    names = run("quick_start")

    assert names["accuracy"] > 0.95
    assert names["product"].tolist() == [12.0, 15.0, 18.0]
    assert names["gradient"] == pytest.approx(20.0)
    assert names["embedded"].shape == (15, 32)
    assert names["sentiment"].shape == (1, 2)


@pytest.mark.slow
def test_pictures_are_told_apart(run):
    names = run("fashion")

    assert names["accuracy"] > 0.95
    assert names["told"] == names["kind"]


def test_layers_one_by_one_give_what_is_written_beside_them(run):
    names = run("layers_intro")

    assert names["rectified"].tolist() == [[0, 0, 0, 1, 2], [0, 0, 0, 10, 20]]
    assert names["side_by_side"].shape == (2, 10)
    assert names["below"].shape == (6, 5)
    assert names["mixed"].tolist() == [-10.0, -20.0, -30.0, 1.0, 2.0, 3.0]
    assert np.allclose(names["normed"].mean(axis=-1), 0, atol=1e-6)
    assert np.array_equal(names["in_series"], np.maximum(names["normed"], 0))
    assert names["y1"].tolist() == (names["x"] * 100.0).tolist()
    assert names["divisors"].tolist() == [1, 2, 1, 2, 5, 2, 1, 2, 1, 10]
    assert names["sums"].tolist() == [11, -18, 33]
    assert names["largest"].tolist() == [10, 2, 30]
    assert names["flat"].shape == (1, 2, 12)
    assert np.allclose(names["curved"], names["by_hand"], rtol=1e-5)
    assert np.allclose(np.exp(names["log_probs"]).sum(axis=-1), 1)
    arrays = ("rectified", "below", "normed", "y0", "sums", "curved", "log_probs")
    assert all(isinstance(names[name], np.ndarray) for name in arrays)


@pytest.mark.slow
def test_a_pretrained_model_decodes_words(run):
    """From its own file, by subwords of a vocabulary's; symbols look words up."""
    names = run("pretrained")

    assert names["tokenized"].tolist() == [4, 7, 8, 1]
    assert names["sample"].tolist() == [[4, 7, 8, 1]]
    assert names["detokenized"] == names["sentence"]
    assert names["looked_up"] == ["nice", "new", "things", "<EOS>_"]
    assert names["classes"].sum() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.slow
def test_a_reformer_talks(run):
    """It counts on; the first word of a dialogue cannot be known, so 0.893 is all there is."""
    names = run("reformer_chat")

    assert names["accuracy"] > 0.8
    assert names["first"].tolist() == [3, 4, 5, 6, 7, 8, 9]
    assert names["second"].tolist() == [6, 7, 8, 9, 10, 11, 12]


def test_every_program_is_run():
    """A file here is named in a test above."""
    source = Path(__file__).read_text()

    programs = sorted(PROGRAMS.glob("*.py"))
    assert [p.stem for p in programs if f'run("{p.stem}")' not in source] == []
    for program in programs:
        assert "trax_torch" not in program.read_text()
    assert len(programs) == 11
