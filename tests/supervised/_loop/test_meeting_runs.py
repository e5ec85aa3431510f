"""Batches with names together with what else a Loop does: ranks, resuming, compiled code."""

import numpy as np
import pytest
import ranks
import torch
from meetings import (
    CLASSES,
    LOSSES,
    ROW,
    ROWS,
    Net,
    WithOwnLoss,
    assert_same,
    bare,
    seeded,
    trained,
)
from torch import nn
from torch.nn import functional as F

from trax_torch import layers as tl
from trax_torch import optimizers
from trax_torch.supervised import EvalTask, Loop, TrainTask, callbacks, share_of


@pytest.mark.usefixtures("bfloat16_as_fast_as_may_be")
@pytest.mark.parametrize("loss", [None, nn.CrossEntropyLoss(), LOSSES[4]])
def test_batches_with_names_are_computed_in_bfloat16(loss):
    """In autocast, as in a bare loop."""
    loop = trained(seeded(Net), ROW, loss, precision="bf16")

    def loss_of(model):
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(model.linear(ROWS), CLASSES)

    assert_same(loop, bare(seeded(Net), loss_of))


@pytest.mark.parametrize("loss", [None, nn.CrossEntropyLoss(), LOSSES[4]])
def test_batches_with_names_are_computed_by_compiled_code(loss, monkeypatch):
    """Traced whole, without a break, and run as it is: results are those of a bare loop."""
    of_torch = torch.compile

    def traced(layer, backend):
        return of_torch(layer, backend="eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", traced)
    loop = trained(seeded(Net), ROW, loss, evals="loss", compile=True)

    assert_same(loop, bare(seeded(Net), lambda m: F.cross_entropy(m.linear(ROWS), CLASSES)))


@pytest.mark.parametrize("level", [1, 2])
def test_batches_with_names_train_block_by_block(level):
    loop = trained(seeded(Net), ROW, None, evals="loss", use_memory_efficient_trainer=level)

    assert_same(loop, bare(seeded(Net), lambda m: F.cross_entropy(m.linear(ROWS), CLASSES)))


class ComputedOfRows(Loop):
    """Computes the loss of a tuple from a layer."""

    def compute_loss(self, model, batch):
        return F.mse_loss(model(batch[0]), batch[1])


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        (F.mse_loss, Loop),
        (lambda outputs, batch: F.mse_loss(outputs, batch[1]), Loop),
        (None, ComputedOfRows),
    ],
)
def test_layers_are_trained_by_functions_too(loss, kind):
    """As by torch's module for the same loss; weights are made from the sample batch."""
    batch = (ROWS, ROWS[:, :1])

    def outcome(loss, kind):
        model = tl.Serial(tl.Dense(3), tl.Dense(1))
        task = TrainTask([batch], loss, optimizers.SGD(0.1))
        loop = kind(
            model, task, eval_tasks=EvalTask([batch], F.mse_loss), random_seed=0, progress=False
        )
        loop.run(3)
        return loop.history.get("eval", "metrics/mse_loss")

    assert outcome(loss, kind) == outcome(nn.MSELoss(), Loop)


@pytest.mark.parametrize("level", [1, 2])
def test_a_computed_loss_is_brought_down_block_by_block(level):
    loop = trained(seeded(Net), ROW, None, kind=WithOwnLoss, use_memory_efficient_trainer=level)
    plain = trained(seeded(Net), ROW, None, kind=WithOwnLoss)

    assert_same(loop, dict(plain.model.named_parameters()))


def test_a_model_for_evals_is_called_by_name_too():
    evaluated = seeded(Net)
    loop = trained(seeded(Net), ROW, None, evals="loss", eval_model=evaluated)
    plain = trained(seeded(Net), ROW, None, evals="loss")

    assert loop.eval_model is evaluated
    assert loop.history.get("eval", "metrics/loss") == plain.history.get("eval", "metrics/loss")


class Dropping(Net):
    def forward(self, x, mask=None, labels=None):
        return super().forward(F.dropout(x, training=self.training), mask, labels)


@pytest.mark.parametrize("kind", [Loop, WithOwnLoss])
def test_a_run_on_batches_with_names_goes_on_from_its_checkpoint(kind, tmp_path):
    """Bit for bit what one run comes to, dropout too."""
    whole = trained(seeded(Dropping), ROW, None, 4, kind=kind, evals="loss")
    trained(seeded(Dropping), ROW, None, 2, kind=kind, evals="loss", output_dir=str(tmp_path))
    rest = trained(
        seeded(Dropping), ROW, None, 2, kind=kind, evals="loss", output_dir=str(tmp_path)
    )

    assert rest.step == 4
    assert_same(rest, dict(whole.model.named_parameters()))
    assert (
        rest.history.get("eval", "metrics/loss")[-1]
        == whole.history.get("eval", "metrics/loss")[-1]
    )


def on_ranks(rank, size, which, kind):
    loss = LOSSES[which]
    whole = {"x": ROWS, "labels": CLASSES}
    batch = {name: item.chunk(size)[rank] for name, item in whole.items()}
    loop = trained(seeded(Net), batch, loss, kind=kind, evals="loss", device="cpu")
    values = [value for _, value in loop.history.get("eval", "metrics/loss")]
    return {k: v.detach().numpy() for k, v in loop.model.named_parameters()}, values


@pytest.mark.parametrize(("which", "kind"), [(0, Loop), (2, Loop), (4, Loop), (0, WithOwnLoss)])
def test_ranks_train_batches_with_names_as_one_process_would(which, kind, tmp_path):
    """Each has its rows of them; weights and evals are those of the whole."""
    found = ranks.values(tmp_path, 2, on_ranks, 2, which, kind)
    weights, values = on_ranks(0, 1, which, kind)

    for its_weights, its_values in found:
        for name, weight in weights.items():
            np.testing.assert_allclose(its_weights[name], weight, atol=1e-6)
        np.testing.assert_allclose(its_values, values, atol=1e-6)


def test_a_rank_gets_its_rows_of_batches_with_names():
    """Shared out along the first axis, in training and in evals."""
    batch = {"x": ROWS, "labels": CLASSES}
    shares = [share_of([batch], rank, 3) for rank in range(3)]
    found = [next(share) for share in shares]

    assert [list(part) for part in found] == [["x", "labels"]] * 3
    assert torch.equal(torch.cat([part["x"] for part in found]), ROWS)
    (part,) = shares[1].epoch()
    assert torch.equal(part["labels"], CLASSES[2:5])


def test_the_monitor_counts_rows_of_batches_with_names():
    class Seen(callbacks.Monitor):
        def training_values(self):
            seen.append(dict(self._counts))
            return super().training_values()

    seen = []
    tokens = {"input_ids": torch.ones(4, 6, dtype=torch.long), "labels": torch.zeros(4).long()}

    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(2, 3)

        def forward(self, input_ids):
            return self.embedding(input_ids).mean(1)

    trained(Embedded(), tokens, nn.CrossEntropyLoss(), 1, callbacks=[Seen])

    assert seen == [{"items": 4, "tokens": 24}]
