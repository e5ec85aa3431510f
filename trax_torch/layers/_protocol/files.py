"""Weights and state by their PyTorch names: files of them, and how a module is filled from them.

A file is written whole or not at all, and so is a module: all is compared before anything is set.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from trax_torch import _distributed, _nest
from trax_torch._durable import whole_file
from trax_torch._errors import CheckpointError, MismatchError
from trax_torch.layers._protocol.trees import adopt, set_buffer

Reader = Callable[[nn.Module, str, bool], None]

_readers: list[tuple[Callable[[str], bool], Reader]] = []  # of other formats; the last goes first

_EXTRA = "_extra_state"  # what torch calls it in a state_dict
_COMPILED = "_orig_mod"  # what torch.compile calls the module that it wraps


def save_file(module: nn.Module, file_name: str, weights_only: bool, input_signature: Any) -> None:
    """Writes the parameters, and the buffers unless `weights_only`, under their PyTorch names."""
    tensors: dict[str, Any] = dict(module.named_parameters())
    if not weights_only:
        state = module.state_dict(keep_vars=True)
        tensors |= {k: v for k, v in state.items() if not isinstance(v, nn.Parameter)}
    if not tensors:
        raise ValueError("There is nothing to save: the layer has no weights. Call init() first.")
    metadata = {"format": "trax_torch.layer"}
    if input_signature is not None:
        metadata["input_signature"] = repr(input_signature)
    write_file(file_name, tensors, metadata)


def write_file(file_name: str, tensors: Mapping[str, Any], metadata: dict[str, str]) -> None:
    """Writes a safetensors file, whole or not at all, in the place of an earlier one.

    Raises:
      ValueError: if a value is no plain tensor, or of a type that the format has not.
    """
    from safetensors.torch import save as to_bytes

    check_plain(tensors)
    own = {
        k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()
    }
    try:
        data = to_bytes(own, metadata)
    except KeyError as error:
        names = [name for name, tensor in own.items() if tensor.dtype == error.args[0]]
        raise ValueError(
            f"A safetensors file has no numbers of type {error}, as {names[0]} holds. Convert it "
            f"to another type first."
        ) from error
    path = os.path.abspath(os.path.expanduser(file_name))
    with whole_file(path) as f:
        f.write(data)


def check_plain(values: Mapping[str, Any]) -> None:
    """Raises ValueError, by name, if a value is no plain tensor."""
    plain = (torch.Tensor, nn.Parameter)
    other = [name for name, value in values.items() if type(value) not in plain]
    if other:
        raise ValueError(
            f"A safetensors file holds plain tensors, and {other[0]} is a "
            f"{type(values[other[0]]).__name__}. Let get_extra_state return a tensor, or save the "
            f"weights alone."
        )


def is_plain_file(path: str) -> bool:
    """Tells whether a file begins as `write_file` has it: a header's length, and then JSON."""
    if not os.path.isfile(path):  # to open a pipe is to wait
        return False
    try:
        with open(path, "rb") as f:
            return f.read(9)[8:] == b"{"
    except OSError:
        return False


def register_reader(takes: Callable[[str], bool], reader: Reader) -> None:
    """Has `load_file` leave what is no plain safetensors file to a reader, called as itself.

    Args:
      takes: tells whether a path is for the reader; who was registered last is asked first.
      reader: takes the module, the path, and whether weights alone are to be filled.
    """
    _readers.insert(0, (takes, reader))


def load_file(module: nn.Module, file_name: str | os.PathLike[str], weights_only: bool) -> None:
    """Fills `module` from a file, or from what a registered reader takes; all or nothing.

    Args:
      module: where to.
      file_name: where from.
      weights_only: leaves all but weights alone.
    """
    path = os.path.expanduser(os.fspath(file_name))
    for takes, reader in _readers:
        if takes(path):
            return reader(module, path, weights_only)
    load_plain(module, path, weights_only)


def load_plain(module: nn.Module, path: str, weights_only: bool) -> None:
    """Fills `module` from a safetensors file, whole; arguments are those of `load_file`."""
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    if os.path.lexists(path) and not os.path.isfile(path):
        raise CheckpointError(f"{path} is not a plain file. Name a file of weights.")
    with open(path, "rb") as f:
        data = f.read()
    try:
        tensors = from_bytes(data)
    except (SafetensorError, KeyError) as error:  # KeyError: a type that torch has not
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}). Save it again."
        ) from error
    fill(module, path, tensors, weights_only)


def fill(module: nn.Module, source: str, values: Mapping[str, Any], weights_only: bool) -> None:
    """Copies values into a module by their PyTorch names; all or nothing.

    Values of tied weights may come under one of their names, or under several. Floating-point
    numbers take the type that the module has.

    Args:
      module: where to. It may be compiled or wrapped; names are those inside.
      source: what errors call the place that the values come from.
      values: weights and buffers, and what `get_extra_state` gave under '<module>._extra_state'.
        A tensor that is not in memory yet has a shape, a dtype, and a `read` that returns a box of
        it, or all: each is read as it is set, so that a rank with parts has room for it.
      weights_only: leaves all but weights alone.

    Raises:
      MismatchError: if the values are another module's, with the first differences.
      ValueError: if the module has no weights yet, and the values do not say all about them.
    """
    values = {plain_name(name): value for name, value in values.items()}
    module = _unwrapped(module, values)
    waiting = _waiting(module)
    weights = {plain_name(n): p for n, p in module.named_parameters(remove_duplicate=False)}
    state = {
        plain_name(n): t
        for n, t in module.state_dict(keep_vars=True).items()
        if not isinstance(t, nn.Parameter) and n.rpartition(".")[2] != _EXTRA
    }
    extra = {plain_name(n): m for n, m in _with_extra_state(module)}
    _check_ready(weights | state, waiting, weights_only)
    _check_fits(source, values, weights, state, extra, waiting, weights_only)
    present = {
        k: t for k, t in (weights if weights_only else weights | state).items() if k in values
    }
    for name, tensor in present.items():
        if _is_elsewhere(values[name]):  # a file that is damaged is to say so before all is set
            values[name].read(_distributed.piece_of(tensor))
    if not weights_only:
        _set_extra_state({m: _in_memory(values[name]) for name, m in extra.items()})
    for name, tensor in present.items():
        _distributed.fill_(tensor, values[name])
    for path, layer in waiting.items():
        prefix = f"{path}." if path else ""
        # Buffers come first: a layer that has its weights makes what is missing.
        for attribute in [] if weights_only else _state_names(layer):
            if prefix + attribute in values:
                set_buffer(layer, attribute, _in_memory(values[prefix + attribute]))
        for attribute in _weight_names(layer):
            if prefix + attribute in values:
                adopt(layer, attribute, _in_memory(values[prefix + attribute]))
        layer._settle()


def _is_elsewhere(value: Any) -> bool:
    """Tells whether a value is a tensor that is not in memory yet."""
    return not isinstance(value, torch.Tensor) and hasattr(value, "read")


def _in_memory(value: Any) -> Any:
    return value.read() if _is_elsewhere(value) else value


def plain_name(name: str) -> str:
    """Returns a tensor's name as it is where nothing is compiled."""
    return ".".join(part for part in name.split(".") if part != _COMPILED)


def _unwrapped(module: nn.Module, names: Iterable[str]) -> nn.Module:
    """Returns the module that names begin at, inside wrappers that hold nothing else."""
    while True:
        parts = dict(module.named_children())
        if parts.keys() == {"module"} and not module._parameters and not module._buffers:
            inside = set(map(plain_name, parts["module"].state_dict()))
            if not inside.intersection(names):
                return module
        elif parts.keys() != {_COMPILED}:
            return module
        (module,) = parts.values()


def _waiting(module: nn.Module) -> dict[str, Any]:
    """Returns the layers that have no weights yet, by path."""
    return {
        plain_name(path): layer
        for path, layer in module.named_modules()
        if getattr(layer, "_init_hook", None) is not None
    }


def _weight_names(layer: Any) -> list[str]:
    """Returns what the weights of a layer that has none yet will be called."""
    names = layer._weight_names
    return list(layer._parameters) if names is None else list(_nest.leaves(names))


def _state_names(layer: Any) -> list[str]:
    names = layer._state_names
    return list(layer._buffers) if names is None else list(_nest.leaves(names))


def _with_extra_state(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Returns the modules that keep a state besides tensors, by its name in a state_dict."""
    return [
        (f"{path}.{_EXTRA}" if path else _EXTRA, m)
        for path, m in module.named_modules()
        if type(m).get_extra_state is not nn.Module.get_extra_state
    ]


def _set_extra_state(values: Mapping[nn.Module, Any]) -> None:
    before = {m: m.get_extra_state() for m in values}
    try:
        for m, value in values.items():
            m.set_extra_state(value)
    except BaseException:
        for m, value in before.items():
            m.set_extra_state(value)
        raise


def _check_ready(
    tensors: Mapping[str, Any], waiting: Mapping[str, Any], weights_only: bool
) -> None:
    """Raises ValueError if a module cannot be filled before it is initialized."""
    for path, layer in waiting.items():
        if not _weight_names(layer) and (weights_only or not _state_names(layer)):
            raise ValueError(
                f"{path or layer.name} has no weights yet, and only its init_weights_and_state "
                f"knows how they are laid out. Initialize the model first: model.init(signature)."
            )
    for name, tensor in tensors.items():
        if nn.parameter.is_lazy(tensor):
            raise ValueError(
                f"{name} has no shape yet. Call the model once, with a sample batch, before its "
                f"weights are loaded."
            )
        if tensor.is_meta:
            raise ValueError(
                f"{name} is on the meta device, where tensors have no values. Give the model "
                f"memory before its weights are loaded: model.to_empty(device='cpu')."
            )


def _check_fits(
    source: str,
    values: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor],
    state: Mapping[str, torch.Tensor],
    extra: Mapping[str, nn.Module],
    waiting: Mapping[str, Any],
    weights_only: bool,
) -> None:
    """Raises MismatchError if values are another model's, or if there is no state among them."""
    have = {**weights, **state}
    to_come: dict[str, set[str]] = {"weights": set(), "state": set()}
    differences = []
    for path, layer in waiting.items():
        prefix = f"{path}." if path else ""
        to_come["weights"] |= {prefix + name for name in _weight_names(layer)}
        to_come["state"] |= {prefix + name for name in _state_names(layer)}
        if _weight_names(layer) and not any(prefix + n in values for n in _weight_names(layer)):
            differences.append(f"{path or 'the layer'} has no weights in the file")
    known = have.keys() | extra.keys() | to_come["weights"] | to_come["state"]
    differences += [f"{name} is not in the model" for name in values if name not in known]
    differences += [
        f"{name} has shape {tuple(values[name].shape)} in the file and {tuple(tensor.shape)} in "
        f"the model"
        for name, tensor in have.items()
        if name in values and values[name].shape != tensor.shape
    ]
    differences += [
        f"{name} is {values[name].dtype} in the file and {tensor.dtype} in the model"
        for name, tensor in have.items()
        if name in values and _kind(values[name].dtype) != _kind(tensor.dtype)
    ]
    differences += _untied(values, weights)
    came = {id(tensor) for name, tensor in have.items() if name in values}
    differences += [
        f"{name} is not in the file" for name, p in _once(weights).items() if id(p) not in came
    ]
    lacking = [name for name, t in _once(state).items() if id(t) not in came]
    lacking += [name for name in [*extra, *to_come["state"]] if name not in values]
    if lacking and not weights_only and not differences:
        raise MismatchError(
            f"{source} has weights and lacks what the model keeps besides: "
            f"{', '.join(sorted(lacking)[:3])} ({len(lacking)} in all). Name the checkpoint that "
            f"it is of, or a file that has them; weights_only=True leaves them as they are."
        )
    if not weights_only:
        differences += [f"{name} is not in the file" for name in lacking]
    if differences:
        shown = "; ".join(sorted(differences)[:3])
        raise MismatchError(
            f"{source} holds another model: {shown} ({len(differences)} differences in all). "
            f"Build the model with the arguments it was saved with."
        )


def _once(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns tensors under the first of their names alone."""
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        first.setdefault(id(tensor), name)
    return {name: tensors[name] for name in first.values()}


def _untied(values: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Returns where values differ that are of one weight."""
    first: dict[int, str] = {}
    found = []
    for name, weight in weights.items():
        if name in values:
            other = first.setdefault(id(weight), name)
            if other == name:
                continue
            if not torch.equal(_in_memory(values[other]), _in_memory(values[name])):
                found.append(f"{other} and {name} are one weight in the model, and two in the file")
    return found


def _kind(dtype: torch.dtype) -> str:
    if dtype == torch.bool:
        return "bool"
    return "float" if dtype.is_floating_point else "complex" if dtype.is_complex else "int"
