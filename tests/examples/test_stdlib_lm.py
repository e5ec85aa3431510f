"""The main job, in small."""

import functools
import re
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch

from trax_torch.examples import stdlib_lm
from trax_torch.supervised._checkpoint import storage

SMALL = [
    *("--d-model", "16", "--d-ff", "32", "--n-layers", "1", "--n-heads", "2"),
    *("--length", "32", "--batch-size", "8", "--learning-rate", "0.01", "--device", "cpu"),
]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat. " * 400)
    return str(path)


def test_it_learns_saves_completes_and_resumes(tmp_path, text, capsys):
    """Bits per byte fall, a sample comes, and a second run goes on where the first ended."""
    args = [*SMALL, "--text", text, "--output-dir", str(tmp_path / "run"), "--eval-every", "20"]
    bits = stdlib_lm.main([*args, "--steps", "60", "--prompt", "the c", "--temperature", "0"])
    first = capsys.readouterr().out
    assert stdlib_lm.main([*args, "--steps", "60"]) == bits  # it is done
    capsys.readouterr()
    again = stdlib_lm.main([*args, "--steps", "75"])
    second = capsys.readouterr().out

    measured = [float(x) for x in re.findall(r"eval .*bits per byte \|\s+([\d.]+)", first)]
    assert measured[0] > 7
    assert measured == sorted(measured, reverse=True)
    assert bits == pytest.approx(measured[-1])
    assert bits < 4
    assert re.search(r"\nthe c.+\n", first)
    assert f"files are in {tmp_path / 'run'}" in first
    assert "at step 60." in second
    assert "Held out at step 75" in second
    assert again < bits
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {"train", "eval", "model.json"}


def test_what_writes_is_what_is_in_the_folder_it_names(tmp_path, text, monkeypatch):
    """Also where the last step is not one at which a checkpoint is due."""
    folder, written_with = tmp_path / "run", []
    complete = stdlib_lm.complete

    def look(model, *args):
        written_with.append({k: v.clone() for k, v in model.state_dict().items()})
        return complete(model, *args)

    monkeypatch.setattr(stdlib_lm, "complete", look)
    args = [*SMALL, "--text", text, "--output-dir", str(folder), "--eval-every", "20"]
    stdlib_lm.main([*args, "--steps", "23"])
    parts, info = storage.read(str(folder), "model")

    assert info["step"] == 23
    assert sorted(parts["weights"]) == sorted(written_with[0])
    assert all(torch.equal(written_with[0][name], x) for name, x in parts["weights"].items())


def on_rank(rank, args):
    return stdlib_lm.main(args)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="no torch.distributed")
def test_two_ranks_learn_what_one_does(tmp_path, text):
    """From the same batches, of which each takes half; one of them speaks."""
    args = [*SMALL, "--text", text, "--eval-every", "20", "--steps", "40"]
    one, two = ([*args, "--output-dir", str(tmp_path / name)] for name in ("one", "two"))
    (alone,) = ranks.values(tmp_path / "1", 1, functools.partial(on_rank, args=one))
    together = ranks.values(tmp_path / "2", 2, functools.partial(on_rank, args=two))

    assert together[0] == together[1] == pytest.approx(alone, rel=1e-3)
    said = [(tmp_path / "2" / f"rank{rank}.out").read_text() for rank in (0, 1)]
    assert "Held out at step 40" in said[0]
    assert said[1] == ""


def test_the_standard_library_is_split_by_file():
    """No test of the library, nothing installed beside it, and a twentieth held out."""
    train, held_out = stdlib_lm.read_texts(None)

    assert train.size > 5_000_000
    assert 0.01 < held_out.size / train.size < 0.2
    assert b"import" in held_out.tobytes()


def test_a_folder_of_texts_is_read_and_an_empty_one_refused(tmp_path):
    with pytest.raises(SystemExit, match="too little text"):
        stdlib_lm.read_texts(str(tmp_path))
    for i in range(20):
        (tmp_path / f"{i:02}.txt").write_text(f"file {i:02}")

    train, held_out = stdlib_lm.read_texts(str(tmp_path))

    assert held_out.tobytes() == b"file 19"
    assert train.tobytes().startswith(b"file 00\nfile 01")


def test_windows_are_the_same_whenever_they_are_asked_for():
    text = np.arange(100, dtype=np.uint8)
    windows = stdlib_lm.Windows(text, 4, 10, seed=0)
    batches = [next(windows) for _ in range(5)]
    other = stdlib_lm.Windows(text, 4, 10, seed=0)
    other.load_state_dict({"n": 3})

    assert np.array_equal(next(other)[0], batches[3][0])
    assert other.state_dict() == {"n": 4}
    inputs, targets, weights = batches[0]
    assert np.array_equal(inputs, targets)
    assert np.array_equal(np.diff(inputs), np.ones((4, 9)))
    assert weights.shape == (4, 10)
    assert next(stdlib_lm.Windows(text[:3], 2, 10, seed=0))[0].shape == (2, 10)


def test_the_readme_command_is_this_module():
    assert Path(stdlib_lm.__file__).stem == "stdlib_lm"
    assert stdlib_lm.parse([]).output_dir == "stdlib_lm"
