"""The settings of a run: checked once, printed, kept in checkpoints, and compared with theirs."""

import dataclasses
import inspect

import pytest
import torch
from torch import nn

from trax_torch.supervised import Loop, TrainTask
from trax_torch.supervised._loop import LoopConfig

APART = {"self", "model", "tasks", "eval_model", "eval_tasks", "callbacks", "loggers"}
OF_STEPS = {
    *("precision", "n_accumulation_steps", "compile", "on_nonfinite", "adasum", "strategy"),
    *("find_unused_parameters", "loss_chunk_size", "use_memory_efficient_trainer"),
    *("clip_grad_norm", "clip_grad_value", "activation_checkpointing"),
}


def make_loop(**settings):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    batches = [(torch.randn(4, 3), torch.randn(4, 1)) for _ in range(4)]
    task = TrainTask(batches, nn.MSELoss(), torch.optim.SGD(model.parameters(), 0.1))
    return Loop(model, task, random_seed=0, **settings)


def test_the_settings_are_the_arguments_of_loop():
    """All but models, tasks and callbacks, with the same defaults."""
    arguments = inspect.signature(Loop.__init__).parameters
    fields = {field.name: field.default for field in dataclasses.fields(LoopConfig)}

    assert set(fields) == set(arguments) - APART
    assert all(default == arguments[name].default for name, default in fields.items())


def test_settings_do_not_change():
    config = LoopConfig(precision="bf16")

    with pytest.raises(dataclasses.FrozenInstanceError):
        config.precision = None


def test_what_a_step_rests_on_is_plain_data_of_known_names():
    """The same on all ranks, and fit for a manifest."""
    of_steps = LoopConfig(use_memory_efficient_trainer=True).of_steps()

    assert set(of_steps) == OF_STEPS
    assert of_steps["use_memory_efficient_trainer"] == 1
    assert all(isinstance(x, (str, int, bool, type(None))) for x in of_steps.values())


def test_settings_of_steps_that_are_not_the_default_are_the_first_line(capsys, tmp_path):
    """And nothing is said of defaults, nor of what changes no step."""
    make_loop(n_accumulation_steps=2, on_nonfinite="skip")
    assert capsys.readouterr().out.splitlines()[0] == (
        "Settings: n_accumulation_steps=2, on_nonfinite='skip'"
    )

    make_loop(output_dir=str(tmp_path), background_saves=True)
    assert "Settings" not in capsys.readouterr().out


def test_a_run_that_goes_on_with_other_settings_says_so(capsys, tmp_path):
    """It goes on all the same."""
    make_loop(output_dir=str(tmp_path)).run(1)
    capsys.readouterr()

    loop = make_loop(output_dir=str(tmp_path), n_accumulation_steps=2)
    assert (
        "It was saved with n_accumulation_steps=1, and goes on with n_accumulation_steps=2."
        in capsys.readouterr().out
    )
    assert loop.step == 1

    loop.run(1)
    loop.save_checkpoint("model")
    capsys.readouterr()
    make_loop(output_dir=str(tmp_path), n_accumulation_steps=2)
    assert "It was saved with" not in capsys.readouterr().out


def test_checkpoints_that_keep_no_settings_go_on(capsys, monkeypatch, tmp_path):
    """As those of earlier versions."""
    with monkeypatch.context() as patch:
        patch.setattr(LoopConfig, "of_steps", lambda config: {})
        make_loop(output_dir=str(tmp_path)).run(1)
    capsys.readouterr()

    loop = make_loop(output_dir=str(tmp_path), n_accumulation_steps=2)

    assert loop.step == 1
    assert "It was saved with" not in capsys.readouterr().out
