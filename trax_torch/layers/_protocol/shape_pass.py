"""The pass of shapes: the one way by which weights come into being.

A layer is run on torch's meta device, where a tensor is a shape without numbers; the layers without
weights make theirs when the shapes reach them. A layer that wants numbers, since it looks at values
or brings a tensor of its own, is run on zeros.
"""

import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import nn

from trax_torch import _nest, shapes
from trax_torch.layers._protocol.errors import LayerError, explain, passes_through
from trax_torch.layers._protocol.first_weights import Made, ShapesAlone, stand_in
from trax_torch.layers._protocol.functional import device_of


class ShapePass:
    """Runs a layer on the meta device; the layers without weights make theirs when reached.

    While it lasts, every tensor that exists stands aside for a twin that has only a shape, and no
    layer is in predict mode. A layer that fails on shapes is run on zeros and its own tensors, and
    only if that fails too is it an error. Where a torch lazy module waits for its first input,
    zeros are run from the beginning, since lazy modules know no other way.

    Args:
      layer: the layer.
      rng: what weights are drawn from; None makes none.
      renew: whether layers that have weights make new ones.
      device: where what is made belongs; by default torch's default device.

    Attributes:
      notes: who made weights, in order.
    """

    def __init__(
        self,
        layer: Any,
        rng: torch.Generator | None,
        renew: bool = True,
        device: torch.device | None = None,
    ):
        self._renew = renew and rng is not None
        self.rng = rng
        self.device = device or torch.get_default_device()
        self.notes: list[Made] = []
        self._lent: contextlib.ExitStack | None = None
        self._noting = [Made(None, None, [self.notes])]
        self._modules = list(layer.modules())
        self._layers = [m for m in self._modules if hasattr(m, "_init_here")]
        self._is_real = any(
            nn.parameter.is_lazy(p) for m in self._modules for p in m._parameters.values()
        )
        self._aside: list[tuple[dict[str, Any], str, torch.Tensor]] = []
        self._twins: dict[int, torch.Tensor] = {}
        self._failed: Exception | None = None  # by a layer that was run on zeros, too
        self._kept: list[tuple[dict[str, Any], str, torch.Tensor, torch.Tensor]] = []

    def __enter__(self) -> "ShapePass":
        self._memories = [m._memory for m in self._layers]
        self._forwards = [vars(m).get("forward") for m in self._layers]
        for layer in self._layers:
            layer._pass = self
            layer._memory = None
            if self._renew:
                layer._init_cached = False
                layer._await_init()
            if not self._is_real:
                vars(layer)["forward"] = _Shaped(self, layer, layer.forward)
        for module in self._modules:
            self.set_aside(module)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._failed = None
        for tensors, name, tensor in self._aside:
            tensors[name] = tensor
        for layer, memory, forward in zip(
            self._layers, self._memories, self._forwards, strict=True
        ):
            layer._pass = None
            layer._memory = memory
            vars(layer).pop("forward", None)
            if forward is not None:
                vars(layer)["forward"] = forward

    def make(self, layer: Any, input_signature: Any) -> None:
        """Makes a layer's weights; the layer is run only if there are others in it.

        Args:
          layer: whose weights.
          input_signature: of its inputs; None where no layer needs one.

        Raises:
          LayerError: if the layer cannot take such inputs.
        """
        signature = _as_packed(shapes.signature(input_signature))
        if len(self._noting) > 1:  # a layer that is making weights has another make its own
            self._noting[-1].inside.append([])
        if signature is not None and (any(True for _ in layer.children()) or self._is_real):
            self.run(layer, signature)
        elif self._renew or layer._init_hook is not None:
            try:
                layer._init_here(signature)
            except Exception as error:
                if isinstance(error, LayerError) or passes_through(error):
                    raise
                raise explain(layer, signature, error) from error

    def run(self, layer: Any, input_signature: Any) -> Any:
        """Returns the layer's outputs for inputs that are shapes alone."""
        inputs = _nest.map_leaves(
            lambda s: s if s is None else _zeros(s, "cpu" if self._is_real else "meta"),
            shapes.signature(input_signature),
        )
        with torch.no_grad():
            return layer(_as_packed(inputs))

    def forward(self, layer: Any, forward: Callable[..., Any], args: Any) -> Any:
        """Returns what a layer gives for inputs that are shapes, as shapes.

        Args:
          layer: has its weights; those in it make theirs on the way.
          forward: its own.
          args: what it is called with.
        """
        if self._is_real:  # in the midst of a layer that is run on zeros
            return forward(*args)
        try:
            return forward(*args)
        except Exception as error:
            if error is self._failed:
                raise
        try:
            outputs = self._on_zeros(layer, forward, args)
        except Exception as error:
            self._failed = error
            raise
        return _nest.map_leaves(
            lambda y: y.to("meta") if isinstance(y, torch.Tensor) else y, outputs
        )

    def _on_zeros(self, layer: Any, forward: Callable[..., Any], args: Any) -> Any:
        """Runs a layer on zeros of the shapes that came; nothing that it keeps is changed."""
        modules = list(layer.modules())
        for module in modules:
            self.bring_back(module)
        device = device_of(layer)
        device = torch.device("cpu") if device.type == "meta" else device
        inputs = _nest.map_leaves(
            lambda x: _zeros(x, device) if isinstance(x, torch.Tensor) and x.is_meta else x, args
        )
        self._is_real, self._kept = True, []
        try:
            with contextlib.ExitStack() as self._lent:  # where what is made has shapes alone
                self._lent.enter_context(stand_in([layer], device))
                try:
                    for module in modules:
                        self._keep(module)
                    return forward(*inputs)
                finally:
                    for tensors, name, buffer, value in self._kept:
                        tensors[name] = buffer.copy_(value)
        finally:
            self._is_real, self._lent = False, None
            for module in modules:
                self.set_aside(module)

    def _keep(self, module: nn.Module) -> None:
        """Notes what a module's statistics are, so that a run on zeros does not count."""
        buffers: dict[str, Any] = module._buffers
        self._kept += [(buffers, k, b, b.clone()) for k, b in buffers.items() if b is not None]

    def init(self, layer: Any, input_signature: Any) -> None:
        """Has a layer make its weights, and notes it; drawn are those alone that are kept."""
        note = Made(layer, input_signature)
        (self._noting[-1].inside or [self.notes])[-1].append(note)
        self._noting.append(note)
        try:
            if self.device.type == "meta":
                with contextlib.suppress(Exception), ShapesAlone():
                    layer.init_weights_and_state(input_signature)
                    return
            note.inside.clear()  # it wants numbers, or fails
            layer.init_weights_and_state(input_signature)
        finally:
            self._noting.pop()

    def made(self, layer: Any) -> None:
        """Notes that a layer has its weights."""
        if self._is_real:
            if self._lent is not None:
                self._lent.enter_context(stand_in([layer], torch.device("cpu")))
            self._keep(layer)
        self.set_aside(layer)

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


class _Shaped:
    """A layer's forward while shapes are passed."""

    def __init__(self, shape_pass: ShapePass, layer: Any, forward: Callable[..., Any]):
        self._pass, self._layer, self._forward = shape_pass, layer, forward

    def __call__(self, *args: Any) -> Any:
        return self._pass.forward(self._layer, self._forward, args)


def _zeros(like: Any, device: Any) -> torch.Tensor:
    return torch.zeros(like.shape, dtype=like.dtype, device=device)


def _as_packed(inputs: Any) -> Any:
    return tuple(inputs) if isinstance(inputs, list) else inputs


def shapes_of_weights(layer: Any, input_signature: Any, rng: torch.Generator) -> list[Made]:
    """Makes weights for those layers that have none, on the meta device; returns who made some.

    Args:
      layer: the layer, and those in it.
      input_signature: of its inputs.
      rng: what weights are drawn from where shapes alone do not do.
    """
    meta = torch.device("meta")
    with ShapePass(layer, rng, renew=False, device=meta) as shape_pass:
        shape_pass.make(layer, input_signature)
    return shape_pass.notes
