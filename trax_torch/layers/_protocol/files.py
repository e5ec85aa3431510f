"""A layer's weights and state as one safetensors file, written whole or not at all."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trax_torch._errors import CheckpointError, MismatchError
from trax_torch.layers._protocol.trees import adopt, set_buffer

_readers: dict[str, Callable[[nn.Module, str, bool], None]] = {}  # of other formats, by ending


def save_file(module: nn.Module, file_name: str, weights_only: bool, input_signature: Any) -> None:
    """Writes the parameters, and the buffers unless `weights_only`, under their PyTorch names."""
    from safetensors.torch import save as to_bytes

    tensors = _named(module, weights_only)
    if not tensors:
        raise ValueError("There is nothing to save: the layer has no weights. Call init() first.")
    metadata = {"format": "trax_torch.layer"}
    if input_signature is not None:
        metadata["input_signature"] = repr(input_signature)
    own = {
        k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()
    }
    data = to_bytes(own, metadata)
    path = os.path.abspath(os.path.expanduser(file_name))
    partial = f"{path}.{os.urandom(4).hex()}.tmp"
    try:
        with open(partial, "xb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, path)
    except BaseException:
        if os.path.exists(partial):
            os.unlink(partial)
        raise


def register_reader(ending: str, reader: Callable[[nn.Module, str, bool], None]) -> None:
    """Has `load_file` leave files of another format to a reader, which it calls as itself.

    Args:
      ending: of the files' names, such as '.pkl.gz'.
      reader: takes the module, the file's name, and whether weights alone are to be filled.
    """
    _readers[ending] = reader


def load_file(module: nn.Module, file_name: str, weights_only: bool) -> None:
    """Fills `module` from a file; all or nothing.

    Args:
      module: where to.
      file_name: where from.
      weights_only: leaves buffers alone.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    for ending, reader in _readers.items():
        if str(file_name).endswith(ending):
            return reader(module, file_name, weights_only)
    path = os.path.expanduser(file_name)
    with open(path, "rb") as f:
        data = f.read()
    try:
        tensors = from_bytes(data)
    except SafetensorError as error:
        raise CheckpointError(
            f"{file_name} is not a whole safetensors file ({error}). Save it again."
        ) from error
    _check_fits(module, file_name, tensors, weights_only)
    have = _named(module, weights_only=False)
    owners = {name: module.get_submodule(name.rpartition(".")[0]) for name in tensors}
    # A file has no order. Buffers come first: a layer that has its weights makes what is missing.
    for name in sorted(tensors, key=lambda n: n.rpartition(".")[2] not in owners[n]._buffers):
        owner, tensor, attribute = owners[name], tensors[name], name.rpartition(".")[2]
        if name in have and not isinstance(have[name], nn.Parameter):
            if not weights_only:
                have[name].copy_(tensor)
        elif attribute in owner._buffers:
            if not weights_only:
                set_buffer(owner, attribute, tensor)
        else:
            adopt(owner, attribute, tensor)


def _check_fits(
    module: nn.Module, file_name: str, tensors: dict[str, torch.Tensor], weights_only: bool
) -> None:
    """Raises MismatchError if a file's tensors are another model's."""
    have = _named(module, weights_only=False)
    waiting = [
        name
        for name, layer in module.named_modules()
        if getattr(layer, "_init_hook", None) is not None
    ]

    def belongs(name: str) -> bool:
        owner, _, attribute = name.rpartition(".")
        if name in have or owner not in waiting:
            return name in have
        layer = module.get_submodule(owner)
        return attribute in (layer._parameters | layer._buffers or {attribute})

    differences = [f"{name} is not in the model" for name in tensors if not belongs(name)]
    differences += [
        f"{name} has shape {tuple(tensors[name].shape)} in the file and "
        f"{tuple(tensor.shape)} in the model"
        for name, tensor in have.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    wanted = _named(module, weights_only)
    differences += [f"{name} is not in the file" for name in wanted if name not in tensors]
    differences += [
        f"{layer or 'the layer'} has no weights in the file"
        for layer in waiting
        if not any(name.rpartition(".")[0] == layer for name in tensors)
    ]
    if differences:
        shown = "; ".join(sorted(differences)[:3])
        raise MismatchError(
            f"{file_name} holds another model: {shown} ({len(differences)} differences in all). "
            f"Build the model with the arguments it was saved with."
        )


def _named(module: nn.Module, weights_only: bool) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = dict(module.named_parameters())
    if weights_only:
        return weights
    state = module.state_dict(keep_vars=True)
    return weights | {k: v for k, v in state.items() if not isinstance(v, nn.Parameter)}
