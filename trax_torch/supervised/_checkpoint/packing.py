"""Nests as plain data for JSON, their tensors apart; and tensors as safetensors has them.

Reading makes data, and nothing that is named in it is imported or called: a class of tensors is
looked up among those that the program has.
"""

import collections
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from trax_torch import _distributed, _memory_order
from trax_torch._errors import CheckpointError, MismatchError

Tensors = dict[str, torch.Tensor]

# What every release of safetensors that we take reads and writes; other types go as bytes.
_NATIVE = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
}
_PLAIN = (torch.Tensor, nn.Parameter, nn.Buffer)
_KINDS = {"tuple": tuple, "set": set, "frozenset": frozenset}


def pack(nest: Any, prefix: str, tensors: Tensors) -> Any:
    """Returns `nest` as plain data for JSON; its tensors go into `tensors`, under `prefix`.

    Raises:
      CheckpointError: if a leaf is neither plain data nor a tensor, with its place.
    """
    if nest is None or isinstance(nest, (bool, int, float, str)):
        return nest.item() if isinstance(nest, np.generic) else nest
    if isinstance(nest, torch.Tensor):
        return _pack_tensor(nest, prefix, tensors)
    if isinstance(nest, np.generic) and nest.dtype.kind in "biuf":
        return {"number": [nest.dtype.name, nest.item()]}
    if isinstance(nest, np.ndarray) and nest.dtype.kind in "biufc":
        native = np.array(nest, nest.dtype.newbyteorder("="))
        return {"array": pack(torch.from_numpy(native), prefix, tensors)}
    if isinstance(nest, dict):
        return {
            "dict": [
                [pack(k, prefix, tensors), pack(v, f"{prefix}.{k}", tensors)]
                for k, v in nest.items()
            ]
        }
    if isinstance(nest, complex):
        return {"complex": [nest.real, nest.imag]}
    if isinstance(nest, bytes):
        return {"bytes": nest.hex()}
    if isinstance(nest, (torch.dtype, torch.device)):
        return {type(nest).__name__: str(nest).removeprefix("torch.")}
    if isinstance(nest, list):
        return _pack_items(nest, prefix, tensors)
    if isinstance(nest, collections.deque):
        return {"deque": [nest.maxlen, _pack_items(nest, prefix, tensors)]}
    for kind, known in _KINDS.items():
        if isinstance(nest, known) and not hasattr(nest, "_fields"):  # no namedtuple
            found: Any = nest
            items = found if kind == "tuple" else sorted(found, key=repr)
            return {kind: _pack_items(items, prefix, tensors)}
    raise CheckpointError(
        f"A {type(nest).__name__} cannot be saved in {prefix}: a state is made of numbers, "
        f"strings, tensors, lists, tuples and dicts."
    )


def unpack(data: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Returns the nest that `pack` packed.

    Raises:
      MismatchError: if it holds a class of tensors that the program has not.
    """
    if isinstance(data, list):
        return [unpack(x, tensors) for x in data]
    if not isinstance(data, dict):
        return data
    ((kind, content),) = data.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "wrapped":
        return _unpack_wrapped(content, tensors)
    if kind == "array":
        return unpack(content, tensors).numpy()
    if kind == "number":
        return np.dtype(content[0]).type(content[1])
    if kind in _KINDS:
        return _KINDS[kind](unpack(x, tensors) for x in content)
    if kind == "deque":
        return collections.deque(unpack(content[1], tensors), content[0])
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "complex":
        return complex(*content)
    if kind == "dtype":
        return _dtype(content)
    if kind == "device":
        return torch.device(content)
    return {unpack(k, tensors): unpack(v, tensors) for k, v in content}


def pieces_of(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns the tensors that one of a class of its own is made of, by name; itself by ''."""
    if not _is_made_of_others(tensor):
        return {"": tensor}
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    return {
        f"{name}.{inner}": piece
        for name in names
        for inner, piece in pieces_of(getattr(tensor, name)).items()
    }


def check_storable(tensor: Any, name: str) -> None:
    """Raises CheckpointError, with a name, if a tensor, or this rank's part, cannot be a file's."""
    tensor, why = _distributed.local(tensor), ""
    if not isinstance(tensor, torch.Tensor):
        why = f"it is a {type(tensor).__name__}, and no tensor"
    elif _is_made_of_others(tensor):
        why = f"it is a {type(tensor).__name__}, which is made of other tensors"
    elif tensor.layout != torch.strided:
        why = f"its layout is {tensor.layout}. Keep it dense, or its indices and values"
    elif tensor.is_quantized or tensor.dtype in _of_parts_of_bytes():
        why = f"torch cannot copy {tensor.dtype}. Keep it in another type, such as uint8"
    if why:
        raise CheckpointError(f"{name} cannot be saved: {why.rstrip('.')}.")


def to_plain(tensors: Mapping[str, torch.Tensor]) -> tuple[Tensors, dict[str, Any]]:
    """Returns tensors that safetensors takes, and what it does not keep of them.

    They are on the CPU, contiguous, of a type it knows, and none share memory.

    Returns:
      `(plain, forms)`: a form, by name where there is need of one, has `dtype` and `shape` of what
      became bytes, and `order`, the axes as they lay in memory.
    """
    plain: Tensors = {}
    forms: dict[str, Any] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        form: dict[str, Any] = {}
        tensor = tensor.detach()
        order = _memory_order.order_of(tensor)
        if order != sorted(order):
            form["order"] = order
        tensor = tensor.cpu().resolve_conj().resolve_neg().contiguous()
        if tensor.dtype not in _NATIVE:
            form |= {"dtype": str(tensor.dtype)[6:], "shape": list(tensor.shape)}
            tensor = tensor.reshape(-1).view(torch.uint8)
        if tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        plain[name] = tensor
        if form:
            forms[name] = form
    return plain, forms


def from_plain(plain: Tensors, forms: Mapping[str, Any]) -> Tensors:
    """Returns the tensors that `to_plain` was given, as they lay in memory, without gaps.

    Raises:
      ValueError: if a form is none.
    """
    tensors = dict(plain)
    for name, form in forms.items():
        tensor = plain[name]
        if "dtype" in form:
            tensor = tensor.view(_dtype(form["dtype"])).reshape(form["shape"])
        if "order" in form:
            if sorted(form["order"]) != list(range(tensor.dim())):
                raise ValueError(f"{form['order']} are not the axes of {name}.")
            tensor = _memory_order.in_order(tensor, form["order"])
        tensors[name] = tensor
    return tensors


def _pack_items(items: Any, prefix: str, tensors: Tensors) -> list[Any]:
    return [pack(x, f"{prefix}.{i}", tensors) for i, x in enumerate(items)]


def _pack_tensor(tensor: torch.Tensor, prefix: str, tensors: Tensors) -> Any:
    is_cut = _distributed.is_shard(tensor)
    if _is_made_of_others(tensor) and not is_cut:
        names, context = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
        return {
            "wrapped": {
                "class": _name_of(type(tensor)),
                "pieces": [
                    [name, pack(getattr(tensor, name), f"{prefix}.{name}", tensors)]
                    for name in names
                ],
                "context": pack(context, f"{prefix}.context", {}),
                "shape": list(tensor.shape),
                "strides": list(tensor.stride()),
            }
        }
    check_storable(tensor, prefix)
    if type(tensor) not in _PLAIN and not is_cut:
        raise CheckpointError(
            f"A {type(tensor).__name__} cannot be saved in {prefix}: it is a class of tensors that "
            f"does not say what it is made of, by __tensor_flatten__."
        )
    name = prefix
    while name in tensors:
        name += "'"
    tensors[name] = tensor
    return {"tensor": name}


def _unpack_wrapped(content: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    found = [kind for kind in _classes(torch.Tensor) if _name_of(kind) == content["class"]]
    if not found or not hasattr(found[-1], "__tensor_unflatten__"):
        raise MismatchError(
            f"The checkpoint holds tensors of the class {content['class']}, which this program has "
            f"not. Import it, or build the optimizer that it was saved with, before Loop."
        )
    pieces = {name: unpack(piece, tensors) for name, piece in content["pieces"]}
    context = unpack(content["context"], {})
    size, strides = torch.Size(content["shape"]), tuple(content["strides"])
    made: torch.Tensor = found[-1].__tensor_unflatten__(pieces, context, size, strides)
    return made


def _is_made_of_others(tensor: torch.Tensor) -> bool:
    return hasattr(tensor, "__tensor_flatten__")


def _classes(kind: type) -> Iterator[type]:
    below: type
    for below in kind.__subclasses__():
        yield below
        yield from _classes(below)


def _name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"torch has no type {name!r}.")
    return found


def _of_parts_of_bytes() -> set[torch.dtype]:
    """Returns the integer types of fewer than 8 bits, which torch names and cannot copy."""
    names = [f"{sign}int{n}" for sign in ("", "u") for n in range(1, 8)]
    return {getattr(torch, name) for name in names if hasattr(torch, name)}
