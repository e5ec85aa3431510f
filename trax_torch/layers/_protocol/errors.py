"""What a user reads when something goes wrong inside a layer."""

import os
import sys
from typing import Any

import torch

from trax_torch import _torch_private, shapes

_LAYERS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class LayerError(Exception):
    """Something went wrong inside a layer; `__cause__` holds the original exception.

    Attributes:
      layer_name: the name of the innermost layer that the exception passed through.
      caller: `(file, line)` where that layer was created.
      input_signature: what that layer was called with.
    """

    def __init__(
        self,
        layer_name: str,
        path: str,
        caller: tuple[str, int],
        input_signature: Any,
        cause: BaseException,
    ):
        self.layer_name = layer_name
        self.caller = caller
        self.input_signature = input_signature
        short = "/".join(caller[0].split(os.sep)[-3:])
        super().__init__(
            f"Exception passing through layer {layer_name} (in {path}):\n"
            f"  layer created in file [...]/{short}, line {caller[1]}\n"
            f"  layer input shapes: {input_signature}\n\n"
            f"{type(cause).__name__}: {cause}"
        )

    def __reduce__(self) -> Any:
        return Exception, self.args


def creation_site() -> tuple[str, int]:
    """Returns the file and line that asked for a layer: the first frame outside of `layers`."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (
        frame.f_code.co_filename.startswith(_LAYERS) or frame.f_code.co_name == "__init__"
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
    chain, inputs = [outermost], x
    traceback = error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        layer, args = frame.f_locals.get("self"), _torch_private.inputs_of_call(frame)
        if hasattr(layer, "_caller") and args is not None:
            if layer is not chain[-1]:
                chain.append(layer)
            inputs = args[0] if isinstance(args, tuple) and len(args) == 1 else args
        traceback = traceback.tb_next
    try:
        signature = shapes.signature(inputs)
    except TypeError:
        signature = type(inputs).__name__
    path = " > ".join(layer.name for layer in chain)
    return LayerError(chain[-1].name, path, chain[-1]._caller, signature, error)
