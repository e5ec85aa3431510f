"""What layers give and hold, as lists, as numpy files, and on one device or the other."""

import gzip
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from trax_torch import _nest
from trax_torch._durable import whole_file


def to_list(outputs: Any) -> Any:
    """Returns outputs as nested lists of Python's numbers, to compare or to print.

    Args:
      outputs: a tensor or an array, or a tuple or list of them.

    Example:
      >>> to_list((torch.tensor([1., 2.]), np.array(3)))
      [[1.0, 2.0], 3]

    Source: Trax `layers/base.py::to_list`.
    """
    if isinstance(outputs, (tuple, list)):
        return [to_list(x) for x in outputs]
    return outputs.tolist()


def np_to_file(list_of_nparrays: Iterable[Any], file_path: str, compresslevel: int) -> None:
    """Writes arrays, or tensors, one after another to a compressed file; whole, or not at all.

    Args:
      list_of_nparrays: arrays of numbers; bfloat16, unknown to numpy, is written as float32.
      file_path: the file; an earlier one is replaced.
      compresslevel: 0 for none, to 9 for the smallest file.

    Raises:
      ValueError: if an array holds objects.

    Example:
      >>> import tempfile
      >>> path = tempfile.mkdtemp() + '/weights.npy.gz'
      >>> np_to_file([np.arange(3), torch.ones(1)], path, compresslevel=6)
      >>> np_from_file(path, compresslevel=6)
      [array([0, 1, 2]), array([1.], dtype=float32)]

    Source: Trax `layers/base.py::np_to_file`.
    """
    with (
        whole_file(file_path) as file,
        gzip.GzipFile("", "wb", compresslevel, file, mtime=0) as packed,
    ):
        for x in list_of_nparrays:
            array: Any = np.asarray(_nest.to_arrays(x))
            np.save(packed, array, allow_pickle=False)


def np_from_file(file_path: str, compresslevel: int) -> list[Any]:
    """Returns the arrays in a file that `np_to_file` wrote, here or in Trax; runs nothing in it.

    Args:
      file_path: the file.
      compresslevel: Trax's; a file says itself how it is compressed.

    Raises:
      OSError: if there is no such file, or it is damaged (EOFError: cut off).
      ValueError: if something else follows than arrays.

    Source: Trax `layers/base.py::np_from_file`, which gives the arrays before the damage.
    """
    del compresslevel
    arrays = []
    with gzip.open(file_path, "rb") as packed:
        while packed.peek(1):
            arrays.append(np.load(packed, allow_pickle=False))
    return arrays


def on_cpu(x: Any) -> Any:
    """Returns a nest of tensors in the host's memory.

    Source: Trax `layers/acceleration.py::on_cpu`.
    """
    return _moved(x, torch.device("cpu"))


def on_accelerator(x: Any) -> Any:
    """Returns a nest of tensors on this process's CUDA device, or as it came if there is none.

    Source: Trax `layers/acceleration.py::on_accelerator`.
    """
    return _moved(x, torch.device("cuda")) if torch.cuda.is_available() else x


def _moved(nest: Any, device: torch.device) -> Any:
    return _nest.map_leaves(lambda x: x.to(device) if isinstance(x, torch.Tensor) else x, nest)
