"""Manifests changed by hand, with a right hash: loaded or refused by name, and never half."""

import contextlib
import copy
import functools
import io
import json
import random
import signal

import pytest
import torch
from torch import nn

from trax_torch._errors import CheckpointError
from trax_torch.supervised import EvalTask, Loop, TrainTask, callbacks
from trax_torch.supervised._checkpoint import storage

VALUES = [
    None, True, -1, 2**31, 2**62, 2**70, 1.5, float("nan"), float("inf"), "x\x1b[31m",
    [], {}, [[]], {"tensor": "no"}, {"dict": 3}, {"tuple": [[1]]}, {"array": 1}, {"bytes": "zz"},
]  # fmt: skip
SECONDS = 120  # that a load may take, on a machine that is busy


class Remembers(callbacks.TrainingStepCallback):
    """A callback with a state of many kinds."""

    def __init__(self, loop):
        super().__init__(loop)
        self.seen, self.total = {(0, "x"): [1.0, None, True]}, torch.zeros(3)

    def state_dict(self):
        return {"seen": self.seen, "total": self.total, "tag": b"x"}

    def load_state_dict(self, state):
        self.seen, self.total = dict(state["seen"]), state["total"].clone()


def rows(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(24, 3, generator=generator)
    data = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))
    return torch.utils.data.DataLoader(data, 4, shuffle=True, generator=generator)


def loop_of(folder):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    steps = functools.partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[3, 50])
    cycle = functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.05, total_steps=400)
    adam = torch.optim.AdamW(model.parameters(), lr=0.01)
    sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    tasks = [
        TrainTask(rows(1), nn.MSELoss(), adam, steps, n_steps_per_checkpoint=3),
        TrainTask(rows(2), nn.MSELoss(), sgd, cycle),
    ]
    return Loop(
        model,
        tasks,
        eval_tasks=EvalTask(rows(3), nn.MSELoss(), n_eval_batches=2),
        output_dir=folder and str(folder),
        callbacks=[callbacks.ExponentialMovingAverage, callbacks.Monitor, Remembers],
        random_seed=0,
        progress=False,
    )


def places_in(nest, place=()):
    """Yields where something can be changed; of long lists, the beginning."""
    if place:
        yield place
    items = nest.items() if isinstance(nest, dict) else enumerate(nest[:3])
    for key, value in items:
        if isinstance(value, (dict, list)):
            yield from places_in(value, (*place, key))
        else:
            yield (*place, key)


def changed(manifest, rng):
    """Returns a manifest with one thing in it deleted, doubled, or put in another's stead."""
    manifest = copy.deepcopy(manifest)
    *way, last = rng.choice(list(places_in(manifest["info"])))
    nest = manifest["info"]
    for key in way:
        nest = nest[key]
    what = rng.choice(["deleted", "renamed", *["replaced"] * 6])
    value = nest.pop(last) if what != "replaced" else None
    if what == "renamed" and isinstance(nest, dict):
        nest[f"{last}_"] = value
    elif what == "renamed":
        nest[last:last] = [value, value]
    elif what == "replaced":
        value = rng.choice(VALUES)
        nest[last] = copy.deepcopy(value)
    manifest.pop("hash")
    manifest["hash"] = storage.hash_of(storage._canonical(manifest))
    return storage._canonical(manifest), f"{'.'.join(map(str, [*way, last]))} {what}: {value!r}"


def everything(loop):
    """What of a loop a load could change."""
    schedulers = [pacer.scheduler for pacer in loop._parts.pacers]
    parts = [*loop.optimizers, *schedulers, *loop.callbacks]
    states = [part.state_dict() for part in parts if hasattr(part, "state_dict")]
    states += [task.stream.position() for task in (*loop.tasks, *loop.eval_tasks)]
    states += [loop.step, loop._state.reported_step, loop._state.seed, loop._state.n_rngs]
    states += [str(loop.history), [each.to_dict()["sums"] for each in loop._parts.accumulators]]
    return copy.deepcopy((dict(loop.model.state_dict()), states))


def are_same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(are_same(v, b[k]) for k, v in a.items())
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(are_same, a, b))
    return a == b


def too_long(*_):
    raise TimeoutError(f"more than {SECONDS} seconds")


@contextlib.contextmanager
def limited():
    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    ("seed", "n"), [(0, 200), pytest.param(1, 2000, marks=pytest.mark.exhaustive)]
)
def test_a_manifest_changed_by_hand_is_loaded_or_refused_by_name(tmp_path, seed, n):
    """Each refusal is a CheckpointError with words of ours, and leaves the loop as it was."""
    rng = random.Random(seed)
    loop_of(tmp_path).run(6)
    path = tmp_path / "model.json"
    manifest = json.loads(path.read_bytes())
    loop, found = loop_of(None), {"loaded": 0, "refused": 0}
    loop.run(2)
    before, faults = everything(loop), []
    for _ in range(n):
        content, what = changed(manifest, rng)
        path.write_bytes(content)
        try:
            with limited(), contextlib.redirect_stdout(io.StringIO()):
                loop.load_checkpoint(str(tmp_path))
        except CheckpointError as error:
            found["refused"] += 1
            if not are_same(everything(loop), before):
                faults.append(f"{what} changed the loop: {error}")
            if "\x1b" in str(error) or len(str(error)) < 40:
                faults.append(f"{what} is not told well: {error}")
        except BaseException as error:
            faults.append(f"{what} raised {type(error).__name__}: {error}")
        else:
            found["loaded"] += 1
            loop = loop_of(None)
            loop.run(2)
            before = everything(loop)

    assert faults == []
    assert min(found.values()) > n / 10
