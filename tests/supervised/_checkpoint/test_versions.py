"""Checkpoints of earlier format versions are read for ever."""

import json
import pathlib
import shutil

import checkpoint_v1
import pytest
import torch
from safetensors.torch import load_file

from trax_torch._errors import CheckpointError
from trax_torch.supervised._checkpoint import storage

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "checkpoint_v1"


@pytest.mark.parametrize(("name", "step"), [("model", 12), ("model_10", 10), ("model_4", 4)])
def test_version_1_goes_on_where_it_was(tmp_path, name, step):
    shutil.copytree(GOLDEN, tmp_path / "run")
    loop = checkpoint_v1.loop(None)
    loop.load_checkpoint(str(tmp_path / "run"), name)
    assert loop.step == step
    loop.run(13 - step)
    for key, value in load_file(GOLDEN / "after_13_steps.safetensors").items():
        torch.testing.assert_close(loop.model.state_dict()[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("version", "match"),
    [
        (storage.VERSION + 1, "has format version .*; this library reads up to .*Update it"),
        (10**30, "Update it"),
        (0, "no manifest of a trax_torch checkpoint"),
        (True, "no manifest of a trax_torch checkpoint"),
        ("2", "no manifest of a trax_torch checkpoint"),
    ],
)
def test_a_version_that_is_not_known_is_refused_by_name(tmp_path, version, match):
    shutil.copytree(GOLDEN, tmp_path / "run")
    path = tmp_path / "run" / "model.json"
    path.write_bytes(json.dumps({**json.loads(path.read_bytes()), "version": version}).encode())
    loop = checkpoint_v1.loop(None)

    with pytest.raises(CheckpointError, match=match):
        loop.load_checkpoint(str(tmp_path / "run"))
    assert loop.step == 0
