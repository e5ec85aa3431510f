"""The pass of shapes: the one way by which weights come into being.

A layer is run on torch's meta device, where a tensor is a shape without numbers; the layers without
weights make theirs when the shapes reach them.
"""

from types import TracebackType
from typing import Any

import torch
from torch import nn

from trax_torch import _nest, shapes


class ShapePass:
    """Runs a layer on the meta device; the layers without weights make theirs when reached.

    While it lasts, every tensor that exists stands aside for a twin that has only a shape, and no
    layer is in predict mode. Where a torch lazy module waits for its first input, zeros are run
    instead of shapes, since lazy modules know no other way.
    """

    def __init__(self, layer: Any, rng: torch.Generator | None, renew: bool = True):
        self._renew = renew and rng is not None
        self.rng = rng
        self._layers = [m for m in layer.modules() if hasattr(m, "_init_here")]
        self._modules = list(layer.modules())
        self._is_real = any(
            nn.parameter.is_lazy(p) for m in self._modules for p in m._parameters.values()
        )
        self._aside: list[tuple[dict[str, Any], str, torch.Tensor]] = []
        self._twins: dict[int, torch.Tensor] = {}

    def __enter__(self) -> "ShapePass":
        self._memories = [m._memory for m in self._layers]
        for layer in self._layers:
            layer._pass = self
            layer._memory = None
            if self._renew:
                layer._init_cached = False
                layer._await_init()
        for module in self._modules:
            self.set_aside(module)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for tensors, name, tensor in self._aside:
            tensors[name] = tensor
        for layer, memory in zip(self._layers, self._memories, strict=True):
            layer._pass = None
            layer._memory = memory

    def run(self, layer: Any, input_signature: Any) -> Any:
        """Returns the layer's outputs for inputs that are shapes alone."""
        device = "cpu" if self._is_real else "meta"
        signature = shapes.signature(input_signature)
        if signature is None:
            layer._init_here(None)
            return ()
        inputs = _nest.map_leaves(
            lambda s: s if s is None else torch.zeros(s.shape, dtype=s.dtype, device=device),
            signature,
        )
        with torch.no_grad():
            return layer(tuple(inputs) if isinstance(inputs, list) else inputs)

    def set_aside(self, module: nn.Module) -> None:
        """Puts shape-only twins in the place of a module's own tensors."""
        if self._is_real:
            return
        stores: list[dict[str, Any]] = [module._parameters, module._buffers]
        for tensors in stores:
            for name, tensor in tensors.items():
                if tensor is not None and not tensor.is_meta:
                    twin = self._twins.get(id(tensor))
                    if twin is None:
                        twin = torch.empty_like(tensor, device="meta")
                        if isinstance(tensor, nn.Parameter):
                            twin = nn.Parameter(twin, requires_grad=tensor.requires_grad)
                        self._twins[id(tensor)] = twin
                    self._aside.append((tensors, name, tensor))
                    tensors[name] = twin

    def bring_back(self, module: nn.Module) -> None:
        """Puts a module's own tensors back in place."""
        for tensors, name, tensor in self._aside:
            if tensors is module._parameters or tensors is module._buffers:
                tensors[name] = tensor
