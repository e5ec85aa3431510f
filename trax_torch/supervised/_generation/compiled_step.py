"""Compiled steps of decoding: how one is made, where it lives, and when it pays.

A step maps tokens (batch, n) to logits, for a model in predict mode whose layers share a `Moment`.
All that changes from step to step is in tensors, so one program serves all steps.
"""

import collections
import contextlib
import functools
import logging
import math
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trax_torch import _torch_private
from trax_torch import layers as tl
from trax_torch.layers._predict import blocks, modules_in

_log = logging.getLogger("trax_torch")

# Compiling takes ten to thirty seconds and saves two milliseconds a step of a small model, and more
# of a larger one: fewer steps than these do not earn it back. How many there will be, nobody knows,
# since a sequence may end at any token; so as many must have been taken before.
N_STEPS_THAT_PAY = {"cpu": 10_000, "cuda": 5_000}


def step(layer: Any, source: torch.Tensor | None, tokens: torch.Tensor) -> torch.Tensor:
    """Returns a model's logits for tokens (batch, n): floats (batch, n, vocab), at least float32.

    Args:
      layer: maps tokens, or (source, tokens), to logits or a tuple that begins with them.
      source: None for a model that takes tokens alone.
      tokens: integers.

    Raises:
      TypeError: if they are something else.
    """
    outputs = layer(tokens) if source is None else layer((source, tokens))
    logits = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
    if not isinstance(logits, torch.Tensor):
        raise TypeError(
            f"Tokens are chosen by logits, floats of shape (batch, length, vocab); {layer.name} "
            f"gave {type(logits).__name__}. Let it return them, or a tuple that begins with them."
        )
    result: torch.Tensor = logits if logits.dtype == torch.float64 else logits.float()
    return result


class CompiledSteps:
    """The compiled steps of one model, by kind; copies and files of the model have none.

    A kind says all that a program depends on: sizes, types, and what the model is made of.
    """

    def __init__(self) -> None:
        self.by_kind: dict[Any, CompiledStep] = {}
        self.n_uncompiled: collections.Counter[Any] = collections.Counter()  # steps, by sizes
        self.cannot = False  # after nothing could be compiled
        # The parts and weights that the model had when it gave in pieces what it gives at once, and
        # of how many positions.
        self.tried: tuple[list[weakref.ref[nn.Module]], list[Any], int] | None = None

    def __reduce__(self) -> Any:
        return CompiledSteps, ()

    def __deepcopy__(self, memo: Any) -> "CompiledSteps":
        return CompiledSteps()


class CompiledStep:
    """`step` as one compiled program of one model, for one kind.

    The first steps of a run go in by torch's front door, which looks whether anything has changed
    since the program was made. That takes longer than a small model's step itself, so what the
    program was given is noted, and the steps after them give it the same but for what moves on.
    """

    def __init__(self, layer: tl.Layer, steps: CompiledSteps, backend: Any, device: torch.device):
        self._steps, self.backend = steps, backend
        # A CUDA graph is of all that a program does, blocks or none.
        self._rows = rows_of_blocks(layer) if device.type == "cpu" else []
        self._is_on_gpu = device.type == "cuda"
        self.is_made = False
        self.kept: Any = None  # a program that needs no compiler; see `kept_programs`
        # Which axes of the source and of what is kept of it are as long as the source.
        self.axes: list[list[int]] | None = None
        self._is_full = False  # after torch would make no more programs of it
        self._noted: Any = None  # the program that was called last, and its arguments

    @functools.cached_property
    def _program(self) -> Any:
        """The program, or what will make it; the compiler is not imported before."""
        _torch_private.load_stride_order()
        own = _torch_private.with_a_cache_of_its_own(step)
        # Sizes were checked when the program was made. CUDA graphs are mode="reduce-overhead".
        options = {"size_asserts": False, "triton.cudagraphs": self._is_on_gpu}
        compiler = _torch_private.graph_compiler(self.backend, options)
        how: dict[str, Any]
        if compiler is not None:
            how = {"backend": self._noting(compiler)}
        else:  # then nothing is noted
            is_inductor = self.backend == "inductor"
            how = {"backend": self.backend, "options": options if is_inductor else None}
        return torch.compile(own, fullgraph=True, **how)

    def kind(self) -> tuple[Any, ...]:
        """Returns the kind of the step, but for what this process alone knows of the model."""
        (found,) = (kind for kind, step in self._steps.by_kind.items() if step is self)
        return *found[:-2], found[-1]

    def forget(self) -> None:
        """Has later runs make another one."""
        known = self._steps.by_kind
        self._steps.by_kind = {kind: step for kind, step in known.items() if step is not self}

    def as_a_whole(self) -> "CompiledStep":
        """Has blocks that are alike compiled one by one, in one program; returns itself."""
        self._rows = []
        return self

    def __call__(
        self, layer: Any, source: Any, tokens: torch.Tensor, calls: "Calls"
    ) -> torch.Tensor:
        """Returns `step(layer, source, tokens)`.

        Args:
          layer, source, tokens: as for `step`.
          calls: the steps of the same run, between which nothing else could change anything.
        """
        if self._steps.cannot or self._is_full:
            return step(layer, source, tokens)
        if calls.are_known:
            if self._is_on_gpu:
                torch.compiler.cudagraph_mark_step_begin()
            return calls.repeat()
        try:
            self._noted = None
            in_blocks = blocks.InBlocks(self._rows)
            with contextlib.closing(in_blocks), in_blocks:
                logits = self._program(layer, source, tokens)
        except Exception as error:
            if self._rows and not self.is_made:  # a whole may be compiled where blocks may not
                _log.info("%s is compiled as a whole: %s", layer.name, error)
                self._rows = []
                return self(layer, source, tokens, calls)
            if not _torch_private.is_of_the_compiler(error):
                raise
            warnings.warn(f"{layer.name} decodes uncompiled: {error}", stacklevel=2)
            if _torch_private.is_full(error):
                self._is_full = True  # the next run has a new one
                self.forget()
            else:
                self._steps.cannot = True
            return step(layer, source, tokens)
        self.is_made = True
        calls.note(self._noted)
        self._noted = None  # it holds caches
        result: torch.Tensor = logits
        return result

    def _noting(self, compiler: Any) -> Any:
        """Returns a compiler whose programs note what they are called with."""

        def compile_graph(graph: Any, inputs: Any) -> Any:
            program = compiler(graph, inputs)

            def run(*args: Any) -> Any:
                outputs = program(*args)
                if _torch_private.can_be_repeated(args, outputs):
                    self._noted = program, list(args)
                return outputs

            return run

        return compile_graph


class Calls:
    """The calls of a compiled program in one run: how to make the next one like the last.

    Args:
      moving: returns the tensors that are others at each step, always in the same order; the size
        of the first one may be another, too.
    """

    def __init__(self, moving: Callable[[], tuple[torch.Tensor, ...]]):
        self._moving = moving
        self.forget()

    def forget(self) -> None:
        """Begins anew: something may have changed that does not move by itself."""
        self._last: tuple[Any, list[Any], tuple[torch.Tensor, ...]] | None = None
        self.are_known = False

    def note(self, noted: Any) -> None:
        """Compares a call by the front door with the one before.

        Each argument must be what it was, or one of what moves, or its size; then calls are known.

        Args:
          noted: the program and its arguments, or None.
        """
        last, moving = self._last, self._moving()
        self._last = None if noted is None else (*noted, moving)
        if noted is None or last is None or last[0] is not noted[0]:
            return
        self._program, self._args = noted
        self._tensors: list[tuple[int, int]] = []
        self._sizes: list[int] = []
        for i, (before, now) in enumerate(zip(last[1], self._args, strict=True)):
            if isinstance(now, torch.Tensor):
                places = [j for j, t in enumerate(moving) if now is t and before is last[2][j]]
                if places:
                    self._tensors.append((i, places[0]))
                elif now is not before:
                    return
            elif now != before:
                if (before, now) != (len(last[2][0]), len(moving[0])):
                    return
                self._sizes.append(i)
        self.are_known = True

    def know(self, program: Any, args: list[Any], tensors: list[tuple[int, int]]) -> None:
        """Has the next calls go to a program.

        Args:
          program: gives a list of logits.
          args: its arguments; those that move may be None.
          tensors: pairs of the place of an argument that moves, and its place in what moves.
        """
        self._program, self._args, self._tensors, self._sizes = program, args, tensors, []
        self.are_known = True

    def known(self) -> tuple[list[Any], list[tuple[int, int]], list[int]]:
        """Returns a known call's arguments, which of them move, as `know` takes them, and which are
        the size of the first of what moves."""
        return self._args, self._tensors, self._sizes

    def repeat(self) -> torch.Tensor:
        """Returns what the next call gives."""
        moving = self._moving()
        for i, j in self._tensors:
            self._args[i] = moving[j]
        for i in self._sizes:
            self._args[i] = len(moving[0])
        (logits,) = self._program(*self._args)
        result: torch.Tensor = logits
        return result


def steps_of(layer: tl.Layer) -> CompiledSteps:
    """Returns a model's compiled steps, which live on the model itself."""
    owner: Any = layer.module if isinstance(layer, tl.Wrapped) else layer
    found = vars(owner).get("_compiled_steps")
    if found is None:
        found = CompiledSteps()
        object.__setattr__(owner, "_compiled_steps", found)
    result: CompiledSteps = found
    return result


def step_for(
    layer: tl.Layer,
    sizes: tuple[Any, ...],
    n_slots: int,
    wish: bool | None,
    backend: str,
) -> tuple[CompiledStep | None, int]:
    """Returns the compiled step to use and how long its caches are.

    Programs are for caches of certain lengths, powers of two; one for longer caches than are needed
    serves as well, since only what is filled is attended to.

    Args:
      layer: the model.
      sizes: what the program depends on beside the model and the length of the caches.
      n_slots: how long the caches must be.
      wish: True compiles, False does not, None compiles where it pays.
      backend: as for `torch.compile`.

    Returns:
      `(step, length)`; `(None, n_slots)` where the uncompiled way is no slower.
    """
    modules = modules_in(layer)
    weights = [p for m in modules for p in m._parameters.values() if p is not None]
    kinds = {(p.dtype, p.device.type) for p in weights}
    if (torch.bfloat16, "cpu") in kinds and not _torch_private.cpu_multiplies_bfloat16():
        _log.info(
            "%s multiplies in float32 where that is quicker: this CPU has no product of bfloat16.",
            layer.name,
        )
    if wish is False:
        _log.info("%s decodes uncompiled: accelerate=False.", layer.name)
        return None, n_slots
    if any(_torch_private.call_hooks(m, backward=False) for m in modules):
        # A program looks for no hooks, neither where it is made nor where it is run.
        _log.info("%s decodes uncompiled: it has forward hooks.", layer.name)
        return None, n_slots
    steps = steps_of(layer)
    device = weights[0].device if weights else torch.device("cpu")
    n_steps = steps.n_uncompiled[sizes]
    pays = n_steps >= N_STEPS_THAT_PAY.get(device.type, math.inf)
    # What the model is made of takes a while to look at.
    kind = (*sizes, backend, _make_of(layer) if wish or pays or steps.by_kind else None)
    made = [
        length
        for (*others, length), known in steps.by_kind.items()
        if known.is_made and tuple(others) == kind and length >= n_slots
    ]
    if steps.cannot or not (wish or pays or made):
        reason = (
            "nothing compiles here" if steps.cannot else f"{n_steps} steps before do not repay it"
        )
        _log.info("%s decodes uncompiled: %s; see decoding.warmup.", layer.name, reason)
        return None, n_slots
    length = min(made, default=2 ** max(6, math.ceil(math.log2(max(1, n_slots)))))
    known = steps.by_kind.get((*kind, length))
    if known is None:
        known = steps.by_kind[(*kind, length)] = CompiledStep(layer, steps, backend, device)
    _log.info("%s decodes compiled (%s).", layer.name, "known" if known.is_made else "new")
    return known, length


def rows_of_blocks(layer: nn.Module) -> list[tuple[tl.Serial, blocks.Stretches]]:
    """Returns the layers that run blocks, with their stretches; blocks are not looked into.

    Returns none where torch would compile each block by itself.
    """
    found: list[tuple[tl.Serial, blocks.Stretches]] = []
    if blocks.compiled_once() is None:
        return found
    seen, waiting = set(), [layer]
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        inside: list[Any] = [m for m in module._modules.values() if m is not None]
        if isinstance(module, tl.Serial):
            layers = module.sublayers
            row = blocks.stretches(layers)
            if any(run is not None for _, _, run in row):
                found.append((module, row))
                inside = [layers[start] for start, _, run in row if run is None]
        waiting += inside
    return found


def _make_of(layer: tl.Layer) -> int:
    """Returns a number that changes when a model is put together in another way."""
    inner = layer.module if isinstance(layer, tl.Wrapped) else layer  # each call wraps afresh
    modules = modules_in(inner)
    return hash(
        (
            *map(id, modules),
            *(
                (p.shape, p.dtype, p.device)
                for m in modules
                for p in m._parameters.values()
                if p is not None
            ),
        )
    )
