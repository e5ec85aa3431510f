"""A checkpoint's weights as files for anybody, one tensor in memory at a time."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from trax_torch._durable import sync_folder, whole_file
from trax_torch._errors import CheckpointError
from trax_torch.layers import _protocol
from trax_torch.supervised._checkpoint import places, schema, shards, state, storage, tensor_files

Place = str | os.PathLike[str]

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]?B|)")
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_METADATA = {"format": "pt"}


def export(place: Place, file_name: Place, max_shard_size: int | str | None = None) -> None:
    """Writes a checkpoint's weights and buffers to one plain safetensors file, or to several.

    Its names are those of the trained module's own `state_dict`, each name of tied weights being
    there, so `module.load_state_dict(safetensors.torch.load_file(file_name))` takes it, and so
    does `load_weights`. Of a model that was compiled, names are those of the module inside. The
    file is whole or not there.

    One tensor is in memory at a time, whether ranks saved it in pieces or one process did.

    Args:
      place: the folder of a run, or a checkpoint there, as `load_weights` takes it.
      file_name: where to; what is there is replaced.
      max_shard_size: how many bytes of tensors a file has at most, '5GB' (10^9 bytes each) or a
        number. Then `file_name` is a new folder, laid out as Hugging Face's libraries read it:
        'model-00001-of-00003.safetensors' and so on, and 'model.safetensors.index.json'; or
        'model.safetensors' alone, if that is enough. A larger tensor has a file to itself.

    Raises:
      CheckpointError: if the checkpoint is damaged or not there.
      ValueError: if a module keeps by `get_extra_state` what is no tensor, if `max_shard_size` is
        no size, or if there is something where the folder is to be.
    """
    limit = None if max_shard_size is None else _size(max_shard_size)
    path = os.path.abspath(os.path.expanduser(os.fspath(file_name)))
    directory, basename = places.split(place)
    with contextlib.ExitStack() as stack:
        values = _opened(stack, directory, basename)
        if values is None:
            if places.trax_file(directory, basename) is not None:
                raise ValueError(
                    f"{place} is a checkpoint of Trax's: python -m "
                    f"trax_torch.interop.trax_checkpoint converts it."
                )
            raise places.missing(directory, basename)
        if limit is None:
            with whole_file(path) as file:
                tensor_files.stream(file, values, _METADATA)
        else:
            _write_folder(path, values, limit)


@dataclass(frozen=True)
class _There:
    """A tensor that is in memory, and is read like one that is not."""

    tensor: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        return self.tensor.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def read(self) -> torch.Tensor:
        """Returns it, on the CPU and contiguous."""
        return self.tensor.detach().cpu().contiguous()


class _ReadByName(dict[str, Any]):
    """Saved tensors, of which one that is asked for by its name is read."""

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = super().__getitem__(name).read()
        return tensor


def opened(stack: contextlib.ExitStack, directory: str, basename: str) -> dict[str, Any] | None:
    """Returns what a module's state_dict held when it was saved, tensors to be read one by one.

    Args:
      stack: closes the files.
      directory: the folder, and basename: the checkpoint's name in it.

    Returns:
      None, if there is no checkpoint.
    """
    if not storage.is_basename(basename):
        return None
    manifest = storage.read_manifest(directory, basename, schema.check)
    if manifest is None:
        return None
    try:
        parts: Any = stack.enter_context(
            shards.opened(directory, basename, manifest, ("weights", "state"), with_whole=True)
        )
    except CheckpointError:
        if storage.generation_of(directory, basename) == manifest["generation"]:
            raise
        return opened(stack, directory, basename)  # a run under way has saved anew meanwhile
    with state.described_by(directory, basename):
        apart: Any = {**parts, "state": _ReadByName(parts["state"])}
        values = state.module_state(apart, manifest["info"]["members"])
    return {_protocol.plain_name(name): value for name, value in values.items()}


def _opened(stack: contextlib.ExitStack, directory: str, basename: str) -> dict[str, Any] | None:
    """Returns what `opened` does, all of it tensors that are read."""
    values = opened(stack, directory, basename)
    if values is None:
        return None
    there = {k: v for k, v in values.items() if not isinstance(v, shards.Saved)}
    _protocol.check_plain(there)
    return values | {name: _There(value) for name, value in there.items()}


def _write_folder(path: str, values: Mapping[str, Any], limit: int) -> None:
    """Writes files of at most so many bytes, and their index, into a folder that was not there."""
    if os.path.lexists(path) and not (os.path.isdir(path) and not os.listdir(path)):
        raise ValueError(f"{path} is there already. Name a new folder for max_shard_size.")
    groups = _groups(values, limit)
    names = [f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
    if len(groups) == 1:
        names = ["model.safetensors"]
    with _new_folder(path) as folder:
        for name, group in zip(names, groups, strict=True):
            with whole_file(os.path.join(folder, name)) as file:
                tensor_files.stream(file, {key: values[key] for key in group}, _METADATA)
        if len(groups) > 1:
            index = {
                "metadata": {"total_size": sum(map(tensor_files.n_bytes, values.values()))},
                "weight_map": {
                    key: name for name, group in zip(names, groups, strict=True) for key in group
                },
            }
            with whole_file(os.path.join(folder, "model.safetensors.index.json")) as file:
                file.write(json.dumps(index, indent=2, sort_keys=True).encode() + b"\n")
        sync_folder(folder)


@contextlib.contextmanager
def _new_folder(path: str) -> Generator[str]:
    """Gives a folder that takes a path's place when its block is done."""
    partial = os.path.join(os.path.dirname(path), f".{os.urandom(8).hex()}.tmp")
    os.mkdir(partial)
    try:
        yield partial
        os.rename(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _groups(values: Mapping[str, Any], limit: int) -> list[list[str]]:
    """Returns names in groups of at most so many bytes, in their order."""
    groups: list[list[str]] = [[]]
    n = 0
    for name, value in values.items():
        size = tensor_files.n_bytes(value)
        if groups[-1] and n + size > limit:
            groups.append([])
            n = 0
        groups[-1].append(name)
        n += size
    return groups


def _size(size: int | str) -> int:
    """Returns a number of bytes."""
    match = _SIZE.fullmatch(size.strip().upper()) if isinstance(size, str) else None
    n = int(float(match[1]) * _UNITS[match[2]]) if match else size
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(
            f"max_shard_size is a number of bytes, or a text like '5GB' or '500MB'; got {size!r}."
        )
    return n
