"""What the README shows, runs."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

README = Path(__file__).parents[1] / "README.md"
DOCS = README.parent / "docs"


def blocks(page=README):
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


def test_it_is_short_and_what_it_leads_to_is_there():
    """Three examples, and its pages, notebooks and picture."""
    text = README.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if not link.startswith("https:")]

    assert len(text.splitlines()) < 200
    assert len(blocks()) == 3
    assert [link for link in links if not (README.parent / link).is_file()] == []
    assert "docs/pictures/flagship.png" in links


def test_what_none_of_the_others_has_is_shown_by_tests():
    """Each line of that table; test_docs.py looks whether they exist."""
    table = README.read_text().partition("## What none of the others has")[2].partition("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")][2:]

    assert len(lines) >= 5
    assert [line for line in lines if not re.search(r"\| `[\w/]+\.py::test_\w+` \|$", line)] == []


def test_code_of_trax_runs_as_it_is(tmp_path):
    """The README's first example, in a process of its own, since `trax` is all of it."""
    (code,) = [block for block in blocks() if "import trax_torch.as_trax" in block]
    (tmp_path / "signs.py").write_text(code)

    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "signs.py"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    accuracy = re.findall(r"Step +200: eval +WeightedCategoryAccuracy \| +([\d.]+)", done.stdout)
    assert float(accuracy[0]) > 0.9


def test_a_plain_pytorch_model_trains_in_under_15_lines(tmp_path, monkeypatch, capsys):
    """The README's second example trains, saves, and, run again, is done; asked for more, goes on.

    It ends, to the last bit, as one that was asked for all at once.
    """
    (code,) = [block for block in blocks() if "TrainTask(loader, nn." in block]
    assert len([line for line in code.splitlines() if line.strip()]) < 15
    monkeypatch.chdir(tmp_path)

    more = code.replace("run(until=100)", "run(until=200)")
    whole, first, again, second = {}, {}, {}, {}
    exec(more.replace('"run"', '"whole"'), whole)
    exec(code, first)
    exec(code, again)
    exec(more, second)

    losses = first["loop"].history.get("eval", "metrics/CrossEntropyLoss")
    assert losses[-1][1] < 0.5 * losses[0][1]
    assert [x["loop"].step for x in (first, again, second)] == [100, 100, 200]
    for mine, other in zip(second["model"].parameters(), whole["model"].parameters(), strict=True):
        assert torch.equal(mine, other)
    assert "Resumed from run at step 100." in capsys.readouterr().out


@pytest.mark.slow
def test_a_trax_model_learns_to_copy_and_decodes(capsys):
    """The README's third example answers the prompt."""
    (code,) = [block for block in blocks() if "TransformerLM" in block]
    exec(code, {})

    answer = capsys.readouterr().out.rpartition("tensor(")[2]
    assert [int(n) for n in re.findall(r"\d+", answer)] == [5, 2, 7, 3, 11, 4, 9, 6]


@pytest.mark.parametrize("example", ["hugging_face_finetune", "timm_classifier"])
def test_lines_of_other_libraries_are_those_of_a_program_that_is_tested(example):
    """On the page of other libraries; examples/test_ecosystem_examples.py runs it."""
    source = (README.parent / "trax_torch" / "examples" / f"{example}.py").read_text()
    marked = source.partition("    # The lines that matter:\n")[2].partition("    # and that")[0]

    assert marked
    assert textwrap.dedent(marked) in blocks(DOCS / "ecosystem.md")
    assert f"trax_torch.examples.{example}" in source


def test_the_commands_are_those_that_ci_runs():
    text = README.read_text()
    for line in (
        "python3 -m venv .venv && .venv/bin/pip install . && "
        ".venv/bin/python -m trax_torch.examples.stdlib_lm",
        "python3 -m venv .venv && .venv/bin/pip install '.[test]' && .venv/bin/pytest",
    ):
        assert f"```sh\n{line}\n```" in text


def test_a_pipeline_gives_batches_and_keeps_its_place():
    """The pipeline on its page, cut after its first batch, goes on with the second one."""
    (code,) = [block for block in blocks(DOCS / "pipelines.md") if "data.Serial" in block]
    dataset = [(np.arange(1 + i % 40), np.arange(i % 3 + 1)) for i in range(500)]
    exec(code, first := {"dataset": dataset})
    exec(code, second := {"dataset": dataset})

    inputs, targets, weights = next(first["batches"])
    assert inputs.shape[0] == targets.shape[0] == weights.shape[0]
    second["batches"].load_state_dict(first["batches"].state_dict())
    for mine, other in zip(next(second["batches"]), next(first["batches"]), strict=True):
        np.testing.assert_array_equal(mine, other)
