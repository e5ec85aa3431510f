"""How the loss of a batch is computed, and whether its parts make up the whole."""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from trax_torch import _nest, optimizers
from trax_torch import layers as tl
from trax_torch.layers import _stack
from trax_torch.layers._modes import modes_kept
from trax_torch.supervised import _tasks
from trax_torch.supervised._settings import Settings


class LossOf(torch.nn.Module):
    """Computes the loss of a batch as model and loss in series do, in a context of its own.

    Args:
      both: model and loss in series, whose weights are all found here: ranks add up gradients of
        those, too, that no part of the model uses, but the loss.
      model: what runs for the model.
      loss: what runs for the loss.
      autocast: makes the context.
    """

    def __init__(
        self,
        both: tl.Layer,
        model: tl.Layer,
        loss: tl.Layer | optimizers.ChunkedLoss,
        autocast: Callable[[], Any],
    ):
        super().__init__()
        self.both = both
        self.model = model
        self.loss = loss
        self._autocast = autocast

    def forward(self, batch: tuple[Any, ...]) -> torch.Tensor:
        with self._autocast():
            outputs = self.model(_stack.take(batch, self.model.n_in))
            stack = _stack.put(outputs, batch, self.model.n_in)
            result: torch.Tensor = self.loss(_stack.take(stack, self.loss.n_in))
        return result


def cut_for_chunks(
    model: tl.Layer, running_model: tl.Layer, settings: Settings
) -> tuple[tl.Layer, tl.Layer | None]:
    """Returns `(body, head)`: what runs on whole batches, and what runs on chunks of positions.

    The head is the model's last Dense, if it ends in one and chunks are wanted; else None.
    """
    if not settings.loss_chunk_size:
        return running_model, None
    layers, head = optimizers.split_head(model)
    if head is None:
        return running_model, None
    body = tl.Serial(*layers)
    return tl.Accelerate(body) if settings.compile and layers else body, head


def refuse_if_chunks_differ(both: tl.Layer, head: tl.Layer | None, task: _tasks.TrainTask) -> None:
    """Raises ValueError if a loss, of which nothing is known, is another one in chunks.

    Two rows of the sample batch are looked at, each a chunk.
    """
    model, loss = both.sublayers
    layers = [model] if head is None else optimizers.split_head(model)[0]
    in_chunks = LossOf(
        both, tl.Serial(*layers), optimizers.ChunkedLoss(head, loss, 1), contextlib.nullcontext
    )
    cause: Exception | None = None
    with _measuring(both) as device:
        batch = _nest.to_tensors(task.sample_batch, device)
        rows = _nest.map_leaves(lambda x: x[:2] if getattr(x, "ndim", 0) else x, batch)
        try:
            whole = float(both(rows))
            chunks = float(in_chunks(rows))
            what = f"is {whole:.6g} for two rows of the sample batch and {chunks:.6g} for them"
        except Exception as error:
            cause, what = error, f"cannot be computed for two rows of the sample batch ({error})"
    if cause is None and (
        whole == chunks
        or (math.isnan(whole) and math.isnan(chunks))  # which tells nothing
        or abs(chunks - whole) <= 1e-3 * max(abs(whole), 1e-6)
    ):
        return
    raise ValueError(
        f"Chunks need a loss that is a mean over items, and {task.loss_name} {what} in chunks. "
        f"Leave loss_chunk_size at 0; or write the loss as a mean over items, and where they have "
        f"weights, take these as a third input called weights."
    ) from cause


def warn_of_uneven(both: tl.Layer, shares: optimizers.Shares, task: _tasks.TrainTask) -> None:
    """Warns if a loss, of whose items nothing is known, is another one for a batch in parts."""
    if not shares.counts_rows or not any(isinstance(m, tl.Wrapped) for m in both.modules()):
        return
    with _measuring(both) as device:
        batch = _nest.to_tensors(task.sample_batch, device)
        try:
            halves = shares.cut(batch, 2)
        except ValueError:  # a batch that is never cut
            return
        whole = float(both(batch))
        parts = sum(float(both(part)) * share for part, share in halves)
    if not abs(parts - whole) <= 1e-3 * max(abs(whole), 1e-6):  # which NaN is not either
        warnings.warn(
            f"{task.loss_name} is {whole:.6g} for the sample batch and {parts:.6g} for its halves "
            f"together, each counting by its rows; so gradients of parts of a batch, or of ranks, "
            f"are not those of the whole. Take the weights of items as a third input called "
            f"weights, or nn.CrossEntropyLoss, which tells which targets it ignores.",
            stacklevel=3,
        )


@contextlib.contextmanager
def _measuring(both: tl.Layer) -> Iterator[torch.device]:
    """Has a model and its loss in eval mode for a while, all on the device that it gives.

    That is where the weights are, which may be host memory.
    """
    device = next((p.device for p in both.parameters()), torch.device("cpu"))
    places = [(m._buffers, name) for m in both.modules() for name in m._buffers]
    kept = [buffers[name] for buffers, name in places]
    try:
        for (buffers, name), buffer in zip(places, kept, strict=True):
            buffers[name] = None if buffer is None else buffer.to(device)
        with modes_kept(both), torch.no_grad():
            both.eval()
            yield device
    finally:
        for (buffers, name), buffer in zip(places, kept, strict=True):
            buffers[name] = buffer
