"""First weights in two goes: their shapes, and then the numbers of a layer made in one."""

import pytest
import torch
from torch import nn

from trax_torch import layers as tl
from trax_torch import models
from trax_torch.layers import _protocol

INPUTS = torch.ones(2, 6, dtype=torch.int64)


LAYERS = {
    "TransformerLM": lambda: models.TransformerLM(9, 8, 16, 1, 2, max_len=8),
    "orthogonal": lambda: tl.Serial(
        tl.Embedding(9, 8),
        tl.Dense(8, kernel_initializer=tl.OrthogonalInitializer()),
        tl.Dense(4, kernel_initializer=tl.LeCunNormalInitializer(scale=2.0)),
    ),
    "statistics": lambda: tl.Serial(tl.Embedding(9, 8), tl.BatchNorm(axis=(0, 1)), tl.GRU(8)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_weights_made_again_are_those_of_one_go(name):
    """Shapes are found without drawing a number."""
    again, whole = LAYERS[name](), LAYERS[name]()
    rng = torch.Generator().manual_seed(3)
    before = rng.get_state()
    notes = _protocol.shapes_of_weights(again, INPUTS, rng)

    assert torch.equal(rng.get_state(), before)
    assert all(tensor.is_meta for _, _, tensor in _protocol.places([again]))
    again.to_empty(device="cpu")
    for _, _, tensor in _protocol.places([again]):
        tensor.data.fill_(7)
    _protocol.make_again(notes, rng)
    with _protocol.ShapePass(whole, torch.Generator().manual_seed(3)) as shape_pass:
        shape_pass.make(whole, INPUTS)
    wanted = whole.state_dict()
    assert all(torch.equal(x, wanted[key]) for key, x in again.state_dict().items())


def test_what_stands_in_takes_up_a_row_and_is_gone_afterwards():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.LSTM(64, 8))
    before = list(model.parameters())
    with _protocol.stand_in([model], torch.device("cpu")) as lent:
        weight = model[0].weight
        n_bytes = weight.untyped_storage().nbytes()
        out = model(torch.randn(3, 64))[0]
        rank = torch.linalg.matrix_rank(weight.detach())
        assert lent[id(weight)] is before[0]

    assert n_bytes == 4 * 127
    assert int(rank) == 64
    assert out.isfinite().all()
    assert [a is b for a, b in zip(before, model.parameters(), strict=True)] == [True] * len(before)
