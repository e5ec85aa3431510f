"""Runs of a model along sequences: prefill, which reads the prompt, then one token after another.

A run knows how a model is asked and what it remembers. Which token comes next, others decide.
"""

import contextlib
import math
from collections.abc import Generator
from typing import Any

import torch
from torch import nn

from trax_torch import _torch_private
from trax_torch import layers as tl
from trax_torch.layers import _predict
from trax_torch.supervised._generation import compiled_step
from trax_torch.supervised._generation.checks import check_can_predict, hooks_lock
from trax_torch.supervised._generation.compiled_step import step
from trax_torch.supervised._generation.foreign import Foreign
from trax_torch.supervised._generation.piecewise import check_pieces
from trax_torch.supervised._generation.reading import read_prompt

_FIRST_SLOTS = 256  # of a cache that grows
_MEMORIES = (_predict.Position, _predict.Carry, _predict.Kept)


class PredictRun(_predict.Block):
    """A model that predicts. A context, between whose `with` blocks the model is as it was.

    The steps after the prompt find all layers at one `Moment`, compiled or not. Where a model's
    memories are of other kinds than this package's, or not all at one position, each layer counts
    for itself, and beams are rows whose memories are reordered; steps are compiled where the model
    says that they can be, see `foreign`.

    Args:
      layer: the model.
      source: integers (batch, length) for a model that takes them beside the tokens, or None.
      prompt: integers (batch, length), at least one a row.
      lengths: how much of a row of the prompt counts, integers (batch,); None for all.
      n_steps: how many steps will follow the prompt at most; None for as many as the model has
        room for.
      n_beams: how many beams a row will have after the prompt.
      wish: whether to compile; see `compiled_step.step_for`.
      backend: as for `torch.compile`.

    Attributes:
      n_beams: as given.
      given: what `run_for` says.
    """

    given: Any = None
    _n_ahead = 0  # slots for positions that may turn out to be none

    @_predict.with_one_look
    def __init__(
        self,
        layer: tl.Layer,
        source: torch.Tensor | None,
        prompt: torch.Tensor,
        lengths: torch.Tensor | None = None,
        n_steps: int | None = None,
        n_beams: int = 1,
        wish: bool | None = None,
        backend: str = "inductor",
    ):
        check_can_predict(layer, n_beams)
        check_pieces(layer, source, prompt, n_steps)
        self._layer, self._source, self._prompt, self._lengths = layer, source, prompt, lengths
        self.n_beams = n_beams
        batch, n = prompt.shape
        room = None if n_steps is None else n + n_steps
        self._rows = torch.arange(batch, device=prompt.device)[:, None] * n_beams
        # Memories of other kinds have a row for each beam from the beginning.
        self._foreign = Foreign(layer)
        self._context = layer.predict(batch, room)
        with contextlib.closing(self._context), self._context:
            memories = list(layer._memories())
            self._shares = not self._foreign and all(map(self._can_share, memories))
        self._is_foreign = bool(self._foreign) and not memories  # as a whole
        self._check_lengths()
        self._expanded = n_beams > 1 and not self._shares
        if self._expanded:
            self._expand()
            self._context = layer.predict(batch * n_beams, room)
        self._memories = memories
        self._caches = [m for m in memories if isinstance(m, _predict.KVCache)]
        self._n_places = min(
            (m.max_length for m in self._positions() if m.max_length is not None),
            default=self._foreign.n_places,
        )
        # Where a long row's room ends, others go on: their tokens lie in slots after the padding.
        shortest = n if lengths is None else int(lengths.min())
        self._limit = self._n_places + n - shortest
        self._n_steps = math.inf if n_steps is None else n_steps
        if self._n_places < n + self._n_steps:
            positions: list[Any] = self._positions()
            for memory in positions:
                # A cache's own limit is that of this call: its advice is right.
                if memory.max_length == self._n_places and memory not in self._caches:
                    memory.advice = what_fits(memory.max_length, n)
        self._wish, self._backend = wish, backend
        self._compiled: compiled_step.CompiledStep | None = None
        self._sizes: Any = None  # where uncompiled steps are counted: what they are counted by
        if self._shares:
            self._reserve()
        elif self.can_compile and room is not None:
            n_slots = self._choose_step(room)
            if self._compiled is not None:  # its program is of a cache of this length
                self._context = layer.predict(len(self._prompt), n_slots)
        self._n = 0  # steps since the prompt
        self._moment: _predict.Moment | None = None
        self._calls = compiled_step.Calls(self._moving)

    def _run(self) -> Generator[None, None, None]:
        self._calls.forget()  # the caller may have changed the model
        off = _predict.GradientsOff()
        # What is written into must be an ordinary tensor: a stream may go on outside.
        with (
            _ordinary_tensors(),
            contextlib.closing(self._context),
            self._context,
            contextlib.closing(off),
            off,
        ):
            yield

    def begin(self) -> torch.Tensor:
        """Reads the prompt; returns the logits for the first token, (batch, vocab)."""
        layer, lengths, n = self._layer, self._lengths, self._prompt.shape[1]
        if n > self._foreign.n_places:
            raise ValueError(what_fits(int(self._n_places), n))
        self._foreign.begin_prompt(lengths)
        logits = read_prompt(layer, self._source, self._prompt, lengths, bool(self._foreign))
        positions = [m.filled for m in self._positions()]
        if self._shares and any(filled != n for filled in positions):
            self._shares, self._compiled = False, None
            if self._is_ragged():
                raise ValueError(
                    f"prompt_lengths needs layers that all count the same positions; those of "
                    f"{layer.name} are at {sorted(set(positions))} after {n}."
                )
            if self.n_beams > 1:
                rows = torch.arange(len(self._prompt), device=self._prompt.device)
                layer.reorder_cache(rows.repeat_interleave(self.n_beams))
                self._expand()
        elif self._shares:
            self._share()
        return logits[:: self.n_beams] if self._expanded else logits

    def go_on(
        self,
        tokens: torch.Tensor,
        parents: torch.Tensor | None = None,
        ended: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Takes the next tokens; returns the logits for those after them.

        Args:
          tokens: integers (batch, n_beams).
          parents: which beam each of them goes on from, integers (batch, n_beams); None at the
            first step, where all go on from the prompt, and where there is one beam.
          ended: rows whose logits nobody will look at, booleans (batch,); None for none. They need
            no room.

        Returns:
          Floats (batch, n_beams, vocab).

        Raises:
          LayerError: if there is no more room; nothing is written then.
        """
        if not self._shares:
            if parents is not None:
                self._layer.reorder_cache((self._rows + parents).flatten())
            if self.is_full and self._is_short_of_room(ended):
                raise ValueError(what_fits(int(self._n_places), self._prompt.shape[1]))
            logits = self._ask(tokens.reshape(-1, 1))
            self._n += 1
            return logits.view(*tokens.shape, -1)
        if self.is_full and self._is_short_of_room(ended):  # a layer that counts for itself says so
            return self.without_room(tokens[:, :1])
        self._advance(parents)
        if self.is_full:
            assert self._moment is not None
            last = int(self._n_places) - 1
            self._moment.positions = self._moment.positions.clamp(max=last)
        logits = self._ask(tokens)
        self._n += 1
        return logits

    def without_room(self, tokens: torch.Tensor) -> torch.Tensor:
        """Has the layers themselves refuse tokens (batch, 1) beyond the last place."""
        for memory in self._positions():
            memory.moment, memory.filled = None, int(self._n_places)
        return step(self._layer, self._source, tokens)

    def _ask(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns the logits for the tokens after these, by the step that was chosen."""
        if self._compiled is None:
            logits = step(self._layer, self._source, tokens)
            if self._sizes is not None:
                compiled_step.steps_of(self._layer).n_uncompiled[self._sizes] += 1
            return logits
        tokens = tokens.clone(memory_format=torch.contiguous_format)  # always the same strides
        self._tokens = tokens
        if not self._calls.are_known and self._compiled.kept is not None:
            self._compiled.kept.bind(self._layer, self._calls)
        if self._shares and not self._calls.are_known:
            self._mark_what_changes()
        alone = contextlib.nullcontext() if self._calls.are_known else hooks_lock
        with alone:  # a program that is made now is to know of no other call's hooks
            return self._compiled(self._layer, self._source, tokens, self._calls)

    def try_steps(self, n: int) -> None:
        """Reads the prompt and takes n steps, so that there is a program; see `decoding.warmup`.

        Raises:
          ValueError: if there cannot be one.
        """
        tokens = self.begin().argmax(-1, keepdim=True).expand(-1, self.n_beams)
        if not self.can_compile:
            raise ValueError(
                f"The steps of {self._layer.name} cannot be compiled: it keeps a cache of its own, "
                f"or its layers count positions in different ways. Build it of this package's "
                f"layers."
            )
        for _ in range(n):
            self.go_on(tokens, torch.zeros_like(tokens))

    @property
    def is_full(self) -> bool:
        """Whether the row that is longest has no room left; it is asked for no more if it ended."""
        counts = self._shares or self._is_foreign
        return counts and self._prompt.shape[1] + self._n >= self._n_places

    def _is_short_of_room(self, ended: torch.Tensor | None) -> bool:
        """Tells whether a row that goes on has no room left; to look is to wait for a GPU."""
        if self._lengths is None or ended is None:
            return True
        lengths = self._lengths[:: self.n_beams] if self._expanded else self._lengths
        return bool(((lengths + self._n >= self._n_places) & ~ended).any())

    @property
    def can_compile(self) -> bool:
        """Whether the steps after the prompt may be compiled; known after the prompt."""
        return self._shares or (self._is_foreign and self._foreign.can_compile)

    def _can_share(self, memory: Any) -> bool:
        """Tells whether a memory goes by what all layers share."""
        return isinstance(memory, _MEMORIES) and getattr(memory, "can_branch", True)

    def _positions(self) -> list[_predict.Position]:
        """Returns the memories that count positions."""
        return [m for m in self._memories if isinstance(m, _predict.Position)]

    def _is_ragged(self) -> bool:
        """Tells whether rows have prompts of several lengths."""
        return self._lengths is not None and bool((self._lengths != self._prompt.shape[1]).any())

    def _check_lengths(self) -> None:
        """Refuses rows of several lengths where a memory knows of no padding."""
        takes_lengths = self._shares or (self._is_foreign and self._foreign.takes_lengths)
        if not takes_lengths and self._is_ragged():
            raise ValueError(
                f"prompt_lengths needs a model whose memories are those of this package's layers; "
                f"{self._layer.name} has others. Decode rows with prompts of one length together."
            )

    def _expand(self) -> None:
        """Gives each beam a row of its own."""
        self._prompt = self._prompt.repeat_interleave(self.n_beams, 0)
        if self._source is not None:
            self._source = self._source.repeat_interleave(self.n_beams, 0)
        if self._lengths is not None:
            self._lengths = self._lengths.repeat_interleave(self.n_beams, 0)

    def _reserve(self) -> None:
        """Makes the caches as long as the run needs, and chooses the step."""
        n = self._prompt.shape[1]
        n_slots: float = 1  # a carry has no length
        if self._caches:
            n_slots = n + self.n_beams * max(0, min(self._n_steps, self._limit - n))
            n_slots += self._n_ahead
        self._most_slots = n_slots
        if math.isfinite(n_slots):
            self._most_slots = n_slots = self._choose_step(int(n_slots))
        if math.isfinite(n_slots) or self._caches:
            if self._compiled is None:  # sequences may end at any token: caches grow with them
                n_slots = min(n_slots, max(_FIRST_SLOTS, 2 * n))
            for cache in self._caches:
                cache.reserve(int(n_slots))
        self._n_slots = n_slots

    def _choose_step(self, n_slots: int) -> int:
        """Chooses the step for caches of so many slots; returns how many they will have."""
        return self._choose_kind(self.n_beams, self._lengths is not None, n_slots)

    def _choose_kind(self, n: int, form: bool | str, n_slots: int) -> int:
        """The same for a step with n tokens a row; `form` says what else differs in a moment."""
        source = None if self._source is None else (self._source.shape[1] > 1)
        sizes = (len(self._rows), n, form, source, self._prompt.dtype)
        with hooks_lock:
            self._compiled, n_slots = compiled_step.step_for(
                self._layer, sizes, n_slots, self._wish, self._backend
            )
        self._sizes = sizes if self._compiled is None and self._wish is not False else None
        return n_slots

    def _share(self) -> None:
        """Puts all layers at one moment, after the prompt."""
        batch, n = self._prompt.shape
        device, k = self._prompt.device, self.n_beams
        lengths = self._lengths
        n_slots = self._n_slots
        self._ruler = torch.arange(n_slots if math.isfinite(n_slots) else 1, device=device)
        self._first = torch.full((1,), n, device=device) if lengths is None else lengths[:, None]
        self._is_exact = self._attends_to_filled()
        self._visible: torch.Tensor | None = None
        if self._caches and (k > 1 or lengths is not None or not self._is_exact):
            counts = self._first if lengths is not None else self._first[:, None]
            visible = (self._ruler < counts)[:, None, None, :]
            self._visible = visible.expand(batch, 1, k, -1).clone()
        if k > 1:
            self._apart = torch.eye(k, dtype=torch.bool, device=device)
            for memory in self._memories:
                memory.branch(k)
        self._moment = _predict.Moment(self._ruler, self._ruler, self._first)
        for memory in self._positions():
            memory.moment = self._moment

    def _attends_to_filled(self) -> bool:
        """Tells whether a step is given what is filled of a cache alone."""
        return self._compiled is None or _cuts_out(self._prompt.device)

    def _grow(self, end: int) -> None:
        """Has all that is as long as the caches reach to a slot, and as far again."""
        n_slots = int(min(self._most_slots, 2 * end))
        self._ruler = torch.arange(n_slots, device=self._ruler.device)
        for cache in self._caches:
            cache.grow(n_slots)
        if self._visible is not None:
            more = n_slots - self._visible.shape[-1]
            self._visible = nn.functional.pad(self._visible, (0, more))

    def _advance(self, parents: torch.Tensor | None) -> None:
        """Moves the moment on by a step, and beams to where their parents are."""
        assert self._moment is not None
        k = self.n_beams
        start = self._prompt.shape[1] + k * self._n
        if parents is not None and self._n:
            for memory in self._memories:
                memory.follow(parents)
            if self._visible is not None:
                seen = self._visible[..., :start]
                order = parents[:, None, :, None].expand(-1, -1, -1, start)
                seen.copy_(seen.gather(2, order))
        moment = self._moment
        moment.positions = self._first + self._n
        if not self._caches:
            return
        end = start + k
        if end > len(self._ruler):
            self._grow(end)
        window = end if self._is_exact else len(self._ruler)
        moment.window = self._ruler[:window]
        # Copied, since the place where a view begins would be a size that changes.
        moment.slots = self._ruler[start:end].clone()
        if self._visible is not None:
            self._visible[..., start:end] = self._apart if k > 1 else True
            moment.visible = self._visible[..., :window]

    def _moving(self) -> tuple[torch.Tensor, ...]:
        """Returns what a step is given that another step is not; see `compiled_step.Calls`."""
        if not self._shares:
            return (self._tokens,)
        moment = self._moment
        assert moment is not None
        tensors = (moment.window, moment.slots, moment.positions, moment.visible, self._tokens)
        return tuple(t for t in tensors if t is not None)

    def _mark_what_changes(self) -> None:
        """Tells the compiler which sizes are others in other steps and runs.

        At every step that goes in by its front door: which one compiles is torch's to say.
        """
        assert self._moment is not None
        if self._is_exact and self._caches:
            _torch_private.expect_other_sizes(self._moment.window, 0, must=True)
            if self._moment.visible is not None:
                _torch_private.expect_other_sizes(self._moment.visible, 3, must=True)
        if self._n == 0 and self._source is not None and self._source.shape[1] > 1:
            assert self._compiled is not None
            length = self._source.shape[1]
            kept = [t for m in self._memories if isinstance(m, _predict.Kept) for t in m.held]
            tensors = (self._source, *kept)
            if self._compiled.axes is None:
                # Once for all: a later source may be as long as another axis.
                self._compiled.axes = [
                    [axis for axis, size in enumerate(t.shape) if axis and size == length]
                    for t in tensors
                ]
            for tensor, axes in zip(tensors, self._compiled.axes, strict=True):
                for axis in axes:
                    _torch_private.expect_other_sizes(tensor, axis, must=False)


def _ordinary_tensors() -> contextlib.AbstractContextManager[None]:
    """Leaves inference mode, where it is on."""
    on = torch.is_inference_mode_enabled()
    return torch.inference_mode(False) if on else contextlib.nullcontext()


def what_fits(limit: int, n: int) -> str:
    """Returns what to do where a model's own limit is too low for a prompt of n and its tokens."""
    built = f"The model is built for {limit} (max_len), and the prompt takes {n}, start included"
    if n > limit:
        return f"{built}: give a shorter one."
    n_tokens = limit - n + 1
    return f"{built}: ask for at most {n_tokens} token{'s' if n_tokens > 1 else ''}."


def _cuts_out(device: torch.device) -> bool:
    """Tells whether a compiled step cuts out what is filled of a cache, or marks it in a mask.

    A CUDA graph has fixed sizes, so there a compiled step attends to the whole cache.
    """
    return device.type == "cpu"
