"""What the README shows, runs."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"


def blocks():
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_a_plain_pytorch_model_trains_in_under_15_lines(tmp_path, monkeypatch, capsys):
    """The README's first example trains, saves, and, run again, goes on, to the last bit."""
    (code,) = [block for block in blocks() if "nn.Sequential" in block]
    assert len([line for line in code.splitlines() if line.strip()]) < 15
    monkeypatch.chdir(tmp_path)

    whole, first, second = {}, {}, {}
    exec(code.replace("run(100)", "run(200)").replace('"run"', '"whole"'), whole)
    exec(code, first)
    exec(code, second)

    losses = first["loop"].history.get("eval", "metrics/CrossEntropyLoss")
    assert losses[-1][1] < 0.5 * losses[0][1]
    assert second["loop"].step == 200
    for mine, other in zip(second["model"].parameters(), whole["model"].parameters(), strict=True):
        assert torch.equal(mine, other)
    assert "Resumed from run at step 100." in capsys.readouterr().out


@pytest.mark.slow
def test_a_trax_model_learns_to_copy_and_decodes(capsys):
    """The README's second example answers the prompt."""
    (code,) = [block for block in blocks() if "TransformerLM" in block]
    exec(code, {})

    answer = capsys.readouterr().out.rpartition("tensor(")[2]
    assert [int(n) for n in re.findall(r"\d+", answer)] == [5, 2, 7, 3, 11, 4, 9, 6]


def test_the_commands_are_those_that_ci_runs():
    text = README.read_text()
    for line in (
        "python3 -m venv .venv && .venv/bin/pip install . && "
        ".venv/bin/python -m trax_torch.examples.stdlib_lm",
        "python3 -m venv .venv && .venv/bin/pip install '.[test]' && .venv/bin/pytest",
    ):
        assert f"```sh\n{line}\n```" in text
