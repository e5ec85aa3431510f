"""Pickles in files: written whole or not at all, read without running anything in them.

This room alone may write pickles. Nobody reads them but the interpreter in `machine`.
"""

import errno
import gzip as gzip_lib
import os
import pickle
import stat
from collections.abc import Callable, Iterable
from typing import Any

import torch

from trax_torch._durable import sync_folder, whole_file
from trax_torch._errors import CheckpointError, UnsafeCheckpointError
from trax_torch.interop._pickle import gzip_stream, machine, plain_data

_PROTOCOL = 5  # the highest of Python 3.8 to 3.14, and so Trax's
_LEVEL = 2  # Trax's level of compression
_GZIP_MAGIC = b"\x1f\x8b"
_MIB = 1 << 20


def pickle_to_file(obj: Any, file_path: str | os.PathLike[str], gzip: bool = False) -> None:
    """Writes an object to a file as a pickle, in the place of what the file held before.

    The file is whole or as it was, whatever happens meanwhile, and outlives a crash once this
    returns. Its mode is that of the file before it, or else as `open` would give. Tensors become
    numpy arrays, so that Trax, too, can read the file. Objects of any class are written that
    `pickle` can write; to read them again, their classes must be named.

    Args:
      obj: what to write.
      file_path: where to; its folder must be there. A link is followed.
      gzip: True compresses the file.

    Raises:
      OSError: if the file cannot be written, of the kind that `open` would raise.
      TypeError: if `obj` holds a module of torch's, or a tensor that numpy has no type for.
      pickle.PicklingError, AttributeError, TypeError: if `pickle` cannot write an object.

    Example:
      >>> import tempfile
      >>> path = os.path.join(tempfile.mkdtemp(), 'results.pkl.gz')
      >>> pickle_to_file({'loss': [2.5, 1.25], 'w': torch.ones(2)}, path, gzip=True)
      >>> unpickle_from_file(path, gzip=True)
      {'loss': [2.5, 1.25], 'w': array([1., 1.], dtype=float32)}

    Source: Trax `supervised/training.py::pickle_to_file`, which leaves a half-written file behind
      when it fails, and does not wait for the disk.
    """
    path = os.path.realpath(os.fspath(file_path))
    folder = os.path.dirname(path)
    try:
        mode = _mode_of(path)
        with whole_file(path) as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            if gzip:
                # No name and no time, so that equal objects make equal files.
                with gzip_lib.GzipFile("", "wb", _LEVEL, file, mtime=0) as packed:
                    _Pickler(packed, _PROTOCOL).dump(obj)
            else:
                _Pickler(file, _PROTOCOL).dump(obj)
    except OSError as error:
        if error.errno is None:
            raise
        reason = f"{error.strerror}; nothing was written, and what was there before is as it was"
        raise OSError(error.errno, reason, os.fspath(file_path)) from error
    sync_folder(folder)


def unpickle_from_file(
    file_path: str | os.PathLike[str],
    gzip: bool = False,
    *,
    allow: Callable[..., Any] | Iterable[Callable[..., Any]] = (),
    max_bytes: int | None = None,
) -> Any:
    """Returns what a file holds that `pickle_to_file` wrote, here or in Trax; runs nothing in it.

    Read are None, booleans, numbers (integers up to 2040 bits), text, bytes, bytearrays, lists,
    tuples, dicts, OrderedDicts, defaultdicts, sets and frozensets; and arrays, scalars and types
    of numpy's numbers and booleans. JAX's arrays become numpy's. Keys, and items of sets, are
    plain values, or tuples and frozensets of these nested up to 8 deep. What was shared is shared,
    and what held itself holds itself.

    All else is refused, unless the caller names its class. Then the class may be called with
    whatever the file says, as `pickle` would: `__new__`, `__init__` or `__setstate__`, and methods
    such as `__hash__`; where a class is made by a function of its own, that must be named too.
    A class of trax_torch also stands for the one that Trax has at the same address.

    Args:
      file_path: the file, in protocol 2 to 5.
      gzip: True if it is compressed.
      allow: classes and functions that the file may use; they are known by module and name.
      max_bytes: how many bytes may be unpacked from a compressed file; by default 64 MiB and 32
        times its size. The number of values is limited in proportion.

    Raises:
      OSError: if there is no such file, or it cannot be opened.
      CheckpointError: if it is damaged, no regular file, or an allowed class cannot be made.
      UnsafeCheckpointError: if it holds what is refused, with the name of the class.
      TypeError: if something else than classes and functions is to be allowed.

    Example:
      >>> import tempfile
      >>> from trax_torch.supervised.history import History
      >>> path = os.path.join(tempfile.mkdtemp(), 'history.pkl')
      >>> pickle_to_file(History(), path)
      >>> unpickle_from_file(path, allow=[History]).modes
      []

    Source: Trax `supervised/training.py::unpickle_from_file`, which runs what the file says.
    """
    path = os.fspath(file_path)
    allowed = plain_data.by_address(allow)
    try:
        with gzip_stream.regular_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            limit = 64 * _MIB + 32 * size if max_bytes is None else max_bytes
            is_packed = file.peek(2)[:2] == _GZIP_MAGIC
            if is_packed != bool(gzip):
                raise CheckpointError(
                    f"it is {'a' if is_packed else 'no'} gzip file; read it with gzip={is_packed}"
                )
            data = (
                gzip_stream.GzipReader(file, gzip_stream.Budget(limit)).read_all()
                if gzip
                else file.read()
            )
        rules = plain_data.PlainRules(len(data), allowed)
        return rules.check_result(machine.load(data, limit // 64 + 20 * size, rules).value)
    except UnsafeCheckpointError as error:
        ran = "" if allowed else " Nothing in it was run."
        raise UnsafeCheckpointError(f"{path} is refused: {error}.{ran}") from error.__cause__
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error.__cause__


class _Pickler(pickle.Pickler):
    """Writes tensors as arrays. A class, for that is how pickle asks what to write."""

    def reducer_override(self, obj: Any) -> Any:
        """Returns what stands for a tensor; leaves the rest to pickle."""
        if isinstance(obj, torch.nn.Module):
            raise TypeError(
                f"pickle_to_file writes data, but got a module, {type(obj).__name__}. Write its "
                f"weights: a layer's save_to_file, or a module's state_dict()."
            )
        if not isinstance(obj, torch.Tensor):
            return NotImplemented
        if obj.dtype == torch.bfloat16:
            raise TypeError(
                "pickle_to_file writes tensors as numpy arrays, and numpy has no bfloat16. Write "
                "tensor.float()."
            )
        return obj.detach().cpu().resolve_conj().resolve_neg().numpy().__reduce_ex__(_PROTOCOL)


def _mode_of(path: str) -> int | None:
    """Returns the permissions of a file that will be replaced; None if there is none."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "It is a folder", path)
    if not stat.S_ISREG(mode):
        raise FileExistsError(errno.EEXIST, "It is no regular file", path)
    return stat.S_IMODE(mode)
