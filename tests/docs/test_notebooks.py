"""Notebooks run as a reader would run them, and show what is stored in them."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="reads notebooks: pip install nbclient")
pytest.importorskip("nbclient", reason="runs notebooks: pip install nbclient")
pytest.importorskip("ipykernel", reason="runs notebooks: pip install ipykernel")
pytest.importorskip("ipywidgets", reason="draws the bar: pip install ipywidgets")
pytest.importorskip("matplotlib", reason="draws the pictures: pip install matplotlib")

import notebooks  # noqa: E402  it needs them

ROOT = Path(__file__).parents[2]
STORED = sorted(notebooks.FOLDER.glob("*.ipynb"))
# In each: how often a bar and a picture are shown.
SHOWN = {"character_model": (1, 1), "digits": (2, 2), "translator": (1, 2)}


def run(name, folder):
    """The text of each cell that shows something, of a notebook that is run now."""
    made = notebooks.executed(notebooks.FOLDER / f"{name}.ipynb", folder)
    n_bars = len(notebooks.bars_of(made))
    check(notebooks.kept(made))
    assert n_bars == SHOWN[name][0]
    return [notebooks.text_of(cell) for cell in made.cells if cell.get("outputs")]


def check(notebook):
    """Looks for what belongs in no stored notebook; counts its bars and pictures."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [out for cell in cells for out in cell.outputs]

    assert [
        out for out in outputs if out.output_type == "error" or out.get("name") == "stderr"
    ] == []
    said = "\n".join(map(notebooks.text_of, cells))
    for stranger in ("/home/", "/root/", "/Users/", "/tmp/", str(ROOT), "Warning"):
        assert stranger not in said
    assert {kind for out in outputs for kind in out.get("data", ())} <= {"text/plain", "image/png"}
    assert all(cell.execution_count for cell in cells)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    bars = re.findall(r"\d+% \|.*\| \d+/\d+ \[loss=[\d.]+\]", said)
    pictures = [out for out in outputs if "image/png" in out.get("data", {})]
    return len(bars), len(pictures)


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_a_notebook_is_stored_with_what_it_shows_and_nothing_of_a_machine(path):
    """Each cell was run; no path, warning or widget is left, and bars and pictures are there."""
    stored = nbformat.read(path, as_version=4)
    nbformat.validate(stored)

    assert check(stored) == SHOWN[path.stem]
    assert path.stat().st_size < 200_000


def test_all_notebooks_are_run():
    assert {path.stem for path in STORED} == set(SHOWN)


@pytest.mark.slow
def test_the_character_model_learns_under_one_bar_and_writes(tmp_path):
    """Under 4 bits a character, of 6.6 before; and goes on with what it was given."""
    *_, bits, written, streamed = run("character_model", tmp_path)

    before, after = map(float, re.findall(r"([\d.]+) bits per character", bits))
    assert after < 4 < 6 < before
    assert written.count("def __init__(self") >= 3
    assert len(streamed) == 80


@pytest.mark.slow
def test_the_classifier_goes_on_in_a_new_kernel_bit_for_bit(tmp_path):
    """The kernel is restarted in the middle; a run without that has the same weights."""
    pytest.importorskip("sklearn", reason="brings the digits")
    first, _, second, _, same, _, wrong = run("digits", tmp_path)

    assert "120/120" in first
    assert "The kernel knows a loop: False\nResumed from digits_run at step 120." in second
    assert re.search(r"Stopped: accuracy has not improved for 4 evals", second)
    assert "The same weights: True" in same
    assert int(re.match(r"\d+", wrong)[0]) < 120  # of 597


@pytest.mark.slow
def test_the_translator_finds_numbers_it_never_saw(tmp_path):
    """By beams, whose tree is printed, with attention by the names of layers."""
    *_, tree, exam, layers, _ = run("translator", tmp_path)

    assert "sieben tausend neun hundert zwei und vierzig" in tree
    assert "`- <end>  1st: " in tree
    assert int(re.search(r"(\d+) of 200 are right", exam)[1]) > 120
    assert len(re.findall(r"\(1, 2, \d, \d\)", layers)) == 3
