"""What a manifest's info holds is checked before it is used: hand-made ones are refused by name."""

import copy
import json
import pathlib

import pytest
import torch
from toys import line_loop

from trax_torch._errors import CheckpointError
from trax_torch.data import share_of
from trax_torch.data._streams import BatchStream
from trax_torch.supervised._checkpoint import schema, storage

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "checkpoint_v1"


def info_of(folder):
    return json.loads((folder / "model.json").read_text())["info"]


def test_each_version_has_a_schema_that_its_files_fit(tmp_path):
    line_loop(tmp_path).run(5)

    schema.check("a file", storage.VERSION, info_of(tmp_path))
    schema.check("a file", 1, info_of(GOLDEN))


@pytest.mark.parametrize(
    ("place", "value", "match"),
    [
        (("step",), -1, "'info.step' is -1, and a whole number from 0"),
        (("step",), 2**70, "'info.step'"),
        (("step",), 5.5, "'info.step'"),
        (("step",), True, "'info.step'"),
        (("reported_step",), 13, "'info.reported_step' is 13, and none after info.step"),
        (("seed",), None, "'info.seed' is None, and a whole number of 64 bits"),
        (("n_rngs",), "1", "'info.n_rngs'"),
        (("world_size",), 2, "'info.ranks' is 1, and 2 ranks"),
        (("settings",), [], "'info.settings' is .., and a mapping"),
        (("settings", "adasum"), {}, "'info.settings.adasum'"),
        (("history", "_values", "x"), {"y": [["a", 1]]}, r"'info.history._values.x.y.0.'"),
        (("members", "tasks"), {}, "'info.members.tasks' is .*, and a list"),
        (("members", "tasks", 0, "optimizer"), 1, r"'info.members.tasks.0..optimizer'"),
        (("ranks", 0, "evals"), None, "evals"),
        (("ranks", 0, "tallies"), [], "'info.ranks.0..tallies' is 0, and 2 of them"),
        (("ranks", 0, "tallies", 0, "counts"), {}, "tallies.0..counts"),
        (("ranks", 0, "tallies", 0, "seconds"), "\x1b[31m", r"is '\\x1b.31m', and a number"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(place, value, match):
    info = info_of(GOLDEN)
    inside = info
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value

    with pytest.raises(CheckpointError, match=match):
        schema.check("a file", 1, info)


@pytest.mark.parametrize("name", ["step", "seed", "members", "ranks", "world_size"])
def test_what_is_missing_is_refused_by_name(name):
    info = copy.deepcopy(info_of(GOLDEN))
    del info[name]

    with pytest.raises(CheckpointError, match=f"a mapping with '{name}' was needed"):
        schema.check("a file", 1, info)


def test_keys_of_others_are_passed_over():
    schema.check("a file", 1, {**info_of(GOLDEN), "a key": "to come"})


@pytest.mark.parametrize(
    "place",
    [
        None,
        {},
        {"n_taken": -1},
        {"n_taken": 2**62},
        {"n_taken": 2**31},
        {"n_taken": float("inf")},
        {"n_taken": True},
        {"n_taken": 3, "state": {"n_taken": 2**62}},
    ],
)
def test_a_place_in_the_data_that_no_run_comes_to_is_refused(place):
    with pytest.raises(CheckpointError, match="place in the data of task 0 is .*Nothing was drawn"):
        schema.check_place("the data of task 0", place, step=12)


def test_the_place_that_shared_data_tells_is_looked_into():
    """With all that a stream tells of a place today."""
    stream = BatchStream(share_of([(torch.zeros(4),)] * 3, 0, 2), "data")
    stream.sample(None)
    stream.next()
    place = stream.position()
    schema.check_place("the data of task 0", place, step=1)

    place["state"]["n_taken"] = 2**62

    with pytest.raises(CheckpointError, match="place in the data of task 0 is .*Nothing was drawn"):
        schema.check_place("the data of task 0", place, step=1)


@pytest.mark.parametrize(
    "place",
    [
        {"n_taken": 0},
        {"n_taken": 10_000, "state": {"n_taken": 10_000}},
        {"n_taken": 3, "state": {"n_taken": 2**62, "of": "a loader that counts otherwise"}},
        {"n_taken": 3, "state": {}},
    ],
)
def test_a_place_in_the_data_that_a_run_may_come_to_is_taken(place):
    schema.check_place("the data of task 0", place, step=12)
