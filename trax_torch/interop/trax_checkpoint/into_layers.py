"""What a Trax file holds -> a layer's weights and state, and an optimizer's slots."""

from collections.abc import Sequence
from typing import Any

import torch

from trax_torch import layers as tl
from trax_torch._errors import MismatchError
from trax_torch.interop._pickle import TraxCheckpoint, read
from trax_torch.interop.trax_checkpoint import mismatch
from trax_torch.interop.trax_checkpoint import slots as _slots
from trax_torch.layers._protocol import is_plain_file, register_reader

Tensors = tuple[torch.Tensor, ...]


def load_into(layer: tl.Layer, checkpoint: TraxCheckpoint, weights_only: bool = False) -> None:
    """Fills a layer's weights, and its state unless `weights_only`; all or nothing.

    A layer that has no weights yet is initialized for the checkpoint's `input_signature` first.
    Values are cast to the type of the layer's own.

    Args:
      layer: the model that the checkpoint was made with, in train or eval mode.
      checkpoint: what `read` returned.
      weights_only: leaves the state as it is.

    Raises:
      MismatchError: if number or shape of the arrays is another, with the first differences; the
        layer is as it was.
      ValueError: if the layer has no weights and the checkpoint no input signature.

    Example:
      >>> from trax_torch.shapes import ShapeDtype
      >>> w, b = torch.ones(2, 3), torch.zeros(3)
      >>> checkpoint = TraxCheckpoint(
      ...     'model.pkl.gz', 0, (w, b), (), (), (), None, {}, ShapeDtype((1, 2)), '')
      >>> layer = tl.Dense(3)
      >>> load_into(layer, checkpoint)
      >>> layer(torch.ones(1, 2)).tolist()
      [[2.0, 2.0, 2.0]]

    Source: Trax `supervised/training.py::Loop.load_checkpoint`, which fills what fits, in order,
      and leaves the rest as it is; here that is an error.
    """
    signature = None if layer.is_initialized else _signature_for(layer, checkpoint)
    if signature is None:
        trees = layer.weights, layer.state
    else:
        try:
            trees = layer.weights_and_state_signature(signature)
        except tl.LayerError as error:
            raise MismatchError(
                f"{checkpoint.path} is of another model: {layer.name} cannot take the inputs its "
                f"model was made for, {signature}. Build the model as it was built in Trax."
            ) from error
    flat_weights, flat_state = tl.flatten_weights_and_state(*trees)
    weights = _fitted(checkpoint.flat_weights, flat_weights)
    state = list(checkpoint.flat_state)
    differences = mismatch.differences(
        "weights", mismatch.shapes(weights), mismatch.shapes(flat_weights)
    )
    if not weights_only:
        differences += mismatch.differences(
            "state", mismatch.shapes(state), mismatch.shapes(flat_state)
        )
    if differences:
        raise MismatchError(
            f"{checkpoint.path} is of another model than {layer.name}: "
            f"{mismatch.first(differences)}. Build the model with the arguments it had in Trax; "
            f"weights_only=True leaves its state alone."
        )
    if signature is not None:
        layer.init(signature, rng=0)  # a seed, so that no one else's random numbers change
    new_weights, new_state = tl.unflatten_weights_and_state(weights, state, trees, weights_only)
    before = layer.state
    try:
        if not weights_only:
            layer.state = new_state
        layer.weights = new_weights
    except BaseException:
        layer.state = before
        raise


def slots_by_weight(
    checkpoint: TraxCheckpoint, task: int = 0, optimizer_name: str = "Adam"
) -> list[Tensors]:
    """Returns one task's optimizer slots, one tuple for each weight, in Trax's order of weights.

    | optimizer | slots of a weight |
    | --- | --- |
    | SGD | none |
    | Momentum | velocity |
    | RMSProp | mean square of the gradients |
    | Adam | m, v |
    | Adafactor | v; or, of two axes and more, v of rows, v of columns; then the momentum, if any |
    | SM3 | the momentum, if any; one accumulator an axis; as many again if it averages |

    How many Adafactor and SM3 keep, depends on their arguments in Trax; the shapes tell. Shapes
    are those of the file.

    Args:
      checkpoint: what `read` returned.
      task: which task.
      optimizer_name: the optimizer's name in Trax.

    Raises:
      ValueError: if there is no optimizer of this name.
      MismatchError: if there is no such task, or its slots are another optimizer's.

    Example:
      >>> w = torch.ones(2, 3)
      >>> checkpoint = TraxCheckpoint(
      ...     'model.pkl.gz', 0, (w,), (), (), ((w.sum(1), w.sum(0)),), None, {}, None, '')
      >>> slots_by_weight(checkpoint, optimizer_name='Adafactor')
      [(tensor([3., 3.]), tensor([2., 2., 2.]))]
    """
    if optimizer_name not in _slots.LAYOUTS:
        raise ValueError(
            f"Slots are known of {', '.join(_slots.LAYOUTS)}; got {optimizer_name!r}. Name the "
            f"optimizer as Trax does."
        )
    n_tasks = len(checkpoint.slots_per_task)
    if not 0 <= task < n_tasks:
        raise MismatchError(
            f"{checkpoint.path} has the slots of {n_tasks} tasks; task {task} was asked for. Tasks "
            f"count from 0, and their slots lie in files that must be beside the checkpoint."
        )
    slots = checkpoint.slots_per_task[task]
    sizes, differences = _slots.group(
        optimizer_name, mismatch.shapes(checkpoint.flat_weights), mismatch.shapes(slots)
    )
    if differences:
        raise MismatchError(
            f"{checkpoint.path} has the slots of another optimizer: "
            f"{mismatch.first(differences)}. Name the one that the task was trained with in Trax."
        )
    items = iter(slots)
    return [tuple(next(items) for _ in range(size)) for size in sizes]


def _signature_for(layer: tl.Layer, checkpoint: TraxCheckpoint) -> Any:
    signature = checkpoint.input_signature
    items = signature if isinstance(signature, tuple) else (signature,)
    if signature is None or len(items) < layer.n_in:
        raise ValueError(
            f"{layer.name} has no weights yet and takes {layer.n_in} inputs, but {checkpoint.path} "
            f"has the input signature {signature}. Initialize it, model.init(signature), first."
        )
    return items[0] if layer.n_in == 1 else items[: layer.n_in]


def _fitted(tensors: Tensors, places: Sequence[Any]) -> list[torch.Tensor]:
    """Returns tensors without the leading axis of 1 that positional tables once had in Trax."""
    if len(tensors) != len(places):
        return list(tensors)
    return [
        t[0] if t.dim() == 3 and tuple(t.shape) == (1, *place.shape) else t
        for t, place in zip(tensors, places, strict=True)
    ]


def _fill(module: Any, file_name: str, weights_only: bool) -> None:
    """Fills a layer from a file of Trax's, for `Layer.init_from_file`."""
    if not isinstance(module, tl.Layer):
        raise ValueError(
            f"{file_name} has its weights in Trax's order, which layers of trax_torch know; got a "
            f"{type(module).__name__}. Load it into the model that was built as in Trax."
        )
    load_into(module, read(file_name, with_slots=False), weights_only)


def _takes(path: str) -> bool:
    """Tells whether a file is of Trax's: `Layer.save_to_file` has its own under any name."""
    return path.endswith(".pkl.gz") and not is_plain_file(path)


register_reader(_takes, _fill)
