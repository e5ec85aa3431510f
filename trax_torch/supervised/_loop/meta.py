"""Models on torch's meta device, where tensors are shapes: who holds what, and the first numbers.

Weights get memory when it is known which part of each this rank keeps. They are drawn as those of
a whole model are, one after another, and of each the rank's part stays.
"""

import contextlib
import functools
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from trax_torch import _distributed, _generators, _seeds, _torch_private, shapes
from trax_torch import layers as tl
from trax_torch.layers import _protocol
from trax_torch.supervised import _checkpoint
from trax_torch.supervised._loop.meeting import Meeting
from trax_torch.supervised._loop.settings import LoopConfig

_RESETS = ("reset_parameters", "_reset_parameters")  # as torch's own modules call it


@dataclass
class Filling:
    """The tensors of a model that have no memory yet, and where their first numbers come from.

    Attributes:
      device: where they belong.
      notes: the layers of ours that make weights, in order.
      seed: of what these draw, and random_seed: of what others do.
      ambient: where the process-wide generators were before, on the chief.
      unfilled: after `fill`, what nobody gave numbers.
    """

    device: torch.device
    seed: int
    random_seed: int
    notes: list[Any] = field(default_factory=list)
    ambient: _generators.Snapshot | None = None
    unfilled: list[_checkpoint.Unfilled] = field(default_factory=list)

    def lent(self, *roots: nn.Module) -> contextlib.AbstractContextManager[dict[int, Any]]:
        """Returns a context in which models compute, with weights that take up no memory.

        It gives what others stand in for, by the others' ids.
        """
        return _protocol.stand_in(roots, self.device)

    @torch.no_grad()
    def fill(self, world: _distributed.World, model: nn.Module, *others: nn.Module) -> None:
        """Gives tensors memory, and those of a model their first numbers, as far as they are known.

        Args:
          world: the ranks.
          model: the model.
          others: get memory alone.
        """
        given = _give_memory([model, *others], self.device)
        if not given:
            return
        before = _generators.take()
        try:
            if self.ambient is not None:
                self.ambient.put()
            _protocol.make_again(self.notes, _first(self.seed))
            torch.default_generator.manual_seed(self.random_seed)
            made = {id(note.layer) for note in _all(self.notes)}
            _Resets(given, made).visit(model)
        finally:
            before.put()
        paths = {id(module): path for path, module in model.named_modules()}
        found: dict[int, _checkpoint.Unfilled] = {}
        for owner, name, tensor in _protocol.places([model]):
            if id(tensor) in given:
                full = f"{paths[id(owner)]}.{name}".removeprefix(".")
                one = _checkpoint.Unfilled(full, tensor, given[id(tensor)])
                found.setdefault(id(tensor), one)
        self.unfilled = _checkpoint.left([*found.values()], world)


def begin(
    layer: tl.Layer,
    met: Meeting,
    batch: Any,
    seeds: tuple[int, int],
    world: _distributed.World,
    config: LoopConfig,
) -> Filling:
    """Has a model know its weights; those that nobody needs whole are shapes alone.

    Weights that are there stay. Those of a model on the meta device, and those that layers of ours
    are to make of which ranks keep parts, have no memory until `Filling.fill`.

    Args:
      layer: the model.
      met: how it meets batches.
      batch: a sample.
      seeds: of the weights that layers of ours make, and the run's.
      world: the ranks.
      config: says where weights go.

    Raises:
      ValueError: if the batch has too few items; or if a module keeps a tensor on the meta device
        that nobody can fill.
    """
    device = torch.device("cpu") if config.use_memory_efficient_trainer == 2 else world.device
    filling = Filling(device, *seeds)
    is_lazy = any(map(nn.parameter.is_lazy, layer.parameters()))
    is_lean = config.is_sharded and world.size > 1 and not is_lazy
    is_born = any(tensor.is_meta for _, _, tensor in _protocol.places([layer]))
    if is_born:
        _refuse_plain_tensors(layer)
        for module, _, tensor in _protocol.places([layer]):
            if tensor.is_meta and isinstance(module, tl.Layer):
                module._await_init()  # its weights are still to be made
    if not layer.is_initialized:
        model, signature = met.asked_model(layer), _signature(layer, met, batch)
        if is_born or is_lean:
            here = _generators.take().pack()
            filling.ambient = _generators.unpack(_from_chief(here, world))
            filling.notes = _protocol.shapes_of_weights(model, signature, _first(seeds[0]))
        else:
            model.init_missing(signature, rng=seeds[0])
    if is_born and not is_lean:
        filling.fill(world, _checkpoint.bare(layer))
    _move(layer, device, world)
    return filling


def _first(seed: int) -> torch.Generator:
    """Returns what `Layer.init_missing` draws from."""
    return _seeds.generator(_seeds.as_seed(seed), "init")


def _signature(layer: tl.Layer, met: Meeting, batch: Any) -> Any:
    inputs = met.call.items(batch)
    if len(inputs) < met.call.n_in:
        raise ValueError(
            f"The model takes {layer.n_in} inputs, but a batch has {len(batch)} items."
        )
    return shapes.signature(inputs[0] if len(inputs) == 1 else inputs)


def _from_chief(tensor: torch.Tensor, world: _distributed.World) -> torch.Tensor:
    data = bytearray(world.from_chief(tensor.numpy().tobytes()))
    return torch.frombuffer(data, dtype=torch.uint8)


def _move(layer: tl.Layer, device: torch.device, world: _distributed.World) -> None:
    """Moves what has memory to where it belongs; buffers go to where the model computes."""
    if device == world.device:
        with _protocol.stand_in([layer], device):
            layer.to(device)
        return
    for module in layer.modules():  # weights stay: there may be no room for them
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(world.device)


def _refuse_plain_tensors(layer: tl.Layer) -> None:
    """Raises ValueError if a module keeps a tensor without values beside parameters and buffers."""
    for path, module in _checkpoint.bare(layer).named_modules():
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor) and value.is_meta:
                where = f"{path}.{name}".removeprefix(".")
                raise ValueError(
                    f"{where} is on the meta device, and neither a parameter nor a buffer, so "
                    f"nothing gives it values. Make it with torch.device('cpu'), or register it as "
                    f"a buffer that reset_parameters fills."
                )


def _give_memory(roots: Sequence[nn.Module], device: torch.device) -> dict[int, int]:
    """Gives memory to tensors that have none, in which nothing is a number yet.

    Returns:
      How often each was written into by then, by its id.
    """
    made: dict[int, torch.Tensor] = {}
    for owner, name, tensor in _protocol.places(roots):
        if not tensor.is_meta:
            continue
        if id(tensor) not in made:
            own = _distributed.in_memory(tensor, device)
            _no_numbers_(_distributed.local(own))
            if isinstance(tensor, nn.Parameter):
                own = nn.Parameter(own, requires_grad=tensor.requires_grad)
            made[id(tensor)] = own
        _protocol.put(owner, name, made[id(tensor)])
    for root in roots:
        for module in root.modules():
            if hasattr(module, "set_requires_gradient_sync"):  # it looks at its parts anew
                module.to(device)
                break
    return {id(tensor): _checkpoint.times_written(tensor) for tensor in made.values()}


def _no_numbers_(tensor: torch.Tensor) -> None:
    if tensor.is_floating_point() or tensor.is_complex():
        tensor.fill_(torch.nan)
    else:
        tensor.zero_()


def _all(notes: Sequence[Any]) -> Generator[Any]:
    for note in notes:
        yield note
        for inside in note.inside:
            yield from _all(inside)


class _Resets:
    """Asks modules of others for first numbers, in the order in which a whole model draws them.

    Args:
      given: the tensors that have no numbers yet, by id.
      made: the ids of modules that have made theirs.
    """

    def __init__(self, given: dict[int, int], made: set[int]):
        self._given = given
        self._seen = set(made)
        self._filled: set[int] = set()

    def visit(self, module: nn.Module, setter: Callable[[nn.Module], Any] | None = None) -> None:
        """Fills a module, what is in it first, as it was built.

        Args:
          module: the module.
          setter: the `_init_weights` of a model that it is part of, if there is one: by that the
            model changes what its parts have drawn, so they draw nothing here. It fills buffers.
        """
        if id(module) in self._seen:
            return
        self._seen.add(id(module))
        own_setter = getattr(module, "_init_weights", None)
        setter = own_setter if callable(own_setter) else setter
        for child in module.children():
            self.visit(child, setter)
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        resets = [getattr(module, name, None) for name in _RESETS]
        reset = next(filter(callable, resets), None)
        if setter is not None:
            has_weights = any(True for _ in module.parameters())
            reset = None if has_weights else functools.partial(setter, module)
        if reset is not None and any(id(tensor) in self._given for tensor in own):
            self._take(module, reset, {id(tensor) for tensor in own})

    def _take(self, module: nn.Module, reset: Callable[[], Any], own: set[int]) -> None:
        """Has a module draw whole tensors on the CPU, and keeps this rank's parts of them."""
        drawn: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        there = [each for each in _protocol.places([module]) if id(each[2]) in self._given]
        for owner, name, tensor in there:
            if id(tensor) not in drawn:
                whole = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                _no_numbers_(whole)
                if isinstance(tensor, nn.Parameter):
                    whole = nn.Parameter(whole, requires_grad=tensor.requires_grad)
                drawn[id(tensor)] = tensor, whole
            _protocol.put(owner, name, drawn[id(tensor)][1])
        before = {key: _torch_private.version(whole) for key, (_, whole) in drawn.items()}
        try:
            reset()
        finally:
            for owner, name, tensor in there:
                _protocol.put(owner, name, tensor)
        for key, (tensor, whole) in drawn.items():
            is_anothers = key in own and key in self._filled  # of one that has it, too
            is_all = not whole.dtype.is_floating_point or not whole.isnan().any()
            if _torch_private.version(whole) != before[key] and is_all and not is_anothers:
                _distributed.fill_(tensor, whole)
                self._filled.add(key)
