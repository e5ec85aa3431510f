"""Runs and saves of which each rank has a part, for forked ranks."""

import contextlib
import errno
import functools
import json
import os
import signal
import time

import numpy as np
import pytest
import torch
from saboteur import Saboteur
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from toys import line_loop

from trax_torch import _distributed, _roll_call, optimizers
from trax_torch import layers as tl
from trax_torch._errors import CheckpointError, RankError
from trax_torch.supervised import EvalTask, TrainTask, share_of
from trax_torch.supervised._checkpoint import saver, storage
from trax_torch.supervised.history import History


def rows(seed=0, n=12):
    """Batches that each number of ranks up to 4 can share evenly."""
    i = 0
    while True:
        rng = np.random.default_rng([seed, i])
        x = rng.normal(size=(n, 6))
        y = np.tanh(x[:, :1] * x[:, 1:2])
        yield tuple(map(torch.from_numpy, (x, y, np.ones((n, 1)))))
        i += 1


def model():
    """Weights of which ranks hold unequal parts, some none, in float64."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 1)
    ).double()


def make_loop(rank, size, folder, strategy="fsdp", **kwargs):
    def task(seed, kind, *more):
        return kind(share_of(rows(seed), rank, size), tl.L2Loss(), *more)

    return line_loop(
        folder,
        model=model(),
        task=task(0, TrainTask, optimizers.Adam(0.01)),
        evals=task(1, EvalTask),
        checkpoint_at=lambda step: step % 4 == 0,
        strategy=strategy,
        device="cpu",
        **kwargs,
    )


def run(rank, size, folder, until, **kwargs):
    """Trains to a step; returns the weights."""
    loop = make_loop(rank, size, folder, **kwargs)
    loop.run(until=until)
    return weights_of(loop.model)


def weights_of(module):
    tensors = module.state_dict().items()
    return {name: _distributed.whole(tensor).numpy().copy() for name, tensor in tensors}


# What a saver saves, without a run.

LAYOUTS = {
    "rows": ((4,), [Shard(0)]),
    "columns": ((4,), [Shard(1)]),
    "replicas of shards": ((2, 2), [Replicate(), Shard(0)]),
    "two axes": ((2, 2), [Shard(1), Shard(0)]),
    "one axis twice": ((2, 2), [Shard(0), Shard(0)]),
    "replicas": ((4,), [Replicate()]),
}
TYPES = (torch.float32, torch.bfloat16, torch.complex64, torch.int16)


def whole_of(step, shape=(7, 6), dtype=torch.float32):
    n = int(np.prod(shape))
    return (torch.arange(n).reshape(shape) + step).to(dtype)


def cut_tensor(tensor, layout):
    shape, placements = LAYOUTS[layout]
    mesh = init_device_mesh("cpu", shape)
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)


def save_layouts(rank, folder):
    """Saves tensors in each layout and type, reads them in each other; returns what differs."""
    world = _distributed.join()
    names = {f"{a} {b}": (a, b) for a in LAYOUTS for b in TYPES}
    tensors = {n: cut_tensor(whole_of(0, dtype=b), a) for n, (a, b) in names.items()}
    tensors["empty"] = cut_tensor(torch.empty(0, 3), "rows")
    parts = {"weights": tensors, "state": {"plain": torch.tensor(3)}, "opt_slots0": {}}
    first = saver.Saver(folder, world, has_stand_in=True)
    first.save(["model"], parts, INFO, History(), blocking=True)
    differences = []
    for layout in LAYOUTS:
        likes = {n: cut_tensor(whole_of(1, dtype=b), layout) for n, (_, b) in names.items()}
        like = functools.partial(like_of, likes)
        found = saver.read(folder, "model", world, like)[0]
        for name, other in likes.items():
            there = found["weights"][name]
            wanted = cut_tensor(whole_of(0, dtype=other.dtype), layout)
            if not torch.equal(there.to_local(), wanted.to_local()):
                differences.append(f"{name} as {layout}")
        assert found["weights"]["empty"].shape == (0, 3)
        assert found["state"]["plain"] == 3
    return differences


def like_of(likes, part, name, shape):
    return likes.get(name)


INFO = {
    **{"step": 1, "reported_step": 0, "seed": 0, "n_rngs": 0, "world_size": 1, "settings": {}},
    "members": {"tasks": [], "extra": {}, "callbacks": {}},
    "ranks": [{"tasks": [], "evals": [], "tallies": []}],
}


def parts_at(step, mesh):
    def cut(shape):
        return distribute_tensor(whole_of(step, shape), mesh, [Shard(0)])

    weights = {"w": cut((5, 2)), "b": cut((3,))}
    return {
        "weights": weights,
        "state": {"n": torch.tensor(step)},
        "opt_slots0": {"w.m": cut((5, 2)), "w.step": torch.tensor(float(step))},
    }


def step_in(folder, name="model"):
    """The step of a checkpoint, all of which is of that step."""
    parts, info = storage.read(str(folder), name)
    step = info["step"]
    for part, tensors in parts.items():
        for key, tensor in tensors.items():
            if tensor.dim():
                assert torch.equal(tensor, whole_of(step, tensor.shape)), (part, key)
            else:
                assert tensor == step
    assert {part: len(tensors) for part, tensors in parts.items()} == {
        "weights": 2,
        "state": 1,
        "opt_slots0": 2,
    }
    assert info["history"]["_values"] == {
        "train": {"loss": [(i, 1 / i) for i in range(1, step + 1)]}
    }
    return step


def files_of(folder):
    """The files that the manifests of a folder list, and themselves, and the lock."""
    found = {".lock"}
    for path in folder.glob("*.json"):
        manifest = json.loads(path.read_text())
        entries = [*manifest["files"].values(), manifest["history"]]
        entries += [entry for part in manifest["shards"].values() for entry in part["files"]]
        found |= {path.name, *(entry["name"] for entry in entries)}
    return sorted(found)


def history_at(step):
    history = History()
    for i in range(1, step + 1):
        history.append("train", "loss", i, 1 / i)
    return history


class Saves:
    """Saves of a few steps by all ranks, one of which is broken somewhere."""

    is_cut = False  # whether folders may be several

    def __init__(self, rank, folder, blocking, timeout=60):
        self.rank, self.folder, self.blocking = rank, str(folder), blocking
        self.world = _distributed.join(timeout=timeout)
        self.mesh = init_device_mesh("cpu", (self.world.size,))
        self.saver = saver.Saver(self.folder, self.world, keep_last=1, is_cut=self.is_cut)
        if not blocking:  # a rank that dies while groups are made is not noticed before the timeout
            self.saver._beside = self.world.aside()
        found = None if self.is_cut else storage.read_manifest(self.folder, "model")
        if found is not None and rank == 0:
            history = storage.read_history(self.folder, found)
            self.saver.goes_on_from("model", found, History.from_dict(history))

    def save(self, step, names=()):
        names, info = names or ["model", f"model_{step}"], {**INFO, "step": step}
        what = parts_at(step, self.mesh), info, history_at(step)
        self.saver.save(names, *what, self.blocking)
        self.saver.wait()

    def break_at(self, n, how, step, names=()):
        """Breaks the n-th call of this rank in a save; returns whether there was one."""
        with pytest.MonkeyPatch.context() as patch:
            saboteur = Saboteur(patch, n, how)
            with contextlib.suppress(CheckpointError, RankError):
                self.save(step, names)
        return saboteur.count >= n


def die_at(rank, folder, blocking, victim, n):
    """Saves the next step twice, as 'model' alone; at first a rank dies at a call of it."""
    saves = Saves(rank, folder, blocking)
    step = step_in(folder)
    if rank == victim:
        saves.break_at(n, "death", step + 1, ["model"])
    else:
        saves.save(step + 1, ["model"])


FATES = {"stopped": "SIGSTOP", "killed": "SIGKILL"}


def fall_in(rank, folder, blocking, victim, phase, fate, timeout):
    """Saves the next step; a rank is 'stopped', 'slow' or 'killed' when a phase begins.

    Returns:
      What was raised, as text, and when, by a clock that all read.
    """
    saves = Saves(rank, folder, blocking, timeout)
    begin, mark = _roll_call.Roll.phase, f"{folder}.stopped"

    @contextlib.contextmanager
    def phased(roll, name, is_told):
        with begin(roll, name, is_told):
            if rank == victim and name.startswith(phase) and not os.path.exists(mark):
                with open(mark, "w") as f:
                    f.write(str(time.monotonic()))
                if fate == "slow":
                    time.sleep(timeout + 3)
                else:
                    os.kill(os.getpid(), getattr(signal, FATES[fate]))
                    time.sleep(0.2)  # the signal may meet another thread first
            yield

    _roll_call.Roll.phase = phased  # in a process of its own
    said = ""
    try:
        saves.save(step_in(folder) + 1, ["model"])
    except (CheckpointError, RankError) as error:
        said = f"{type(error).__name__}: {error}"
    return said, time.monotonic()


def save_first(rank, folder):
    Saves(rank, folder, True).save(1, ["model"])


def save_again(rank, folder, blocking):
    Saves(rank, folder, blocking).save(step_in(folder) + 1, ["model"])


def fail_everywhere(rank, folder, blocking, victim, every=1):
    """Fails calls of a rank in a save, one after another; returns the steps that were left.

    Args:
      every: 1 fails each call; 3 fails the third, the sixth, and so on.
    """
    saves = Saves(rank, folder, blocking)
    saves.save(1)
    step, found, n = 1, [], 0
    while True:
        n += every
        is_broken = saves.break_at(n if rank == victim else 0, OSError, step + 1)
        if not saves.world.each(is_broken)[victim]:
            return found, step
        if rank == 0:
            found.append(step_in(folder) - step)
        saves.save(step + 2)
        step += 2


# Ranks of which each has a folder of its own.


def own_folder(folder, rank, n_beside=1):
    return f"{folder}_of_{rank // n_beside}"


def run_apart(rank, size, folder, until, n_beside, strategy="fsdp"):
    """Trains to a step, where so many ranks share a folder."""
    if strategy == "hsdp":
        os.environ["LOCAL_WORLD_SIZE"] = str(n_beside)
    return run(rank, size, own_folder(folder, rank, n_beside), until, strategy=strategy)


class SavesApart(Saves):
    """Saves of ranks of which each has a folder; they go on from what all have."""

    is_cut = True

    def __init__(self, rank, folder, blocking, timeout=60):
        super().__init__(rank, own_folder(folder, rank), blocking, timeout)
        self.step, manifest = self.read()
        if manifest:
            history = storage.read_history(self.folder, manifest)
            self.saver.goes_on_from("model", manifest, History.from_dict(history))

    def read(self):
        """Returns the step that all have, each its part of it, and the manifest."""
        likes = parts_at(-1, self.mesh)

        def like(part, name, shape):
            return likes[part][name] if shape else None

        parts, info, manifest = saver.read(self.folder, "model", self.world, like)
        if info is None:
            return 0, None
        wanted = parts_at(info["step"], self.mesh)
        for part, tensors in wanted.items():
            assert parts[part].keys() == tensors.keys()
            for name, tensor in tensors.items():
                mine, there = (_distributed.local(x) for x in (tensor, parts[part][name]))
                assert torch.equal(mine, there), (part, name)
        return info["step"], manifest


def die_apart(rank, folder, blocking, victim, n):
    """Saves the next step, in which a rank dies at a call; returns the step before."""
    saves = SavesApart(rank, folder, blocking)
    if rank == victim:
        saves.break_at(n, "death", saves.step + 1, ["model"])
    else:
        saves.save(saves.step + 1, ["model"])
    return saves.step


def go_on_apart(rank, folder, blocking):
    """Returns the step that all have, and saves the next one, which all then have."""
    saves = SavesApart(rank, folder, blocking)
    saves.save(saves.step + 1, ["model"])
    assert saves.read()[0] == saves.step + 1
    return saves.step


def full_apart(rank, folder, blocking, victim, every):
    """A rank's disk is full at a call of a save, one after another; returns the steps left."""
    saves, found, n = SavesApart(rank, folder, blocking), [], 0
    saves.save(1, ["model"])
    step = 1
    while True:
        n += every
        how = functools.partial(OSError, errno.ENOSPC)
        is_broken = saves.break_at(n if rank == victim else 0, how, step + 1, ["model"])
        if not saves.world.each(is_broken)[victim]:
            return found
        found.append(saves.read()[0] - step)
        saves.save(step + 2, ["model"])
        assert saves.read()[0] == step + 2
        step += 2
