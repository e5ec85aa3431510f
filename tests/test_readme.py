"""What the README shows, runs."""

import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

README = Path(__file__).parents[1] / "README.md"


def blocks():
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_a_plain_pytorch_model_trains_in_under_15_lines(tmp_path, monkeypatch, capsys):
    """The README's first example trains, saves, and, run again, is done; asked for more, goes on.

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


def test_what_the_plain_example_trained_is_loaded_and_exported(tmp_path, monkeypatch):
    (train,) = [block for block in blocks() if "TrainTask(loader, nn." in block]
    (load,) = [block for block in blocks() if "load_weights" in block]
    monkeypatch.chdir(tmp_path)

    exec(train, trained := {})
    exec(load, loaded := {})

    exported = load_file("model.safetensors")
    for name, weight in trained["model"].state_dict().items():
        assert torch.equal(loaded["model"].state_dict()[name], weight)
        assert torch.equal(exported[name], weight)


@pytest.mark.slow
def test_a_trax_model_learns_to_copy_and_decodes(capsys):
    """The README's second example answers the prompt."""
    (code,) = [block for block in blocks() if "TransformerLM" in block]
    exec(code, {})

    answer = capsys.readouterr().out.rpartition("tensor(")[2]
    assert [int(n) for n in re.findall(r"\d+", answer)] == [5, 2, 7, 3, 11, 4, 9, 6]


@pytest.mark.parametrize("example", ["hugging_face_finetune", "timm_classifier"])
def test_lines_of_other_libraries_are_those_of_a_program_that_is_tested(example):
    """examples/test_ecosystem_examples.py runs it."""
    source = (README.parent / "trax_torch" / "examples" / f"{example}.py").read_text()
    marked = source.partition("    # The lines that matter:\n")[2].partition("    # and that")[0]

    assert marked
    assert textwrap.dedent(marked) in blocks()
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
    """The README's pipeline, cut after its first batch, goes on with the second one."""
    (code,) = [block for block in blocks() if "data.Serial" in block]
    dataset = [(np.arange(1 + i % 40), np.arange(i % 3 + 1)) for i in range(500)]
    exec(code, first := {"dataset": dataset})
    exec(code, second := {"dataset": dataset})

    inputs, targets, weights = next(first["batches"])
    assert inputs.shape[0] == targets.shape[0] == weights.shape[0]
    second["batches"].load_state_dict(first["batches"].state_dict())
    for mine, other in zip(next(second["batches"]), next(first["batches"]), strict=True):
        np.testing.assert_array_equal(mine, other)
