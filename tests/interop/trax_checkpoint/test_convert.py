"""The command converts a file of Trax's whole, or not at all."""

import json
import os
import stat
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from trax_checkpoints import ADAM

from trax_torch.interop import trax_checkpoint as tc
from trax_torch.interop.trax_checkpoint import __main__ as command


def test_the_command_converts_a_checkpoint(tmp_path):
    """One line for each file written; weights and state are those that read gives."""
    out = tmp_path / "made" / "here"
    command = [sys.executable, "-W", "error", "-m", "trax_torch.interop.trax_checkpoint"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    done = subprocess.run(
        [*command, str(ADAM), str(out)], capture_output=True, text=True, env=environment
    )

    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"wrote {out / 'weights.safetensors'}",
        f"wrote {out / 'info.json'}",
    ]
    checkpoint, tensors = tc.read(ADAM), load_file(out / "weights.safetensors")
    names = [f"w.{i}" for i in range(22)] + [f"s.{i}" for i in range(4)]
    assert set(tensors) == set(names)
    for name, want in zip(names, checkpoint.flat_weights + checkpoint.flat_state, strict=True):
        assert torch.equal(tensors[name], want)
    info = json.loads((out / "info.json").read_text())
    assert info["step"] == 2
    assert info["version"] == "Mar-10-2021"
    assert info["input_signature"] == [{"shape": [4, 12], "dtype": "int32"}]
    assert info["history"]["train"]["training/steps per second"] == [[1, 0.47183169810989645]]
    assert sorted(os.listdir(out)) == ["info.json", "weights.safetensors"]
    modes = {stat.S_IMODE(os.stat(out / name).st_mode) for name in os.listdir(out)}
    assert len(modes) == 1


def test_a_refused_file_converts_to_nothing(tmp_path, monkeypatch):
    """The command ends with the reason, and leaves no file."""
    path = tmp_path / "model.pkl.gz"
    path.write_bytes(b"nothing of Trax's")
    monkeypatch.setattr(sys, "argv", ["trax_checkpoint", str(path), str(tmp_path / "out")])

    with pytest.raises(SystemExit, match=r"CheckpointError: .*model\.pkl\.gz cannot be read"):
        command.main()

    assert not (tmp_path / "out").exists()
