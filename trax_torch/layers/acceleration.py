"""The compiled twin of a layer."""

import warnings
from typing import Any

import torch

from trax_torch import _torch_private
from trax_torch.layers import base
from trax_torch.layers.base import Layer, as_layer


class Accelerate(Layer):
    """Runs a layer compiled by `torch.compile`; the weights are the layer's own, not a copy.

    The first call of a kind compiles, which takes seconds; later calls of the same shape and type
    are fast. In predict mode, where each position would be another program, and in `pure_fn`, the
    layer runs as it is; `supervised.decoding` compiles the steps of an accelerated model itself.
    Where nothing can be compiled (no C++ compiler, say), the layer runs as it is too, after one
    warning.

    Args:
      layer: what to run; a bare module is wrapped.
      n_devices: how many devices the caller counts on; this process has one.
      backend: as for `torch.compile`.

    Raises:
      ValueError: if `n_devices` is more than 1.

    Source: Trax `layers/acceleration.py::Accelerate`, which spreads a batch over all devices; here
      that is the launcher's and `Loop`'s.
    """

    def __init__(self, layer: Any, n_devices: int | None = None, *, backend: str = "inductor"):
        layer = as_layer(layer)
        super().__init__(n_in=layer.n_in, n_out=layer.n_out)
        if n_devices not in (None, 1):
            raise ValueError(
                f"A layer runs on the one device of its process; got n_devices={n_devices}. To "
                f"train on several, start the script with torchrun."
            )
        self._set_sublayers([layer])
        self._backend = backend
        self._compiled: Any = None
        self._can_compile = True

    @property
    def backend(self) -> str:
        """What compiles."""
        return self._backend

    @property
    def sublayer(self) -> Any:
        """The layer that is run."""
        return self.sublayers[0]

    def forward(self, x: Any) -> Any:
        """Returns what the layer returns."""
        layer = self.sublayer
        if not self._can_compile or self._pass is not None or _is_for_once(layer):
            return base.call(layer, x)
        if self._compiled is None:
            # Not an attribute of the usual kind: nn.Module would register the twin as a child.
            twin = torch.compile(layer, backend=self._backend)
            object.__setattr__(self, "_compiled", twin)
        try:
            compiled: Any = self._compiled
            return compiled(x)
        except Exception as error:
            if not _torch_private.is_of_the_compiler(error):
                raise
            warnings.warn(f"{layer.name} runs uncompiled: {error}", stacklevel=2)
            self._can_compile = False
            return base.call(layer, x)

    def replicate_weights(self, weights: Any) -> None:
        """Sets the layer's weights, as Trax's Accelerate does on every device."""
        self.sublayer.weights = weights

    def replicate_state(self, state: Any) -> None:
        """Sets the layer's state."""
        self.sublayer.state = state

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": None}  # compiled code is not for copies and files


def _is_for_once(layer: Any) -> bool:
    """Tells whether a compiled program would serve one call: a position, or borrowed weights."""
    first = next(layer.parameters(), None)
    if first is not None and not isinstance(first, torch.nn.Parameter):
        return True
    return any(m._memory is not None for m in layer.modules() if isinstance(m, Layer))
