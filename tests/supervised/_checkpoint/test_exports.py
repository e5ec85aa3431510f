"""What is exported is read by others, and takes the memory of one tensor."""

import functools
import json
import os
import subprocess
import sys
import weakref

import numpy as np
import pieces
import pytest
import ranks
import torch
from safetensors.torch import load_file

import trax_torch
from trax_torch._errors import CheckpointError
from trax_torch.supervised._checkpoint import shards

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)


@pytest.fixture(scope="module", params=[1, 3], ids=["one process", "three ranks"])
def saved(request, tmp_path_factory):
    """The folder of a run, and the weights that it ended with."""
    path, size = tmp_path_factory.mktemp("saved"), request.param
    work = functools.partial(pieces.run, size=size, folder=path / "run", until=4)
    return path / "run", ranks.values(path / "ranks", size, work)[0]


def assert_same(found, weights):
    assert found.keys() == weights.keys()
    assert all(np.array_equal(found[name].numpy(), weights[name]) for name in weights)


def test_one_file_has_every_tensor_and_one_at_a_time_is_in_memory(saved, tmp_path, monkeypatch):
    folder, weights = saved
    seen, read = [], shards.Saved.read

    def watched(self, box=None):
        assert [ref for ref in seen if ref() is not None] == []
        tensor = read(self, box)
        seen.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(shards.Saved, "read", watched)
    trax_torch.export(folder, tmp_path / "exported")

    assert len(seen) == len(weights)
    assert_same(load_file(tmp_path / "exported"), weights)
    assert os.listdir(tmp_path) == ["exported"]


def test_a_folder_of_files_is_as_hugging_face_lays_it_out(saved, tmp_path):
    """An index, files of at most so many bytes, and a larger tensor by itself."""
    folder, weights = saved
    trax_torch.export(folder, tmp_path / "out", max_shard_size="0.3KB")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())

    found = {}
    for path in sorted((tmp_path / "out").glob("*.safetensors")):
        tensors = load_file(path)
        assert {name: path.name for name in tensors}.items() <= index["weight_map"].items()
        size = sum(t.nbytes for t in tensors.values())
        assert size <= 300 or len(tensors) == 1
        found |= tensors
    assert_same(found, weights)
    assert index["weight_map"].keys() == weights.keys()
    assert index["metadata"]["total_size"] == sum(w.nbytes for w in weights.values())
    assert "model-00001-of-00005.safetensors" in set(index["weight_map"].values())
    assert os.listdir(tmp_path) == ["out"]


def test_hugging_faces_own_library_reads_the_folder(saved, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    folder, weights = saved
    trax_torch.export(folder, tmp_path / "out", max_shard_size=300)
    model = pieces.model()
    hub.load_torch_model(model, tmp_path / "out", strict=True)

    assert_same(dict(model.state_dict()), weights)


def test_what_fits_into_one_file_has_no_index(saved, tmp_path):
    folder, weights = saved
    trax_torch.export(folder, tmp_path / "out", max_shard_size="5GB")

    assert os.listdir(tmp_path / "out") == ["model.safetensors"]
    assert_same(load_file(tmp_path / "out" / "model.safetensors"), weights)


@pytest.mark.parametrize("size", ["5 Gb of it", 0, True, "-1GB", ""])
def test_what_is_no_size_is_refused(saved, tmp_path, size):
    with pytest.raises(ValueError, match="max_shard_size is a number of bytes, or a text like"):
        trax_torch.export(saved[0], tmp_path / "out", max_shard_size=size)
    assert os.listdir(tmp_path) == []


def test_what_is_there_is_not_written_into(saved, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(ValueError, match="is there already. Name a new folder for max_shard_size"):
        trax_torch.export(saved[0], tmp_path / "out", max_shard_size="5GB")


def test_the_command_takes_a_size(saved, tmp_path):
    line = [sys.executable, "-m", "trax_torch.export", str(saved[0]), "out"]
    done = subprocess.run(
        [*line, "--max-shard-size", "300"], capture_output=True, text=True, cwd=tmp_path
    )

    assert (done.returncode, done.stdout) == (0, "wrote out\n")
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()


def test_a_flipped_bit_anywhere_is_refused_by_name_and_leaves_nothing(saved, tmp_path):
    """In any file of weights, header or tensors; also where a model is filled."""
    folder, _ = saved
    copy = tmp_path / "run"
    subprocess.check_call(["cp", "-r", str(folder), str(copy)])
    for path in sorted(copy.glob("*.weights*.safetensors")):
        whole = path.read_bytes()
        for at in range(0, len(whole), 37):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(CheckpointError, match=path.name):
                trax_torch.export(copy, tmp_path / "out")
            with pytest.raises(CheckpointError, match=path.name):
                trax_torch.load_weights(pieces.model(), copy)
        path.write_bytes(whole[:-1])
        with pytest.raises(CheckpointError, match=path.name):
            trax_torch.export(copy, tmp_path / "out")
        path.write_bytes(whole)

    assert os.listdir(tmp_path) == ["run"]
    trax_torch.export(copy, tmp_path / "out")
