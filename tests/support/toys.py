"""Small models and data for the tests of the loop."""

import tempfile
from pathlib import Path

import numpy as np
import torch

from trax_torch import layers as tl
from trax_torch import optimizers
from trax_torch.supervised import EvalTask, Loop, TrainTask
from trax_torch.supervised._logging.reports import of_the_clock


def batches(seed=0, n=4, weights=True):
    """Yields batches of a noisy line, without end; batch i is the same for the same seed."""
    i = 0
    while True:
        rng = np.random.default_rng([seed, i])
        x = rng.normal(size=(n, 3)).astype(np.float32)
        y = x @ np.array([[1.0], [-2.0], [0.5]], np.float32) + 0.1
        yield (x, y, np.ones_like(y)) if weights else (x, y)
        i += 1


def line_model(dropout=0.0):
    return tl.Serial(tl.Dense(8), tl.Tanh(), tl.Dropout(dropout), tl.Dense(1))


def train_task(seed=0, optimizer=None, **kwargs):
    kwargs.setdefault("n_steps_per_checkpoint", 5)
    return TrainTask(batches(seed), tl.L2Loss(), optimizer or optimizers.Adam(0.01), **kwargs)


def eval_task(seed=100, metrics=None, **kwargs):
    return EvalTask(batches(seed), metrics or [tl.L2Loss()], **kwargs)


def line_loop(output_dir=None, dropout=0.0, model=None, task=None, evals=None, **kwargs):
    kwargs.setdefault("random_seed", 0)
    return Loop(
        model or line_model(dropout),
        task or train_task(),
        eval_tasks=evals or eval_task(),
        output_dir=None if output_dir is None else str(output_dir),
        progress=False,
        **kwargs,
    )


def with_nan_at(steps, n=8):
    """Batches whose inputs are not numbers at some steps; batch 0 is the sample."""
    for i, (x, y, w) in enumerate(batches(0, n)):
        yield (np.full_like(x, np.nan) if i in steps else x), y, w


def nan_loop(folder=None, steps=(3,), **kwargs):
    model = tl.Serial(tl.Dense(8), tl.BatchNorm(axis=0), tl.Tanh(), tl.Dense(1))
    task = TrainTask(
        with_nan_at(steps), tl.L2Loss(), optimizers.Adam(0.01), n_steps_per_checkpoint=100
    )
    return line_loop(folder, model=model, task=task, **kwargs)


def state_of(loop):
    """Everything a run is made of that can be compared bit for bit."""
    tensors = {k: v.clone() for k, v in loop.model.state_dict().items()}
    for i, trainer in enumerate(loop._parts.trainers):
        for j, p in enumerate(trainer.params):
            for key, value in trainer.optimizer.state[p].items():
                tensors[f"slot{i}.{j}.{key}"] = torch.as_tensor(value).clone()
    return tensors


def history_of(loop):
    """The history without what depends on the clock."""
    values = loop.history.to_dict()["_values"]
    return {
        mode: {k: v for k, v in metrics.items() if not of_the_clock(k)}
        for mode, metrics in values.items()
    }


def losses_of(loop, name="metrics/L2Loss"):
    return [value for _, value in loop.history.get("train", name)]


def assert_same_run(one, other):
    mine, theirs = state_of(one), state_of(other)
    assert mine.keys() == theirs.keys()
    assert [k for k in mine if not torch.equal(mine[k], theirs[k])] == []
    assert one.step == other.step
    assert history_of(one) == history_of(other)


def assert_resumes(make_loop, tmp_path, first, rest):
    """Asserts that a run cut after some steps equals one that was not; returns both."""
    whole = make_loop(tmp_path / "whole")
    whole.run(first + rest)
    make_loop(tmp_path / "cut").run(first)
    resumed = make_loop(tmp_path / "cut")
    resumed.run(rest)

    assert_same_run(resumed, whole)
    return resumed, whole


def let_others_in(path):
    """Lets other users go to a temporary folder of ours."""
    ours = Path(tempfile.gettempdir())
    for folder in (path, *path.parents):
        if ours in folder.parents:
            folder.chmod(0o755)


class Grammar(tl.Layer):
    """A language model that masks what may not follow: after the end, 1, nothing may.

    2 or 3 follow the start, 4; 1 or 2 follow 2; 1 follows 3.
    """

    MAY_FOLLOW = ((), (), (1, 2), (1,), (2, 3))

    def forward(self, tokens):
        logits = torch.tensor([0.0, 0.3, 0.1, 0.7, 0.0]).expand(*tokens.shape, 5)
        may = torch.tensor([[s in allowed for s in range(5)] for allowed in self.MAY_FOLLOW])
        return torch.where(may[tokens], logits, -torch.inf)
