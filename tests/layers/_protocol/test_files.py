"""Readers of other formats can be registered with `Layer.init_from_file`."""

import pytest
import torch
from torch import nn

import trax_torch
from trax_torch import layers as tl
from trax_torch._errors import CheckpointError
from trax_torch.layers._protocol import files
from trax_torch.shapes import ShapeDtype


@pytest.fixture(autouse=True)
def readers(monkeypatch):
    """What is registered here is forgotten."""
    monkeypatch.setattr(files, "_readers", list(files._readers))


def test_a_registered_reader_fills_layers_from_what_it_takes(tmp_path):
    """It is called as `load_file` is, and no other file is given to it."""
    asked = []

    def reader(module, file_name, weights_only):
        asked.append((file_name, weights_only))
        module.weights = (torch.ones(2, 3), torch.zeros(3))

    files.register_reader(lambda path: path.endswith(".mine"), reader)
    layer, other = tl.Dense(3), tl.Dense(3)
    layer.init_from_file("weights.mine", weights_only=True)

    assert asked == [("weights.mine", True)]
    assert layer(torch.ones(1, 2)).tolist() == [[2.0, 2.0, 2.0]]
    layer.save_to_file(tmp_path / "weights")
    other.init_from_file(tmp_path / "weights")
    assert torch.equal(other.weights[0], layer.weights[0])
    assert len(asked) == 1


@pytest.mark.parametrize("name", ["model.pkl.gz", "model.pkl", "model", "model.safetensors", "a.b"])
def test_what_a_layer_wrote_it_reads_under_any_name(tmp_path, name):
    """Programs written for Trax call it `model.pkl.gz`; what is inside decides."""
    layer = tl.Serial(tl.Dense(3), tl.BatchNorm(axis=0))
    other = tl.Serial(tl.Dense(3), tl.BatchNorm(axis=0))
    layer.init(ShapeDtype((2, 4)))
    layer(torch.randn(2, 4))

    for weights_only in (False, True):
        layer.save_to_file(tmp_path / name, weights_only=weights_only)
        other.init_from_file(tmp_path / name, weights_only=weights_only)

        x = torch.randn(2, 4)
        assert torch.equal(other.eval()(x), layer.eval()(x))
    trax_torch.load_weights(other, tmp_path / name, weights_only=True)
    with pytest.raises(CheckpointError, match="is not a whole safetensors file"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:100])
        other.init_from_file(tmp_path / name)


def test_trax_files_and_checkpoints_have_their_readers_as_soon_as_the_package_is_there():
    """Layers know no room above; those have registered themselves."""
    rooms = [reader.__module__ for takes, reader in files._readers if takes("nothing.pkl.gz")]

    assert rooms == [
        "trax_torch.supervised._checkpoint.weights",
        "trax_torch.interop.trax_checkpoint.into_layers",
    ]


def test_numbers_that_the_format_has_not_are_refused_by_name(tmp_path):
    """As safetensors is of torch's types of complex numbers."""
    module = nn.Linear(2, 2)
    module.register_buffer("phases", torch.zeros(3, dtype=torch.complex128))

    with pytest.raises(ValueError, match="no numbers of type torch.complex128, as module.phases"):
        tl.as_layer(module).save_to_file(tmp_path / "weights")

    assert list(tmp_path.iterdir()) == []
