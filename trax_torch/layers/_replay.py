"""A layer's run once more, as it was: what its backward pass does instead of keeping activations.

This room knows what a run depends on besides inputs and weights; it knows no gradients.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from trax_torch import _seeds
from trax_torch.layers import _trees, base


class Replay:
    """Runs a layer again as it ran before; is made just before it runs.

    The same random numbers are drawn; buffers, numbers that modules hold (a dropout rate, a mode)
    and autocast are as they were. What the layer really holds is not touched, so running statistics
    are not counted twice.

    Args:
      layer: what is about to run.
      device: where it runs, whose random numbers count besides the CPU's.
      x: what it is about to take, if the types of that are to be known later.

    Example:
      >>> layer = base.Fn('Noise', lambda x: x + torch.rand(1))
      >>> replay = Replay(layer, torch.device('cpu'))
      >>> bool(layer(torch.zeros(1)) == replay(torch.zeros(1)))
      True
    """

    def __init__(self, layer: nn.Module, device: torch.device, x: Any = None):
        self._layer = layer
        items = x if isinstance(x, (tuple, list)) else (x,)
        self._dtypes = [i.dtype if _is_float(i) else None for i in items]
        self.draws = _seeds.Again(device)  # called, gives the context of the random numbers alone
        self._numbers = [(m, _numbers_of(m)) for m in layer.modules()]
        self._buffers = {
            path: owner.get_buffer(name).detach().clone()
            for path, owner, name in _trees.lasting_buffers(layer)
        }
        kinds = {"cpu", device.type}
        self._casts = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in sorted(kinds)
            if torch.amp.is_autocast_available(kind)
        ]

    def __call__(self, x: Any, params: Mapping[str, torch.Tensor] | None = None) -> Any:
        """Returns the layer's outputs for `x`.

        Args:
          x: inputs, packed as the layer takes them.
          params: tensors to use in place of the layer's own parameters, by name.
        """
        tensors = self._tensors(params)
        with self._as_before():
            if not tensors:
                return base.call(self._layer, x)
            return torch.func.functional_call(self._layer, tensors, (x,), tie_weights=False)

    def reverse(self, output: Any, params: Mapping[str, torch.Tensor] | None = None) -> Any:
        """Returns `layer.reverse(output)`, run like the layer itself."""
        tensors = {f"layer.{name}": t for name, t in self._tensors(params).items()}
        with self._as_before():
            return torch.func.functional_call(
                _Backwards(self._layer), tensors, (output,), tie_weights=False
            )

    def as_taken(self, items: Sequence[Any]) -> list[Any]:
        """Returns floats in the types of the inputs that were noted; sums may be in a wider one."""
        dtypes = [*self._dtypes, *[None] * (len(items) - len(self._dtypes))]
        return [
            x if dtype is None or not _is_float(x) else x.to(dtype)
            for x, dtype in zip(items, dtypes, strict=True)
        ]

    def _tensors(self, params: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
        """Returns what to put in place of the layer's parameters and buffers, by name."""
        # Cloned, since layers write into their buffers and there may be another run.
        tensors = {name: b.clone() for name, b in self._buffers.items()}
        if params:
            own = dict(parameters_of(self._layer))
            given = {id(own[name]): tensor for name, tensor in params.items()}  # tied ones, too
            tensors.update({k: given[id(p)] for k, p in own.items() if id(p) in given})
            tensors.update(params)
        return tensors

    @contextlib.contextmanager
    def _as_before(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for kind, dtype, is_enabled in self._casts:
                # Without its cache, which would hold casts of weights until an outer block ends.
                cast = torch.autocast(kind, dtype=dtype, enabled=is_enabled, cache_enabled=False)
                stack.enter_context(cast)
            stack.enter_context(self.draws())
            stack.enter_context(_Numbers(self._numbers))
            yield


class _Backwards(nn.Module):
    """Reverses a layer while `functional_call`'s tensors are in place."""

    def __init__(self, layer: Any):
        super().__init__()
        self.layer = layer

    def forward(self, output: Any) -> Any:
        return self.layer.reverse(output)


class _Numbers:
    """Lets the numbers that modules hold be others for a while."""

    def __init__(self, numbers: list[tuple[nn.Module, dict[str, Any]]]):
        self._numbers = numbers

    def __enter__(self) -> None:
        self._now = [(module, _numbers_of(module)) for module, _ in self._numbers]
        for module, then in self._numbers:
            vars(module).update(then)

    def __exit__(self, *_: object) -> None:
        for module, now in self._now:
            vars(module).update(now)


def parameters_of(layer: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields every parameter under each of its names; a layer that occurs again counts once."""
    for path, module in layer.named_modules():
        for name, tensor in module._parameters.items():
            if tensor is not None:
                yield f"{path}.{name}" if path else name, tensor


def _is_float(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def _numbers_of(module: nn.Module) -> dict[str, Any]:
    return {k: v for k, v in vars(module).items() if isinstance(v, (int, float))}
