"""The Reformer's attention gives Trax's outputs and gradients for Trax's weights."""

import figures
import pytest
import reformers
import torch

from trax_torch.layers import _efficient


@pytest.mark.parametrize("name", figures.names("layer", reformers.FOLDER))
def test_attention_gives_the_outputs_and_gradients_of_trax(name, monkeypatch):
    """With hashing, for the same random rotations."""
    layer = reformers.built(name)
    if "LSH" in name:
        rotations = torch.from_numpy(figures.part(name, "rotations", reformers.FOLDER))
        given = rotations.expand(2, *rotations.shape)  # heads
        monkeypatch.setattr(_efficient, "rotations_for", lambda *_: given)

    reformers.assert_like_trax(name, layer)
