"""What to do about the errors that torch's modules raise most: one sentence, from what came in.

Torch says what did not fit in its own words, `mat1 and mat2 shapes cannot be multiplied`, say. The
module that failed and its inputs tell what was needed, what came, and the line to write.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


def advice_for(module: Any, args: tuple[Any, ...], error: Exception) -> str:
    """Returns what to do about an error of a module called with `args`; "" where nothing is known.

    It reads types and shapes, and of class numbers the largest and least; nothing is computed on a
    device, which may be the one that failed.
    """
    module = _MODULE_OF.get(getattr(module, "fn", None), module)
    for kinds, advise in _BY_MODULE:
        if isinstance(module, kinds):
            tensors = [x for x in _flat(args) if isinstance(x, torch.Tensor)]
            said = advise(module, tensors, str(error)) if tensors else ""
            if said:
                return said
    return next((advice for words, advice in _BY_WORDS if re.search(words, str(error))), "")


def _flat(args: Any) -> Iterator[Any]:
    for x in args:
        if isinstance(x, (tuple, list)):
            yield from _flat(x)
        else:
            yield x


def _of_linear(module: Any, tensors: list[torch.Tensor], text: str) -> str:
    shape, n = tuple(tensors[0].shape), module.in_features
    if shape and shape[-1] != n:
        whole = tensors[0][0].numel() if shape[0] else 0
        flat = " Or flatten what comes before, by nn.Flatten()." if whole == n else ""
        return (
            f"This Linear takes {n} features along the last axis, and {shape[-1]} came. Build it "
            f"with in_features={shape[-1]}, or give it {n}.{flat}"
        )
    return _of_types(module, tensors)


def _of_types(module: Any, tensors: list[torch.Tensor], text: str = "") -> str:
    weight = next(module.parameters(), None)
    if weight is None or tensors[0].dtype == weight.dtype:
        return ""
    came, has = (str(d).removeprefix("torch.") for d in (tensors[0].dtype, weight.dtype))
    return (
        f"The weights are {has}, and {came} came. Convert the batch, x.to(torch.{has}); or the "
        f"model, before the optimizer is made of it."
    )


def _of_convolution(module: Any, tensors: list[torch.Tensor], text: str) -> str:
    shape, n = tuple(tensors[0].shape), module.in_channels
    n_axes = 2 + len(module.kernel_size)
    axes = "(batch, channels, height, width)" if n_axes == 4 else ""
    needed = axes or f"{n_axes} axes, (batch, channels, ...)"
    if len(shape) not in (n_axes - 1, n_axes):
        return f"It takes {needed}; the shape that came is {shape}. Add or merge axes."
    if shape[1 - n_axes] == n:
        return _of_types(module, tensors)
    last = f" The {n} channels came last: put them second, x.movedim(-1, 1)."
    return (
        f"It takes {n} channels along axis 1 of {needed}; {shape[1 - n_axes]} came, in shape "
        f"{shape}."
        + (last if shape[-1] == n else f" Build it with in_channels={shape[1 - n_axes]}.")
    )


def _of_normalization(module: Any, tensors: list[torch.Tensor], text: str) -> str:
    if "more than 1 value per channel" in text:
        return (
            "A batch of one row has no variance. Drop such a last batch, DataLoader(..., "
            "drop_last=True), or make it larger."
        )
    n, shape = module.num_features, tuple(tensors[0].shape)
    if len(shape) > 1 and shape[1] != n:
        return f"It was built for {n} channels along axis 1; {shape[1]} came, in shape {shape}."
    return ""


def _of_layer_norm(module: Any, tensors: list[torch.Tensor], text: str) -> str:
    needed, shape = tuple(module.normalized_shape), tuple(tensors[0].shape)
    if shape[len(shape) - len(needed) :] == needed:
        return _of_types(module, tensors)
    came = shape[-len(needed) :]
    return f"It was built for last axes {needed}; {came} came. Build it as nn.LayerNorm({came})."


def _of_recurrent(module: Any, tensors: list[torch.Tensor], text: str) -> str:
    n, shape = module.input_size, tuple(tensors[0].shape)
    if shape and shape[-1] != n:
        return (
            f"It takes {n} features along the last axis, and {shape[-1]} came. Build it with "
            f"input_size={shape[-1]}; {'batch' if module.batch_first else 'length'} comes first."
        )
    return _of_types(module, tensors)


def _of_embedding(module: Any, tensors: list[torch.Tensor], text: str) -> str:
    ids, n = tensors[0], module.num_embeddings
    if ids.is_floating_point():
        return "Ids to look up are integers: x.long(), or put the ids first in the batch."
    low, high = _range_of(ids)
    if low < 0 or high >= n:
        return (
            f"It has rows for ids 0 to {n - 1}, and ids from {low} to {high} came. Build it with "
            f"num_embeddings={high + 1} or more, or look at how ids are made."
        )
    return ""


def _of_class_numbers(module: Any, tensors: list[torch.Tensor], text: str) -> str:
    if len(tensors) < 2:
        return ""
    outputs, targets = tensors[:2]
    shape, came = tuple(outputs.shape), tuple(targets.shape)
    if targets.is_floating_point():
        return (
            "Targets are class numbers, which are int64: targets.long(). Where targets are amounts "
            "the loss is nn.MSELoss(), for yes or no nn.BCEWithLogitsLoss()."
        )
    if len(came) > 1 and came[-1] == 1 and len(came) == len(shape):
        return f"Targets {came} have an axis too many; write targets.squeeze(-1)."
    if len(shape) == 3 and shape[:2] == came:
        return (
            f"It takes classes along axis 1, and the outputs have shape {shape}. Write "
            f"outputs.transpose(1, 2) in the model, or take layers.CategoryCrossEntropy()."
        )
    if targets.dtype not in (torch.int64, torch.uint8):
        return (
            "Targets are class numbers of type int64: targets.long(), x.astype('int64') in numpy."
        )
    if shape[:1] != came[:1] or len(shape) != len(came) + 1:
        return f"For outputs {shape} targets have shape {shape[:1] + shape[2:]}; {came} came."
    low, high = _range_of(targets)
    n = outputs.shape[1 if outputs.dim() > 1 else 0]
    if low < 0 or high >= n:
        return (
            f"The model tells {n} classes apart, numbered 0 to {n - 1}, and targets from {low} to "
            f"{high} came. Give the model {high + 1} outputs, or number the classes from 0."
        )
    return ""


def _of_logits(module: Any, tensors: list[torch.Tensor], text: str) -> str:
    outputs, targets = tensors[0], tensors[-1]
    if outputs.shape != targets.shape:
        return (
            f"Outputs and targets have one shape; got {tuple(outputs.shape)} and "
            f"{tuple(targets.shape)}. Write targets.view_as(outputs), or outputs.squeeze(-1)."
        )
    if not targets.is_floating_point():
        return "Targets are floats between 0 and 1: write targets.float()."
    if "between 0 and 1" in text:
        return "BCELoss takes probabilities; for what a Linear gives take nn.BCEWithLogitsLoss()."
    return ""


def _range_of(ids: torch.Tensor) -> tuple[int, int]:
    """Returns the least and the largest; (0, -1) of none, or where reading might fail again."""
    if not ids.numel() or ids.device.type != "cpu":
        return 0, -1
    return int(ids.min()), int(ids.max())


_Advise = Callable[[Any, list[torch.Tensor], str], str]
_BY_MODULE: list[tuple[Any, _Advise]] = [
    (nn.Linear, _of_linear),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), _of_convolution),
    ((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _of_normalization),
    (nn.LayerNorm, _of_layer_norm),
    (nn.RNNBase, _of_recurrent),
    (nn.Embedding, _of_embedding),
    ((nn.CrossEntropyLoss, nn.NLLLoss), _of_class_numbers),
    ((nn.BCEWithLogitsLoss, nn.BCELoss), _of_logits),
]
# Functions that are losses, and the modules that tell what they take.
_MODULE_OF: dict[Any, Any] = {
    F.cross_entropy: nn.CrossEntropyLoss(),
    F.nll_loss: nn.NLLLoss(),
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss(),
    F.binary_cross_entropy: nn.BCELoss(),
}
_BY_WORDS = [
    (
        r"Target -?\d+ is out of bounds",
        "Class numbers go from 0 to one less than the model has outputs: give it more outputs, or "
        "number the classes from 0.",
    ),
    (
        "expected target dtype",
        "Targets are class numbers, which are int64: targets.long().",
    ),
    (
        "must be Tensor, not (list|tuple|str)",
        "Text, and lists of uneven rows, are no tensors: encode and pad them where batches are "
        "made, DataLoader(..., collate_fn=...).",
    ),
    (
        'missing the required "forward" function',
        "Define `def forward(self, x)` in the class, with the indentation of a method.",
    ),
    (
        "on the same device|is on (cpu|cuda)|but got .* on cuda",
        "Batch and model are on one device; what `forward` makes itself must be, too: make it with "
        "device=x.device, or keep it by register_buffer.",
    ),
    (
        r"forward\(\) (takes|missing|got)",
        "The module is called with the first items of a batch, one argument each. Yield as many as "
        "its forward takes, or say how many those are: layers.as_layer(model, n_in=...).",
    ),
    (
        "mat1 and mat2 shapes",
        "The last axis of what came is not what the weights take: compare the shapes above.",
    ),
    (
        "[sS]izes of tensors must match|must match the size of tensor",
        "Two tensors that are put together differ in an axis: the traceback's last line of your "
        "own says which two.",
    ),
    (
        "view size is not compatible",
        "The tensor was transposed: write x.reshape(...) for x.view(...).",
    ),
    (
        "shape '.*' is invalid for input of size",
        "A shape is fixed in `forward` that holds for one size of batch alone: take x.shape[0], "
        "or -1 for one axis.",
    ),
    (
        "[eE]xpected .*(dtype|scalar type)|must have the same dtype|to have the same dtype",
        "Two tensors differ in type: convert one, x.to(other.dtype).",
    ),
]
