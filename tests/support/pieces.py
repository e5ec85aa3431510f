"""Runs and saves of which each rank has a part, for forked ranks."""

import contextlib
import functools

import numpy as np
import pytest
import torch
from saboteur import Saboteur
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from toys import line_loop

from trax_torch import _distributed, optimizers
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
    saver.Saver(folder, world).save(["model"], parts, INFO, History(), blocking=True)
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


def history_at(step):
    history = History()
    for i in range(1, step + 1):
        history.append("train", "loss", i, 1 / i)
    return history


class Saves:
    """Saves of a few steps by all ranks, one of which is broken somewhere."""

    def __init__(self, rank, folder, blocking):
        self.rank, self.folder, self.blocking = rank, str(folder), blocking
        self.world = _distributed.join(timeout=60)
        self.mesh = init_device_mesh("cpu", (self.world.size,))
        self.saver = saver.Saver(self.folder, self.world, keep_last=1)
        if not blocking:  # a rank that dies while groups are made is not noticed before the timeout
            self.saver._beside = self.world.aside()
        found = storage.read_manifest(self.folder, "model")
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
