"""Runs that are killed and begun anew end as those that were not: all kinds, to the last bit."""

import functools
import itertools
import json
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from programs import children, evening, runs
from programs.runs import Blow, Setup
from torch import nn
from toys import eval_task, history_of, line_loop, train_task

from trax_torch import optimizers
from trax_torch.supervised import TrainingStepCallback
from trax_torch.supervised._checkpoint import packing, storage, verify

# Where the last checkpoint before a kill is of: it falls behind it.
CUTS = {"step 1": Blow(3, "step"), "middle": Blow(5, "step"), "before evals": Blow(6, "evals")}
KINDS = {
    "optimizer": list(runs.OPTIMIZERS),
    "model": list(runs.MODELS),
    "cut": list(CUTS),
    "n_resumes": [1, 2],
    "n_workers": [0, 2],
    "n_tasks": [1, 2],
    "n_parts": [1, 2],
}


def covering(kinds):
    """Returns few rows of one value of each kind, such that any two values meet in one of them."""
    names = list(kinds)
    rows = [dict(zip(names, row, strict=True)) for row in itertools.product(*kinds.values())]
    random.Random(0).shuffle(rows)

    def pairs(row):
        return {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}

    missing = set().union(*map(pairs, rows))
    chosen = []
    while missing:
        chosen.append(max(rows, key=lambda row: len(pairs(row) & missing)))
        missing -= pairs(chosen[-1])
    return chosen


def differences(folder, row):
    """Runs a row of kinds with kills and without; returns in what the two differ, by checkpoint."""
    row = dict(row)
    cut, n_resumes = CUTS[row.pop("cut")], row.pop("n_resumes")
    setup = Setup(**row)
    assert children.run(runs.train, folder / "whole", Setup(**{**row, "n_workers": 0})) == 0
    for blow in [cut, Blow(8, "step")][:n_resumes]:
        assert children.run(runs.train, folder / "cut", setup, blow) == -9
    assert children.run(runs.train, folder / "cut", setup) == 0
    names = [{p.stem for p in (folder / side).glob("*.json")} for side in ("whole", "cut")]
    assert names[0] == names[1] == {"model", "model_6", "lowest_Squares", "final"}
    found = {
        name: verify.differences(str(folder / "whole"), str(folder / "cut"), name)
        for name in names[0]
    }
    return {name: what for name, what in found.items() if what}


def all_differences(folder, rows):
    """Returns the rows whose runs differ, and in what; two at a time."""
    with ThreadPoolExecutor(2) as pool:
        folders = [folder / str(i) for i in range(len(rows))]
        found = list(pool.map(differences, folders, rows))
    return [(row, what) for row, what in zip(rows, found, strict=True) if what]


def test_killed_runs_end_as_whole_ones(tmp_path):
    """Every two kinds meet: optimizer, model, place of the kill, resumes, workers, tasks, parts."""
    assert all_differences(tmp_path, covering(KINDS)) == []


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("optimizer", list(runs.OPTIMIZERS))
def test_killed_runs_of_all_kinds_end_as_whole_ones(tmp_path, optimizer):
    """The whole product; one or two tasks and one or two parts take turns in it."""
    kinds = {**KINDS, "optimizer": [optimizer], "n_tasks": [0], "n_parts": [0]}
    rows = [dict(zip(kinds, row, strict=True)) for row in itertools.product(*kinds.values())]
    for i, row in enumerate(rows):
        row |= {"n_tasks": 1 + (i // 2) % 2, "n_parts": 1 + i % 2}

    assert len(rows) == 36
    assert all_differences(tmp_path, rows) == []


class Drawing(TrainingStepCallback):
    """Draws a number at each step, and counts them."""

    n_drawn = 0

    def on_step_begin(self, step):
        torch.rand(1, generator=self._loop.new_rng())
        self.n_drawn += 1

    def state_dict(self):
        return {"n_drawn": self.n_drawn}

    def load_state_dict(self, state):
        self.n_drawn = state["n_drawn"]


def rich_loop(folder):
    """A loop in which everything that can be saved matters."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1))
    for i, p in enumerate(model.parameters()):
        nn.init.uniform_(p, -0.5, 0.5, generator=torch.Generator().manual_seed(i))
    schedule = functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9)
    task = train_task(optimizer=optimizers.Adam(0.05), lr_schedule=schedule)
    return line_loop(
        folder,
        model=model,
        task=task,
        evals=eval_task(),
        checkpoint_at=lambda step: step in (3, 5, 7, 9, 12),
        eval_at=lambda step: step in (3, 5, 9, 12),
        checkpoint_low_metric="L2Loss",
        callbacks=[Drawing],
        save_at_end=False,  # as if cut
    )


def drop_history(parts, info):
    info["history"]["_values"]["train"].clear()


def drop_best(parts, info):
    info["history"]["_values"]["eval"].clear()


def drop_tensors(part, begins_with=""):
    def drop(parts, info):
        for name, tensor in parts[part].items():
            if name.startswith(begins_with):
                tensor.zero_()

    return drop


def drop_position(parts, info):
    info["ranks"][0]["tasks"][0] = packing.pack({"n_taken": 1}, "", {})


def drop_eval_position(parts, info):
    info["ranks"][0]["evals"][0] = packing.pack({"n_taken": 1}, "", {})


def drop_tallies(parts, info):
    info["ranks"][0]["tallies"][0] |= {"n_steps": 0, "sums": {}, "counts": {}}


def drop_scheduler(parts, info):
    tensors = {}
    loop = rich_loop(None)
    task = info["members"]["tasks"][0]
    task["scheduler"] = packing.pack(loop._parts.pacers[0].scheduler.state_dict(), "", tensors)
    task["groups"] = packing.pack(loop._parts.trainers[0].groups(), "", tensors)


def drop_callbacks(parts, info):
    info["members"]["callbacks"].clear()


DROPS = {
    "nothing": lambda parts, info: None,
    "weights": drop_tensors("weights"),
    "buffers": drop_tensors("state", "buffer."),
    "slots": drop_tensors("opt_slots0"),
    "data position": drop_position,
    "eval position": drop_eval_position,
    "history": drop_history,
    "best metric": drop_best,
    "tallies": drop_tallies,
    "scheduler": drop_scheduler,
    "n_rngs": lambda parts, info: info.update(n_rngs=0),
    "seed": lambda parts, info: info.update(seed=1),
    "reported step": lambda parts, info: info.update(reported_step=5),
    "callbacks": drop_callbacks,
}


@pytest.mark.parametrize("item", DROPS)
def test_each_item_that_is_dropped_shows(tmp_path, monkeypatch, item):
    """The comparison can fail: only with nothing dropped are the runs equal."""
    read = storage.read_listed

    def read_less(*args):
        found = read(*args)
        if found is not None:
            DROPS[item](*found)
        return found

    whole = rich_loop(tmp_path / "whole")
    whole.run(12)
    rich_loop(tmp_path / "cut").run(6)  # saved at 5 the last time, before the evals of 5
    with monkeypatch.context() as patch:
        patch.setattr(storage, "read_listed", read_less)
        loop = rich_loop(tmp_path / "cut")
    loop.run(7)

    found = [
        (name, what)
        for name in ("model", "lowest_L2Loss")
        for what in verify.differences(str(tmp_path / "cut"), str(tmp_path / "whole"), name)
    ]
    if history_of(loop) != history_of(whole):  # on disk, what was recorded stays
        found.append(("the run", "history"))
    assert bool(found) == (item != "nothing"), found


@pytest.mark.exhaustive
def test_an_evening_of_kills_ends_as_a_quiet_one(tmp_path):
    """2,000 steps, killed ten times at random places, are 2,000 steps."""
    chance = random.Random(3)
    kills = sorted(chance.sample(range(20, 1990), 10))
    places = [chance.choice(["step", "save", "update"]) for _ in kills]
    assert children.run(evening.train, tmp_path / "quiet") == 0
    for kill in zip(kills, places, strict=True):
        assert children.run(evening.train, tmp_path / "cut", *kill) == -9
    assert children.run(evening.train, tmp_path / "cut") == 0

    names = {p.stem for p in (tmp_path / "quiet").glob("*.json")}
    assert {p.stem for p in (tmp_path / "cut").glob("*.json")} == names
    assert len(names) == 4
    for name in names:
        assert verify.differences(str(tmp_path / "quiet"), str(tmp_path / "cut"), name) == []
    assert json.loads((tmp_path / "cut" / "model.json").read_text())["info"]["step"] == 2000
