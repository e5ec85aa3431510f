"""Ctrl-C at a prompt ends what was typed, at a whole step, and not the session."""

import os
import subprocess
import sys

import pytest
import ranks
from programs import children, sessions

from trax_torch.supervised._checkpoint import storage


def step_in(folder):
    return storage.read(str(folder), "model")[1]["step"]


def test_ctrl_c_ends_a_run_and_the_session_goes_on(tmp_path):
    """After a step that is saved; as often as somebody presses it."""
    assert children.run(sessions.train, tmp_path) == 42
    assert step_in(tmp_path) == 20


def test_workers_outlive_ctrl_c_at_a_prompt(tmp_path):
    assert children.run(sessions.train_with_workers, tmp_path) == 42


def test_a_second_ctrl_c_does_not_wait_for_the_step(tmp_path):
    assert children.run(sessions.hang, tmp_path) == 42


def test_sigterm_ends_a_session(tmp_path):
    assert children.run(sessions.end, tmp_path) == 143
    assert step_in(tmp_path) == 7


TYPED = """
import os, signal
from toys import line_loop
from trax_torch.supervised.callbacks import TrainingStepCallback

class CtrlC(TrainingStepCallback):
    def on_step_begin(self, step):
        if step == 7:
            os.kill(os.getpid(), signal.SIGINT)

loop = line_loop({folder!r}, callbacks=[CtrlC])
loop.run(20)
print("at step", loop.step)
loop.run(until=20)
print("at step", loop.step)
"""


@pytest.mark.slow
def test_pythons_own_prompt_is_one(tmp_path):
    folder = str(tmp_path / "run")
    session = subprocess.run(
        [sys.executable, "-i", "-q"],
        input=TYPED.format(folder=folder),
        env={**os.environ, **ranks.environment()},
        capture_output=True,
        text=True,
        timeout=600,
    )

    assert session.returncode == 0
    assert "KeyboardInterrupt" in session.stderr
    assert "at step 7\n" in session.stdout
    assert "at step 20\n" in session.stdout
    assert step_in(folder) == 20
