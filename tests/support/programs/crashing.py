"""Training that is killed at any time, and says what it has saved."""

import os
import resource

import pytest
import torch
from toys import assert_same_run, line_loop, state_of, train_task

from trax_torch._errors import CheckpointError
from trax_torch.supervised._checkpoint import storage


def make_loop(folder, background=False, **kwargs):
    """Returns a loop that saves often, and under several names."""
    return line_loop(
        folder,
        dropout=0.3,
        task=train_task(n_steps_per_checkpoint=2, n_steps_per_permanent_checkpoint=4),
        eval_at=lambda step: step % 20 == 0,
        checkpoint_low_metric="L2Loss",
        keep_last=2,
        background_saves=background,
        **kwargs,
    )


def train_and_tell(folder, background):
    """Trains until it is killed; a line of the file `said` is a save that is done."""
    said = os.open(f"{folder}.said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    save = storage.Folder.save

    def save_and_tell(self, basename, parts, info, *more):
        generation = save(self, basename, parts, info, *more)
        os.write(said, f"{basename} {info['step']}\n".encode())
        return generation

    storage.Folder.save = save_and_tell
    make_loop(folder, background).run(10**6)


AT = {
    "dropout": 0.3,
    "eval_at": lambda step: False,
    "checkpoint_at": lambda step: False,
    "save_at_end": False,
}


def breaks_off(loop, twin, reason):
    """Takes a step and saves; returns whether that was refused, for a reason; all is kept."""
    loop.run(1)
    twin.run(1)
    before, saved = state_of(loop), step_in(loop.output_dir)
    try:
        loop.save_checkpoint("model")
        wanted, text = loop.step, ""
    except CheckpointError as error:
        wanted, text = saved, str(error)
    assert all(torch.equal(before[key], value) for key, value in state_of(loop).items())
    assert step_in(loop.output_dir) == wanted
    assert not text or (loop.output_dir in text and reason in text), text
    return bool(text)


def step_in(folder):
    found = storage.read(str(folder), "model")
    return found and found[1]["step"]


def save_under_limits(path):
    """Saves while no file may have more than so many bytes, from few to enough."""
    loop, twin = line_loop(path / "run", **AT), line_loop(**AT)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    limit, is_refused = 0, True
    while is_refused:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            is_refused = breaks_off(loop, twin, "File too large")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        limit += 100
        loop.save_checkpoint("model")
        assert step_in(loop.output_dir) == loop.step
    assert limit > 500
    assert_same_run(line_loop(path / "run", **AT), twin)


def save_as_nobody(path):
    """Saves into a folder that is ours but cannot be written to for a while; and one of root's."""
    first = line_loop(path / "first", **AT)  # modules are loaded late, from what is root's alone
    first.run(2)
    first.save_checkpoint("model")
    line_loop(path / "first", **AT)
    os.setgid(12345)
    os.setuid(12345)
    loop, twin = line_loop(path / "ours", **AT), line_loop(**AT)
    loop.save_checkpoint("model")
    os.chmod(path / "ours", 0o555)
    assert breaks_off(loop, twin, "Permission denied")
    os.chmod(path / "ours", 0o755)
    loop.save_checkpoint("model")
    assert_same_run(line_loop(path / "ours", **AT), twin)
    with pytest.raises(CheckpointError, match="theirs cannot be written to"):
        line_loop(path / "theirs", **AT)
