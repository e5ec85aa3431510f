"""Rematerialization: a layer runs once more, as it did, instead of keeping its activations.

This room knows what a run depends on besides inputs and weights; it knows no gradients.
"""

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trax_torch import _seeds
from trax_torch._torch_private import version
from trax_torch.layers import _protocol, base


class Replay:
    """Runs a layer again as it ran before; is made just before it runs.

    The same random numbers are drawn; what modules hold besides weights (buffers, a dropout rate, a
    mode) and autocast are as they were. What the layer really holds is not touched, so running
    statistics are not counted twice.

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
        self.held = Held(layer)
        self._deciders: list[Any] = [
            m._decisions for m in layer.modules() if "_decisions" in vars(m)
        ]
        self._decided: list[Any] = []  # what each of them decided
        kinds = {"cpu", device.type}
        self._casts = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in sorted(kinds)
            if torch.amp.is_autocast_available(kind)
        ]

    def first(self, x: Any, params: Mapping[str, torch.Tensor] | None = None) -> Any:
        """Returns the layer's outputs for `x`, of the run that is to be repeated.

        Args:
          x: inputs, packed as the layer takes them.
          params: as a call takes them.
        """
        with contextlib.ExitStack() as stack:
            self._decided = [stack.enter_context(each.noted()) for each in self._deciders]
            outputs = self._run(x, params)
        self.held.settle()
        return outputs

    def __call__(self, x: Any, params: Mapping[str, torch.Tensor] | None = None) -> Any:
        """Returns the layer's outputs for `x`.

        Args:
          x: inputs, packed as the layer takes them.
          params: tensors to use in place of the layer's own parameters, by name.
        """
        with self._as_before():
            return self._run(x, params)

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

    def _run(self, x: Any, params: Mapping[str, torch.Tensor] | None) -> Any:
        tensors = self._tensors(params)
        if not tensors:
            return base.call(self._layer, x)
        return torch.func.functional_call(self._layer, tensors, (x,), tie_weights=False)

    def _tensors(self, params: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
        """Returns what to put in place of the layer's parameters, by name."""
        if not params:
            return {}
        own = dict(parameters_of(self._layer))
        given = {id(own[name]): tensor for name, tensor in params.items()}  # tied ones, too
        return {k: given[id(p)] for k, p in own.items() if id(p) in given} | dict(params)

    @contextlib.contextmanager
    def _as_before(self) -> Generator[None]:
        with contextlib.ExitStack() as stack:
            for kind, dtype, is_enabled in self._casts:
                # Without its cache, which would hold casts of weights until an outer block ends.
                cast = torch.autocast(kind, dtype=dtype, enabled=is_enabled, cache_enabled=False)
                stack.enter_context(cast)
            stack.enter_context(self.draws())
            stack.enter_context(self.held)
            for decisions, decided in zip(self._deciders, self._decided, strict=False):
                stack.enter_context(decisions.again(decided))
            yield


class _Backwards(nn.Module):
    """Reverses a layer while `functional_call`'s tensors are in place."""

    def __init__(self, layer: Any):
        super().__init__()
        self.layer = layer

    def forward(self, output: Any) -> Any:
        return self.layer.reverse(output)


class Decisions(threading.local):
    """What a layer chooses by comparing, such as buckets: once, though it is computed again.

    What is computed again from rounded inputs might choose otherwise, and give something else. A
    layer that chooses has one as its `_decisions`. Other threads have others; a copy is empty.

    Example:
      >>> decisions = Decisions()
      >>> with decisions.noted() as decided:
      ...     _ = decisions.made(lambda: torch.tensor(1))
      >>> with decisions.again(decided):
      ...     decisions.made(lambda: torch.tensor(2))
      tensor(1)
    """

    def __init__(self) -> None:
        self._noted: list[Any] | None = None
        self._due: list[Any] = []

    def __reduce__(self) -> Any:
        return Decisions, ()

    def made(self, choose: Callable[[], Any]) -> Any:
        """Returns what `choose` returns; where a run is repeated, what it returned then."""
        if torch.compiler.is_compiling():
            return choose()
        if self._due:
            return self._due.pop(0)
        choice = choose()
        if self._noted is not None:
            self._noted.append(choice)
        return choice

    @contextlib.contextmanager
    def noted(self) -> Generator[list[Any]]:
        """Notes what is decided in the block; gives the list that it will be in."""
        before, self._noted = self._noted, []
        try:
            yield self._noted
        finally:
            self._noted = before

    @contextlib.contextmanager
    def again(self, decided: Sequence[Any]) -> Generator[None]:
        """Has the block decide as it was noted."""
        before, self._due = self._due, list(decided)
        try:
            yield
        finally:
            self._due = before


class Held:
    """What the modules of a layer hold besides weights; is made just before the layer runs.

    As a context it has all be as it was then; afterwards all is as it is now. What counts are
    buffers, lasting or not, and attributes: tensors, numbers, modes, None. Lists are not looked
    into.

    Args:
      layer: what is about to run.

    Raises:
      RuntimeError: by the context, if a tensor that the run left alone was written into since.

    Example:
      >>> layer = torch.nn.BatchNorm1d(3)
      >>> held = Held(layer)
      >>> _ = layer(torch.rand(2, 3))
      >>> with held:
      ...     int(layer.num_batches_tracked)
      0
      >>> int(layer.num_batches_tracked)
      1
    """

    def __init__(self, layer: nn.Module):
        modules = list(layer.modules())
        self._layer = type(layer).__name__
        self._attributes = [(vars(m), dict(vars(m))) for m in modules]
        self._then = [*self._attributes, *((m._buffers, dict(m._buffers.items())) for m in modules)]
        self._now: list[list[dict[str, Any]]] = []  # to go back to, the innermost context's last
        tensors: dict[int, Any] = {
            id(x): x for _, then in self._then for x in then.values() if _is_tensor(x)
        }
        # Kernels of torch write into running statistics without counting a version.
        self._lasting = {id(owner._buffers[k]) for _, owner, k in _protocol.lasting_buffers(layer)}
        self._noted = {key: _Noted(x, version(x), _copy(x)) for key, x in tensors.items()}

    def settle(self) -> None:
        """Lets go of copies of what the run, which is over, has not written into.

        Those of buffers that a state_dict holds stay.
        """
        for key, noted in self._noted.items():
            if key not in self._lasting and version(noted.tensor) == noted.version:
                self._noted[key] = _Noted(noted.tensor, noted.version, None)

    def left(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields the attributes that are tensors now, and were others or none before."""
        for store, then in self._attributes:
            for name, value in store.items():
                if isinstance(value, torch.Tensor) and then.get(name) is not value:
                    yield name, value

    def __enter__(self) -> None:
        put = {key: self._as_before(noted) for key, noted in self._noted.items()}
        self._now.append([dict(store.items()) for store, _ in self._then])
        for store, then in self._then:
            _fill(store, {name: put.get(id(x), x) for name, x in then.items()})

    def __exit__(self, *error: object) -> None:
        for (store, _), values in zip(self._then, self._now.pop(), strict=True):
            _fill(store, values)

    def _as_before(self, noted: "_Noted") -> torch.Tensor:
        if noted.copy is not None:
            return noted.copy.clone()  # which the run will write into, and there may be another
        if version(noted.tensor) != noted.version:
            raise RuntimeError(
                f"{self._layer} is to run again as it ran before, but a tensor that it holds, of "
                f"shape {tuple(noted.tensor.shape)}, was written into since, which the run itself "
                f"had not done. Change it before the forward pass, or after the backward pass."
            )
        return noted.tensor


@dataclass(frozen=True)
class _Noted:
    """A tensor as it was: its version then, and a copy if it may have been written into since."""

    tensor: torch.Tensor
    version: int
    copy: torch.Tensor | None


def _is_tensor(x: Any) -> bool:
    return isinstance(x, torch.Tensor)


def _copy(x: torch.Tensor) -> torch.Tensor | None:
    """Returns a copy; None of a weight, another module's that is no parameter of this one."""
    return None if isinstance(x, nn.Parameter) else x.detach().clone()


def _fill(store: Any, values: dict[str, Any]) -> None:
    """Has a module's attributes, or buffers, be these and no others."""
    now = dict(store.items())
    for name in now.keys() - values.keys():
        del store[name]
    for name, value in values.items():
        if name not in now or now[name] is not value:
            store[name] = value


def parameters_of(layer: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields every parameter under each of its names; a layer that occurs again counts once."""
    for path, module in layer.named_modules():
        for name, tensor in module._parameters.items():
            if tensor is not None:
                yield f"{path}.{name}" if path else name, tensor


def _is_float(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point()
