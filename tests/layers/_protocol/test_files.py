"""Readers of other formats can be registered with `Layer.init_from_file`."""

import pytest
import torch

from trax_torch import layers as tl
from trax_torch.layers._protocol import files


@pytest.fixture(autouse=True)
def readers(monkeypatch):
    """What is registered here is forgotten."""
    monkeypatch.setattr(files, "_readers", dict(files._readers))


def test_a_registered_reader_fills_layers_from_files_of_its_ending(tmp_path):
    """It is called as `load_file` is, and no other file is given to it."""
    asked = []

    def reader(module, file_name, weights_only):
        asked.append((file_name, weights_only))
        module.weights = (torch.ones(2, 3), torch.zeros(3))

    files.register_reader(".mine", reader)
    layer, other = tl.Dense(3), tl.Dense(3)
    layer.init_from_file("weights.mine", weights_only=True)

    assert asked == [("weights.mine", True)]
    assert layer(torch.ones(1, 2)).tolist() == [[2.0, 2.0, 2.0]]
    layer.save_to_file(tmp_path / "weights")
    other.init_from_file(tmp_path / "weights")
    assert torch.equal(other.weights[0], layer.weights[0])
    assert len(asked) == 1


def test_trax_files_have_their_reader_as_soon_as_the_package_is_there():
    """Layers know no room above; `interop.trax_checkpoint` has registered itself."""
    assert ".pkl.gz" in files._readers
