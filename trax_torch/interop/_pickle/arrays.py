"""Bytes with a type and a shape -> tensors; numpy's `.npy` streams.

This room never takes memory before the bytes for it are there, and knows no types but numbers.
"""

import math
import re
from collections.abc import Sequence

import numpy as np
import torch

from trax_torch._errors import CheckpointError, UnsafeCheckpointError
from trax_torch.interop._pickle.gzip_stream import GzipReader

BFLOAT16 = "bfloat16"

# numpy's codes without the byte order -> torch's types.
TYPES = {
    "b1": torch.bool,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "u2": torch.uint16,
    "u4": torch.uint32,
    "u8": torch.uint64,
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    BFLOAT16: torch.bfloat16,
}

MAX_DIMS = 32
_MAX_HEADER = 10_000
_MAX_BYTES = 1 << 47  # of one array; keeps its strides far from overflow
_MAGIC = b"\x93NUMPY"
_HEADER = re.compile(
    rb"\{'descr': '([<>|=]?)([A-Za-z]{1,2}[0-9]{0,4})', 'fortran_order': (False|True), "
    rb"'shape': \(((?:[0-9]{1,19}, ?)*(?:[0-9]{1,19})?)\), \} *\n"
)


def check_type(code: str, byte_order: str) -> str:
    """Returns a numpy type code if tensors can have it, in this byte order."""
    if code not in TYPES or byte_order not in ("<", "|", "=", ""):
        raise UnsafeCheckpointError(f"an array has the type {f'{byte_order}{code}'[:40]!r}")
    return code


def n_bytes_of(code: str, shape: Sequence[int]) -> int:
    """Returns how many bytes an array has; UnsafeCheckpointError if no array can be so large."""
    item = TYPES[code].itemsize
    plausible = len(shape) <= MAX_DIMS and all(size >= 0 for size in shape)
    if not plausible or math.prod(max(size, 1) for size in shape) * item > _MAX_BYTES:
        raise UnsafeCheckpointError("an array has a shape that no array can have")
    return math.prod(shape) * item


def to_tensor(
    data: bytearray | memoryview, code: str, shape: Sequence[int], fortran_order: bool
) -> torch.Tensor:
    """Returns a contiguous tensor of given bytes; it owns them if `data` is a bytearray.

    Unsigned 16-bit integers are the bits of bfloat16 numbers: that is how Trax stores these.

    Raises:
      UnsafeCheckpointError: if there are more or fewer bytes than type and shape say.
    """
    needed = n_bytes_of(code, shape)
    if len(data) != needed:
        raise UnsafeCheckpointError(
            f"an array of {TYPES[code]} and shape {tuple(shape)} needs {needed} bytes, "
            f"but has {len(data)}"
        )
    array = np.frombuffer(data, "<u2" if code == BFLOAT16 else f"<{code}")
    if code == "b1" and (array.view(np.uint8) > 1).any():
        raise UnsafeCheckpointError("an array of booleans holds other values than 0 and 1")
    array = array.reshape(shape, order="F" if fortran_order else "C")
    if not array.flags.writeable or not array.flags.c_contiguous:
        array = np.array(array, order="C")
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if code in ("u2", BFLOAT16) else tensor


def read_npy_stream(reader: GzipReader) -> list[torch.Tensor]:
    """Returns all arrays of a stream of `.npy` files one after another.

    Raises:
      CheckpointError: if the stream ends within an array.
      UnsafeCheckpointError: if a header is not as numpy writes it for a plain array.
    """
    tensors = []
    while start := reader.read(len(_MAGIC) + 2):
        code, fortran_order, shape = _read_header(reader, start)
        needed = n_bytes_of(code, shape)
        reader.budget.check(needed)
        data = reader.read(needed)
        if len(data) < needed:
            raise CheckpointError("it is cut off: it ends within an array")
        tensors.append(to_tensor(data, code, shape, fortran_order))
    return tensors


def _read_header(reader: GzipReader, start: bytearray) -> tuple[str, bool, tuple[int, ...]]:
    magic, version = bytes(start[: len(_MAGIC)]), bytes(start[len(_MAGIC) :])
    if magic != _MAGIC or version not in (b"\1\0", b"\2\0", b"\3\0"):
        raise UnsafeCheckpointError("something other than an .npy array follows")
    length = int.from_bytes(reader.read(2 if version[0] == 1 else 4), "little")
    if length > _MAX_HEADER:
        raise UnsafeCheckpointError(f"an .npy header of {length} bytes")
    # One pattern instead of numpy's parser, which evaluates Python literals of any depth.
    found = _HEADER.fullmatch(reader.read(length))
    if found is None:
        raise UnsafeCheckpointError("an .npy header is not as numpy writes it for plain numbers")
    order, code, fortran, sizes = (group.decode("ascii") for group in found.groups())
    shape = tuple(int(size) for size in sizes.split(",") if size.strip())
    return check_type(code, order), fortran == "True", shape
