"""Examples that wait in a buffer, as a few long arrays: so they lie in a checkpoint.

A list of thousands of small arrays would be thousands of tensors there, each with a name. Here
leaves of one kind lie end to end in one column, and what an example is made of is said once.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

_NUMBERS = "biufc"  # numpy's kinds whose arrays safetensors has, or are seen as bytes of
_OF_BYTES = "SUMm"  # those that only numpy has
_MANY = 4  # from so many equal parts on, a list is said by its length


class UnpackableError(TypeError):
    """An example holds what is no plain data."""


def pack_items(items: list[Any]) -> dict[str, Any]:
    """Returns examples as plain data with a few arrays; `unpack_items` gives them back.

    An example is a nest of tuples, lists and dicts of arrays, tensors, numbers, strings and bytes.

    Raises:
      UnpackableError: if one holds anything else.

    Example:
      >>> packed = pack_items([(np.ones(3), 'a'), (np.ones(2), 'bc')])
      >>> unpack_items(packed)[1]
      (array([1., 1.]), 'bc')
    """
    packer = _Packer()
    which = [packer.template_of(item) for item in items]
    return {
        "n": len(items),
        "templates": list(packer.templates.values()),
        "which": _small(which) if len(packer.templates) > 1 else None,
        "columns": [_packed(key, leaves) for key, leaves in packer.columns.items()],
    }


def unpack_items(packed: dict[str, Any]) -> list[Any]:
    """Returns the examples that `pack_items` packed."""
    columns = [_unpacked(column) for column in packed["columns"]]
    templates, which = packed["templates"], packed["which"]
    indices = [0] * packed["n"] if which is None else which.tolist()
    return [_filled(templates[i], columns) for i in indices]


class _Packer:
    """Columns of leaves, by what they are, and templates of what examples are made of."""

    def __init__(self) -> None:
        self.columns: dict[tuple[Any, ...], list[Any]] = {}
        self.templates: dict[str, Any] = {}
        self._numbers: dict[str, int] = {}
        self._places: dict[tuple[Any, ...], int] = {}

    def template_of(self, item: Any) -> int:
        """Puts the leaves of an example in their columns; returns the number of its template."""
        template = self._node(item)
        text = repr(template)
        self.templates.setdefault(text, template)
        return self._numbers.setdefault(text, len(self._numbers))

    def _leaf(self, key: tuple[Any, ...], leaf: Any) -> list[Any]:
        self.columns.setdefault(key, []).append(leaf)
        return ["leaf", self._places.setdefault(key, len(self._places))]

    def _node(self, x: Any) -> list[Any]:
        if isinstance(x, np.ndarray):
            return self._array(x)
        if isinstance(x, np.generic):
            return self._leaf(("scalar", x.dtype.newbyteorder("=").str, 0), np.asarray(x))
        if isinstance(x, torch.Tensor):
            return self._leaf(("tensor", "", x.dim(), x.dtype), x.detach())
        if type(x) is str:
            return self._leaf(("str", "|u1", 1), _bytes(x.encode("utf-8", "surrogatepass")))
        if type(x) is bytes:
            return self._leaf(("bytes", "|u1", 1), _bytes(x))
        if type(x) is float:
            return self._leaf(("float", "<f8", 0), np.asarray(x))
        if x is None or type(x) in (bool, int):
            return self._number(x)
        return self._parts(x)

    def _number(self, x: Any) -> list[Any]:
        if type(x) is int and -(2**63) <= x < 2**63:
            return self._leaf(("int", "<i8", 0), np.asarray(x))
        return ["constant", x]

    def _array(self, x: np.ndarray[Any, Any]) -> list[Any]:
        if x.dtype.kind in _NUMBERS + _OF_BYTES and x.dtype.itemsize:
            native = x.astype(x.dtype.newbyteorder("="), copy=False)
            return self._leaf(("array", native.dtype.str, x.ndim), native)
        if x.dtype == object:
            return ["objects", list(x.shape), self._node(list(x.ravel()))]
        raise _unpackable(f"an array of {x.dtype}")

    def _parts(self, x: Any) -> list[Any]:
        if type(x) is dict:
            return ["dict", list(x), self._node(list(x.values()))]
        if type(x) is list and x and all(type(part) is int for part in x):
            array = np.array(x)
            if array.dtype.kind == "i":  # all of 64 bits
                return self._leaf(("ints", "<i8", 1), array.astype(np.int64))
        if type(x) not in (tuple, list):
            raise _unpackable(f"a {type(x).__name__}")
        nodes = [self._node(part) for part in x]
        if len(nodes) >= _MANY and all(node == nodes[0] for node in nodes):
            return ["repeated", type(x).__name__, len(nodes), nodes[0]]
        return [type(x).__name__, nodes]


def _unpackable(what: str) -> UnpackableError:
    return UnpackableError(
        f"A checkpoint keeps the examples that wait in a pipeline's buffers, which must be made of "
        f"arrays, tensors, numbers, strings, bytes, tuples, lists and dicts; one holds {what}. "
        f"Make it an array before the stage that keeps it: Map(np.asarray, keys=[0])."
    )


def _filled(template: list[Any], columns: list[Iterator[Any]]) -> Any:
    """Returns an example like a template, with the next leaves of each column."""
    kind, *content = template
    if kind == "leaf":
        return next(columns[content[0]])
    if kind == "constant":
        return content[0]
    if kind == "dict":
        return dict(zip(content[0], _filled(content[1], columns), strict=True))
    if kind == "objects":
        array = np.empty(int(np.prod(content[0])), object)
        for i, part in enumerate(_filled(content[1], columns)):
            array[i] = part
        return array.reshape(content[0])
    if kind == "repeated":
        kind, nodes = content[0], [content[2]] * content[1]
    else:
        nodes = content[0]
    parts = [_filled(node, columns) for node in nodes]
    return tuple(parts) if kind == "tuple" else parts


def _packed(key: tuple[Any, ...], leaves: list[Any]) -> dict[str, Any]:
    """Returns the leaves of one kind end to end, and where each ends."""
    kind, dtype, n_axes = key[:3]
    shapes = np.array([leaf.shape for leaf in leaves]).reshape(len(leaves), n_axes)
    one_shape = len(leaves) > 0 and bool((shapes == shapes[0]).all())
    data: Any
    if kind == "tensor":
        data = torch.cat([leaf.cpu().reshape(-1) for leaf in leaves])
    else:
        data = np.concatenate([leaf.reshape(-1) for leaf in leaves])
        if np.dtype(dtype).kind in _OF_BYTES:
            data = data.view(np.uint8)
    return {
        "kind": kind,
        "dtype": dtype,
        "n": len(leaves),
        "data": data,
        "shapes": shapes[0].tolist() if one_shape else _small(shapes),
    }


def _unpacked(column: dict[str, Any]) -> Iterator[Any]:
    """Yields the leaves of a column."""
    kind, dtype, data = column["kind"], column["dtype"], column["data"]
    made = _MADE[kind]
    if dtype and np.dtype(dtype).kind in _OF_BYTES:
        data = data.view(np.dtype(dtype))
    shapes = column["shapes"]
    rows = [shapes] * column["n"] if isinstance(shapes, list) else shapes.tolist()
    begin = 0
    for shape in rows:
        end = begin + int(np.prod(shape))
        leaf = data[begin:end]
        yield made(leaf.clone() if kind == "tensor" else leaf.copy(), shape)
        begin = end


_MADE: dict[str, Callable[[Any, list[int]], Any]] = {
    "array": lambda leaf, shape: leaf.reshape(shape),
    "tensor": lambda leaf, shape: leaf.reshape(shape),
    "scalar": lambda leaf, shape: leaf[0],
    "str": lambda leaf, shape: leaf.tobytes().decode("utf-8", "surrogatepass"),
    "bytes": lambda leaf, shape: leaf.tobytes(),
    "int": lambda leaf, shape: int(leaf[0]),
    "float": lambda leaf, shape: float(leaf[0]),
    "ints": lambda leaf, shape: leaf.tolist(),
}


def _bytes(x: bytes) -> np.ndarray[Any, Any]:
    return np.frombuffer(x, np.uint8)


def _small(numbers: Any) -> np.ndarray[Any, Any]:
    """Returns whole numbers from 0 on as an array of the smallest type that holds them."""
    array = np.asarray(numbers)
    return array.astype(np.min_scalar_type(int(array.max(initial=0))))
