"""A run's weights without the run: from a checkpoint into a model.

Optimizer, data and history are left where they are. Nothing that is read is run.
"""

import contextlib
import json
import os
from typing import Any

from torch import nn

from trax_torch import _distributed
from trax_torch._errors import CheckpointError
from trax_torch.layers import _protocol
from trax_torch.supervised._checkpoint import (
    exports,
    files,
    places,
    schema,
    shards,
    stand_in,
    state,
    storage,
    tensor_files,
)

Place = str | os.PathLike[str]

_INDEX = ".safetensors.index.json"  # of weights in several files, as Hugging Face's libraries write
_MOST = 10**9  # bytes of an index


def load_weights(model: nn.Module, place: Place, *, weights_only: bool = False) -> None:
    """Fills a model with the weights and buffers of a checkpoint; all or nothing.

    Files are checked by their hashes before anything is believed, and nothing in them is run. What
    comes is what the model was in training: weights, statistics of BatchNorm and other buffers,
    and what modules keep by `get_extra_state`. The weights of losses stay behind. The model's mode
    is as it was: call `model.eval()` for inference.

    Floating-point numbers take the type that the model has. A layer that was never initialized
    takes its shapes from the checkpoint.

    Args:
      model: built as the one that was trained; it may be compiled since, or made by `as_layer`.
      place: the folder of a run, 'run'; a checkpoint there, 'run/lowest_loss'; or a file:
        safetensors from `export` or `Layer.save_to_file`, or Trax's `.pkl.gz`, which fills layers;
        or a folder of several, or their index, as Hugging Face's libraries lay them out. Where
        ranks have parts of weights, all ranks call it, and each reads its own.
      weights_only: leaves buffers as they are.

    Raises:
      CheckpointError: if the checkpoint is damaged; if there is none (a `FileNotFoundError`, too);
        or if it is of another model, or has no buffers where the model has (an `IndexError`, too),
        with the first differences. The model is as it was then.
      ValueError: if the model must be initialized first.

    Example:
      >>> import safetensors.torch, tempfile, torch
      >>> model, same = nn.Linear(2, 1), nn.Linear(2, 1)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     safetensors.torch.save_file(model.state_dict(), f'{folder}/exported')
      ...     load_weights(same, f'{folder}/exported')
      >>> torch.equal(same.weight, model.weight)
      True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Weights are loaded into an nn.Module; got {type(model).__name__}.")
    _protocol.load_file(model, place, weights_only)


def _read(directory: str, basename: str) -> dict[str, Any] | None:
    """Returns what a module's state_dict held when it was saved, or None without a checkpoint."""
    if not storage.is_basename(basename):
        return None
    manifest = storage.read_manifest(directory, basename, schema.check)
    if manifest is None:
        return None
    try:
        parts = storage.read_parts(directory, basename, manifest, ("weights", "state"))
    except CheckpointError:
        if storage.generation_of(directory, basename) == manifest["generation"]:
            raise
        return _read(directory, basename)  # a run under way has saved anew meanwhile
    with state.described_by(directory, basename):
        values = state.module_state(parts, manifest["info"]["members"])
    return {_protocol.plain_name(name): value for name, value in values.items()}


def _fill(module: nn.Module, place: str, weights_only: bool) -> None:
    """Fills a module from a checkpoint's place, for `Layer.init_from_file` too."""
    directory, basename = places.split(place)
    with contextlib.ExitStack() as stack:
        if _is_in_parts(module):
            values = exports.opened(stack, directory, basename)
        else:
            values = _read(directory, basename)
        if values is not None:
            _protocol.fill(module, place, values, weights_only)
            return
    if (path := places.trax_file(directory, basename)) is not None:
        _protocol.load_file(module, path, weights_only)
    else:
        raise places.missing(directory, basename)


def _takes(path: str) -> bool:
    """Tells whether a path is no file of weights: a checkpoint's place, or nothing."""
    if path.endswith(".json") or os.path.isdir(path) or not os.path.lexists(path):
        return True
    return stand_in.manifest_of(path) is not None


def _is_in_parts(module: nn.Module) -> bool:
    return any(map(_distributed.is_shard, module.parameters()))


def _fill_from_files(module: nn.Module, path: str, weights_only: bool) -> None:
    """Fills a module from a safetensors file, or several with an index, as others lay them out."""
    if os.path.isfile(path) and not path.endswith(_INDEX) and not _is_in_parts(module):
        _protocol.load_plain(module, path, weights_only)
        return
    with contextlib.ExitStack() as stack:
        values: dict[str, Any] = {}
        for each in _files_of(path):
            file = tensor_files.TensorFile(each, tensor_files.entry_of(each))
            values |= shards.saved_in(stack.enter_context(file))
        _protocol.fill(module, path, values, weights_only)


def _files_of(path: str) -> list[str]:
    """Returns the safetensors files that a path stands for.

    Raises:
      CheckpointError: if an index is damaged.
    """
    if os.path.isdir(path):
        name = os.path.join(path, f"model{_INDEX}")
        path = name if os.path.isfile(name) else os.path.join(path, "model.safetensors")
    if not path.endswith(_INDEX):
        return [path]
    try:
        names = set(json.loads(files.read(path, _MOST) or b"")["weight_map"].values())
        if not all(os.path.basename(name) == name for name in names):
            raise ValueError("it names files of other folders")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged, or no index of weights: {error}.") from error
    return [os.path.join(os.path.dirname(path), name) for name in sorted(names)]


def _takes_files(path: str) -> bool:
    """Tells whether a path is a safetensors file, or a folder or an index of such."""
    if os.path.isdir(path):
        there = os.listdir(path)
        names = {f"model{_INDEX}", "model.safetensors"}
        return "model.json" not in there and not names.isdisjoint(there)
    return path.endswith(_INDEX) or _protocol.is_plain_file(path)


_protocol.register_reader(_takes, _fill)
_protocol.register_reader(_takes_files, _fill_from_files)
