"""Sessions at a prompt, in which somebody presses Ctrl-C: told apart by their exit code."""

import os
import signal
import sys
import threading
import time

import torch
from torch import nn
from toys import line_loop

from trax_torch.supervised import Loop, TrainTask
from trax_torch.supervised.callbacks import TrainingStepCallback


class CtrlC(TrainingStepCallback):
    """Somebody presses Ctrl-C in steps 7 and 12: a terminal sends it to the group of processes."""

    def on_step_begin(self, step):
        if step in (7, 12):
            os.killpg(0, signal.SIGINT)


class Hanging(TrainingStepCallback):
    """Step 3 hangs the first time, and somebody presses Ctrl-C, and once more when that is late."""

    hangs = True

    def on_step_begin(self, step):
        if step == 3 and Hanging.hangs:
            Hanging.hangs = False
            threading.Thread(target=self._press, daemon=True).start()
            time.sleep(600)

    def _press(self):
        os.kill(os.getpid(), signal.SIGINT)
        while self._loop._stopping._stopper.signum is None:
            time.sleep(0.01)
        time.sleep(1.5)  # within a second after the first was heard, it would be its echo
        os.kill(os.getpid(), signal.SIGINT)


def _interrupted(loop, *args, **kwargs):
    """Runs what is typed, and says whether it ended as Ctrl-C does at a prompt."""
    try:
        loop.run(*args, **kwargs)
    except KeyboardInterrupt:
        return True
    return False


def train(folder):
    """Two runs are interrupted, a third one is not; Ctrl-C between them is nobody's."""
    os.setsid()
    sys.ps1 = ">>> "
    loop = line_loop(folder, callbacks=[CtrlC])
    assert _interrupted(loop, until=20)
    assert loop.step == 7
    assert _interrupted(loop, until=20)
    assert loop.step == 12
    assert not _interrupted(loop, until=20)
    assert loop.step == 20
    sys.exit(42)


def train_with_workers(folder):
    """The loader's workers hear it as well, and are needed by the next run."""
    os.setsid()
    sys.ps1 = ">>> "
    x = torch.randn(64, 3)
    data = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))
    model = nn.Linear(3, 1)
    loader = torch.utils.data.DataLoader(data, 2, num_workers=2)
    task = TrainTask(loader, nn.MSELoss(), torch.optim.SGD(model.parameters(), 0.01))
    loop = Loop(model, task, callbacks=[CtrlC], progress=False)
    assert _interrupted(loop, until=20)
    try:
        os.killpg(0, signal.SIGINT)  # at the prompt
        time.sleep(1)
    except KeyboardInterrupt:
        pass
    assert _interrupted(loop, until=20)
    assert loop.step == 12
    assert not _interrupted(loop, until=20)
    assert loop.step == 20
    sys.exit(42)


def hang(folder):
    """A second Ctrl-C does not wait for the step, and the session lives on."""
    sys.ps1 = ">>> "
    loop = line_loop(folder, callbacks=[Hanging])
    start = time.monotonic()
    assert _interrupted(loop, until=6)
    assert time.monotonic() - start < 300
    assert loop.step == 2
    loop.run(until=6)
    assert loop.step == 6
    sys.exit(42)


def end(folder):
    """SIGTERM ends the process, as everywhere."""
    sys.ps1 = ">>> "
    loop = line_loop(folder)
    loop.callbacks.append(_Term(loop))
    loop.run(20)
    sys.exit(42)


class _Term(TrainingStepCallback):
    def on_step_begin(self, step):
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
