"""`verify_resume` says which stream of numbers is not the same in two runs, and what to do."""

import itertools
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trax_torch.supervised import EvalTask, Loop, TrainTask, training

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
ROWS = TensorDataset(X, (X.sum(1) > 0).long())


def plain_model():
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))


def in_order():
    return DataLoader(ROWS, 16)


def maker(manual_seed=0, data=in_order, model=plain_model, evals=in_order, **kwargs):
    def make_loop(folder):
        if manual_seed is not None:
            torch.manual_seed(manual_seed)
        built = model()
        optimizer = torch.optim.AdamW(built.parameters(), lr=0.01)
        task = TrainTask(data(), nn.CrossEntropyLoss(), optimizer, n_steps_per_checkpoint=5)
        measured = EvalTask(evals(), nn.CrossEntropyLoss())
        return Loop(built, task, eval_tasks=measured, output_dir=folder, progress=False, **kwargs)

    return make_loop


class Noisy(nn.Module):
    """Draws where no checkpoint looks."""

    def __init__(self, draw=lambda: 0.0):
        super().__init__()
        self.linear, self.draw = nn.Linear(4, 2), draw

    def forward(self, x):
        return self.linear(x) * (1 + self.draw())


class Counting(Noisy):
    """Counts steps in a plain attribute."""

    def __init__(self):
        super().__init__(self.count)
        self.n = 0

    def count(self):
        self.n += self.training
        return self.n


class Placeless:
    """Data that does not begin anew, whose state_dict forgets where it is."""

    def __init__(self):
        self.numbers = itertools.count()

    def __iter__(self):
        return self

    def __next__(self):
        return X[:8] + next(self.numbers), ROWS.tensors[1][:8]

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def rows_at_random(draw):
    while True:
        i = torch.tensor([draw() for _ in range(8)])
        yield ROWS[i]


_numbers = itertools.count()


def shuffled(seed=None):
    """By a generator of its own, with another seed each time, or with one."""
    order = torch.Generator().manual_seed(next(_numbers) if seed is None else seed)
    return DataLoader(ROWS, 16, shuffle=True, generator=order)


def from_numpy():
    return rows_at_random(lambda: np.random.randint(64))


BY_RANDOM_SEED = {"random_seed": 1}  # not the one that each test starts with
CASES = {
    "nothing is seeded": (dict(manual_seed=None), "random_seed is missing: two new runs drew"),
    "the model is not": (
        dict(manual_seed=None) | BY_RANDOM_SEED,
        r"The model is another each time that make_loop builds it: 0\.weight \(4 of 4",
    ),
    "the data's order": (
        dict(data=shuffled) | BY_RANDOM_SEED,
        r"data of task 0 is another each time .* from batch 1 of the run on\. Seed it where",
    ),
    "numpy's data": (
        dict(data=from_numpy),
        "data of task 0 is another .*; it draws from numpy's process-wide generator. Seed",
    ),
    "the evals' order": (
        dict(evals=lambda: iter(shuffled())),
        "data of eval 0 is another each time that make_loop",
    ),
    "a place that is not kept": (
        dict(data=Placeless),
        r"data of task 0 goes on elsewhere: batch 1 after the resume is not batch 4 of the run",
    ),
    "a layer that draws from numpy": (
        dict(model=lambda: Noisy(np.random.rand)),
        "All batches are the same. Beside the data, the model or a callback draws from numpy's",
    ),
    "a layer that draws from Python": (
        dict(model=lambda: Noisy(random.random)) | BY_RANDOM_SEED,
        "draws from Python's process-wide generator, whose place no checkpoint keeps",
    ),
    "a layer that counts": (
        dict(model=Counting),
        "no process-wide generator moved but for data. So the model, .* Keep state in buffers",
    ),
}


@pytest.mark.parametrize(("given", "why"), CASES.values(), ids=CASES)
def test_what_differs_is_named(given, why):
    with pytest.raises(ValueError, match=r"A run resumed at step 3 differs .*" + why):
        training.verify_resume(maker(**given), n_steps=3)


@pytest.mark.parametrize(
    "given",
    [
        dict(data=lambda: shuffled(1)),
        dict(data=lambda: DataLoader(ROWS, 16, shuffle=True)),
        dict(data=from_numpy) | BY_RANDOM_SEED,
        dict(evals=lambda: iter(shuffled(1))),
    ],
    ids=["a generator of its own", "torch's", "numpy's, seeded", "evals by an iterator"],
)
def test_what_is_seeded_passes(given):
    """Dropout, too, with and without a random_seed."""
    training.verify_resume(maker(**given), n_steps=3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [None, 1])
def test_a_compiled_model_with_dropout_passes(seed):
    training.verify_resume(maker(compile=True, random_seed=seed), n_steps=3)


@pytest.mark.parametrize("kind", ["another folder", "no folder", "one Loop for all", "no Loop"])
def test_each_run_has_a_loop_and_a_folder_of_its_own(kind, tmp_path):
    one = maker()(str(tmp_path))
    made = {
        "another folder": lambda folder: maker()(str(tmp_path)),
        "no folder": lambda folder: maker()(None),
        "one Loop for all": lambda folder: one,
        "no Loop": lambda folder: None,
    }
    with pytest.raises(ValueError, match=r"needs to make a Loop that saves into that folder.* for"):
        training.verify_resume(made[kind], n_steps=1)

    assert one.step == 0


def test_the_tasks_are_left_as_they_were():
    made = []
    make_loop = maker()

    def keeping(folder):
        made.append(make_loop(folder))
        return made[-1]

    training.verify_resume(keeping, n_steps=1)

    for loop in made:
        assert "next_batch" not in vars(loop.tasks[0])
        assert "batches" not in vars(loop.eval_tasks[0])
