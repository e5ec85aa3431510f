"""What a user reads when something goes wrong inside a layer."""

import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from trax_torch import _mistakes, _torch_private, shapes
from trax_torch.layers._protocol.advice import advice_for


class LayerError(Exception):
    """Something went wrong inside a layer; `__cause__` holds the original exception.

    Attributes:
      layer_name: the name of the innermost layer that the exception passed through.
      caller: `(file, line)` where that layer was created.
      input_signature: what that layer was called with, or the module in it that failed.
    """

    def __init__(
        self,
        layer_name: str,
        path: str,
        caller: tuple[str, int],
        input_signature: Any,
        cause: BaseException,
        advice: str = "",
        is_wrapped: bool = False,
    ):
        self.layer_name = layer_name
        self.caller = caller
        self.input_signature = input_signature
        short = "/".join(caller[0].split(os.sep)[-3:])
        created = "" if is_wrapped else f"  layer created in file [...]/{short}, line {caller[1]}\n"
        super().__init__(
            f"Exception passing through layer {layer_name} (in {path}):\n"
            f"{created}"
            f"  layer input shapes: {input_signature}\n\n"
            f"{type(cause).__name__}: {cause}" + (f"\n\n{advice}" if advice else "")
        )

    def __reduce__(self) -> Any:
        return Exception, self.args


def creation_site() -> tuple[str, int]:
    """Returns the file and line that asked for a layer: the user's, not one of ours."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (
        _mistakes.is_ours(frame) or frame.f_code.co_name == "__init__"
    ):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def passes_through(error: Exception) -> bool:
    """Tells whether an exception is torch's own signal, for callers further up to catch."""
    return isinstance(error, torch.OutOfMemoryError) or _torch_private.is_a_signal(error)


def explain(outermost: Any, x: Any, error: Exception) -> LayerError:
    """Returns the LayerError for an exception, from the frames it passed through.

    Reading the traceback afterwards costs nothing while all goes well.
    """
    layers, member, inputs = [outermost], None, (x,)
    path = outermost.name
    for module, args in _calls(error):
        inputs = args
        if hasattr(module, "_caller"):
            path += f" > {module.name}" if module is not layers[-1] else ""
            layers.append(module)
            member = None
        else:
            member = module
    layer = layers[-1]
    failed = getattr(layer, "module", layer) if member is None else member
    is_wrapped = hasattr(layer, "module")  # layers._protocol knows layers by their attributes alone
    if is_wrapped:
        path += _place(layer, failed)
    advice = advice_for(failed, inputs, error)
    _mistakes.shorten(error)
    signature = _signature(inputs[0] if len(inputs) == 1 else inputs)
    return LayerError(layer.name, path, layer._caller, signature, error, advice, is_wrapped)


def _calls(error: Exception) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Yields the modules whose calls an error passed through, and their inputs; outermost first."""
    traceback, last = error.__traceback__, None
    while traceback is not None:
        frame = traceback.tb_frame
        module, args = frame.f_locals.get("self"), _torch_private.inputs_of_call(frame)
        if args is not None and module is not last:
            yield module, args
            last = module
        traceback = traceback.tb_next


def _place(layer: Any, failed: nn.Module) -> str:
    """Returns where in a foreign module the one that failed is: ' > encoder.0 (Linear(2, 3))'."""
    names = {id(module): name for name, module in layer.module.named_modules()}
    name, shown = names.get(id(failed), ""), repr(failed)
    if "\n" in shown or len(shown) > 80:
        shown = type(failed).__name__
    if name:
        return f" > {name} ({shown})"
    if failed is not layer.module:
        return f" > {shown}"
    return "" if shown.removesuffix("()") == layer.name else f": {shown}"


def _signature(inputs: Any) -> Any:
    """Returns the signature of inputs; the name of their type where they have none."""
    try:
        return shapes.signature(inputs)
    except TypeError:
        return type(inputs).__name__
