"""How the loss of a batch is computed, and whether its parts make up the whole."""

import contextlib
import functools
from collections.abc import Callable, Generator
from typing import Any

import torch

from trax_torch import _nest, optimizers
from trax_torch import layers as tl
from trax_torch.layers._protocol import explain, has_hooks, modes_kept, passes_through
from trax_torch.layers._protocol import stack as _stack
from trax_torch.supervised import _tasks
from trax_torch.supervised._loop.outputs import Met
from trax_torch.supervised._loop.settings import LoopConfig


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


class Straight:
    """Computes the loss of a batch as foreign model and loss in series do, on the shortest way.

    The layers that we have put around them are not called as modules, which takes longer than
    what they do; nobody but us knows them, so nobody waits for their calls.

    Args:
      both: the two, each in a layer of ours.
    """

    def __init__(self, both: tl.Layer):
        self._both = both
        self._model, self._loss = both.sublayers
        self._n_in = self._model.n_in
        self._n_items = self._n_in + self._loss.n_in - 1

    @staticmethod
    def can_take(both: tl.Layer) -> bool:
        """Tells whether model and loss in series can go this way."""
        model, loss = both.sublayers
        ours = type(model) is Met and type(loss) in (
            tl.Wrapped,
            _tasks.FunctionLoss,
            _tasks.OwnLoss,
        )
        return ours and model.n_out == 1 and not any(map(has_hooks, (both, model, loss)))

    def __call__(self, batch: tuple[Any, ...]) -> torch.Tensor:
        """Returns the loss of a batch on the model's device.

        Raises:
          LayerError: if anything goes wrong inside, as if both were called.
        """
        n = self._n_in
        if len(batch) != self._n_items:
            result: torch.Tensor = self._both(batch)
            return result
        try:
            stack = _call(self._model, batch[0] if n == 1 else batch[:n])
            if n < len(batch) or not isinstance(stack, torch.Tensor):
                stack = _stack.take(_stack.put(stack, batch, n), self._loss.n_in)
            result = _call(self._loss, stack)
        except Exception as error:
            if isinstance(error, tl.LayerError) or passes_through(error):
                raise
            raise explain(self._both, batch, error) from error
        return result


def _call(self: tl.Layer, *args: Any) -> Any:
    """Returns a layer's outputs; errors know the frame of a module's call by these names."""
    return self.forward(*args)


def cut_for_chunks(
    model: tl.Layer, running_model: tl.Layer, config: LoopConfig
) -> tuple[tl.Layer, tl.Layer | None]:
    """Returns `(body, head)`: what runs on whole batches, and what runs on chunks of positions.

    The head is the model's last Dense, if it ends in one and chunks are wanted; else None.
    """
    if not config.loss_chunk_size:
        return running_model, None
    layers, head = optimizers.split_head(model)
    if head is None:
        return running_model, None
    body = tl.Serial(*layers)
    return tl.Accelerate(body) if config.compile and layers else body, head


def refuse_if_chunks_differ(
    both: tl.Layer, head: tl.Layer | None, task: _tasks.TrainTask, sample: tuple[Any, ...]
) -> None:
    """Raises ValueError if a loss, of which nothing is known, is another one in chunks.

    It is computed for each two neighbouring rows of the sample batch: together, and as two chunks.
    So a mean over what a mask leaves is found by any two rows of which it leaves differently much;
    where it hides as much of all rows, nothing is seen. Two rows at a time need little memory,
    which all of the batch may not have.
    """
    model, loss = both.sublayers
    body = tl.Serial(*([model] if head is None else optimizers.split_head(model)[0]))
    chunked = optimizers.ChunkedLoss(head, loss, 1)
    what, cause = "", None
    with measuring(both) as device:
        batch = _nest.to_tensors(sample, device)
        try:
            stack = _stack.put(body(_stack.take(batch, body.n_in)), batch, body.n_in)
            inputs = _stack.take(stack, loss.n_in)
            first = next(_nest.leaves(inputs))
            for i in range(max(1, len(first) - 1) if first.ndim else 1):
                rows = _nest.map_leaves(functools.partial(_rows, start=i, stop=i + 2), inputs)
                whole, chunks = chunked.head_and_loss(rows), chunked(rows)
                if not _are_alike(whole, chunks, 1e-4):
                    what = f"is {whole:.6g} for rows {i} and {i + 1} of the sample batch and "
                    what += f"{chunks:.6g} for them in chunks"
                    break
        except Exception as error:
            cause = error
            what = f"cannot be computed for two rows of the sample batch in chunks ({error})"
    if not what:
        return
    raise ValueError(
        f"Chunks need a loss that is a mean over items, and {task.loss_name} {what}. "
        f"Leave loss_chunk_size at 0; or write the loss as a mean over items, and where they have "
        f"weights, take these as a third input called weights."
    ) from cause


def _rows(x: Any, start: int, stop: int) -> Any:
    return x[start:stop] if getattr(x, "ndim", 0) else x


def _are_alike(whole: torch.Tensor, parts: torch.Tensor, tolerance: float) -> bool:
    """Tells whether a loss is the same to rounding, or no number either way, which tells nothing.

    Args:
      whole: the loss of a batch.
      parts: that of its parts together.
      tolerance: how much of it may be rounding, unless its type has fewer digits; more than is,
        since it may be the small rest of large terms.
    """
    if whole.is_floating_point():
        tolerance = max(tolerance, 4 * torch.finfo(whole.dtype).eps)
    alike = torch.isclose(parts, whole, rtol=tolerance, atol=1e-6 * tolerance, equal_nan=True)
    return bool(alike.item())


@contextlib.contextmanager
def measuring(both: tl.Layer, with_gradients: bool = False) -> Generator[torch.device]:
    """Has a model and its loss in eval mode for a while, all on the device that it gives.

    That is where the weights are, which may be host memory. Buffers are then as they were before.
    """
    device = next((p.device for p in both.parameters()), torch.device("cpu"))
    places = [(m._buffers, name) for m in both.modules() for name in m._buffers]
    kept = [buffers[name] for buffers, name in places]
    try:
        for (buffers, name), buffer in zip(places, kept, strict=True):
            buffers[name] = None if buffer is None else buffer.to(device, copy=True)
        with modes_kept(both), torch.set_grad_enabled(with_gradients):
            both.eval()
            yield device
    finally:
        for (buffers, name), buffer in zip(places, kept, strict=True):
            buffers[name] = buffer
