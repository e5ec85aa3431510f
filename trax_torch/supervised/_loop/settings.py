"""How steps are computed: what a Loop may be asked for, and what goes together."""

import contextlib
import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

_SKIPS = 100  # how many steps on_nonfinite='skip' stands for


@dataclass(frozen=True)
class Settings:
    """How steps are computed.

    Attributes:
      precision: 'bf16' computes in bfloat16 where torch's autocast deems it safe; None, as the
        weights are.
      n_accumulation_steps: into how many parts a batch is cut.
      compile: whether the model is compiled.
      on_nonfinite: 'raise', 'skip', or how many steps may be skipped.
      adasum: whether ranks merge their gradients by Adasum instead of averaging them.
      strategy: 'ddp' has every rank keep all weights; 'fsdp' a part of each.
      find_unused_parameters: whether ranks look at each step for weights without a gradient.
      loss_chunk_size: over how many positions at a time the last Dense and the loss are computed;
        0 computes them whole.
      memory_efficient: 1 updates weights block by block in the backward pass; 2 keeps them in host
        memory, too; 0 does neither. False and True stand for 0 and 1.

    Whole numbers are Python's or numpy's, and kept as Python's, so that ranks compare alike.

    Raises:
      ValueError: if one is out of range.
    """

    precision: str | None = None
    n_accumulation_steps: int = 1
    compile: bool = False
    on_nonfinite: str | int = "raise"
    adasum: bool = False
    strategy: str = "ddp"
    find_unused_parameters: bool = False
    loss_chunk_size: int = 0
    memory_efficient: int = 0

    def __post_init__(self) -> None:
        if self.precision not in (None, "bf16"):
            raise ValueError(f"precision is 'bf16' or None; got {self.precision!r}.")
        if self._count("n_accumulation_steps") < 1:
            raise ValueError(
                f"n_accumulation_steps is how many parts a batch is cut into, at least 1; got "
                f"{self.n_accumulation_steps!r}. Give a whole number, such as 2, or leave it out."
            )
        if self._count("loss_chunk_size") < 0:
            raise ValueError(
                f"loss_chunk_size is how many positions a chunk has, or 0 for no chunks; got "
                f"{self.loss_chunk_size!r}. Give a whole number, such as 256, or leave it out."
            )
        if self.strategy not in ("ddp", "fsdp"):
            raise ValueError(f"strategy is 'ddp' or 'fsdp'; got {self.strategy!r}.")
        for other in ("adasum", "compile", "loss_chunk_size"):
            value = getattr(self, other)
            if self.strategy == "fsdp" and value:
                raise ValueError(
                    f"{other}={value} does not go with strategy='fsdp' yet. Leave one of them out."
                )
        if self.on_nonfinite not in ("raise", "skip") and self._count("on_nonfinite") < 0:
            raise ValueError(
                f"on_nonfinite is 'raise', 'skip', or how many steps may be skipped; got "
                f"{self.on_nonfinite!r}."
            )
        if isinstance(self.memory_efficient, bool):
            object.__setattr__(self, "memory_efficient", int(self.memory_efficient))
        if self._count("memory_efficient") not in (0, 1, 2):
            raise ValueError(
                f"use_memory_efficient_trainer is False, True or 2; got {self.memory_efficient!r}. "
                f"Give True, or 2 to keep weights in host memory, too; or leave it out."
            )
        if self.memory_efficient:
            self._check_memory_efficient()

    def _count(self, name: str) -> int:
        """Returns a whole number, and keeps it as Python's own; -1 for what is none."""
        value = getattr(self, name)
        if isinstance(value, bool):  # who gives one means something else
            return -1
        try:
            n = operator.index(value)
        except TypeError:
            return -1
        object.__setattr__(self, name, n)
        return n

    def _check_memory_efficient(self) -> None:
        """Raises ValueError if a setting needs all gradients at once, or all weights in place."""
        reasons = {
            "n_accumulation_steps": (
                self.n_accumulation_steps > 1,
                "gradients of several parts would have to be kept until the last one. Make batches "
                "smaller; activations of one block at a time take up memory as it is",
            ),
            "on_nonfinite": (
                self.on_nonfinite not in ("raise", 0),
                "when a gradient is found not to be finite, other weights are updated already. "
                "Leave it out, and go back to the last checkpoint if that happens",
            ),
            "compile": (self.compile, "blocks run one by one. Leave it out"),
            "strategy": (
                self.strategy == "fsdp",
                "blocks bring and update their weights themselves. Choose one of the two",
            ),
        }
        for name, (is_asked, reason) in reasons.items():
            if is_asked:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} does not go with "
                    f"use_memory_efficient_trainer={self.memory_efficient!r}: {reason}."
                )

    @property
    def n_skips(self) -> int:
        """How many steps that are not finite may be skipped."""
        words = {"raise": 0, "skip": _SKIPS}
        return words[self.on_nonfinite] if self.on_nonfinite in words else int(self.on_nonfinite)

    def autocast(self, device: torch.device) -> Callable[[], Any]:
        """Returns what makes the context to compute in."""
        if self.precision is None:
            return contextlib.nullcontext
        return functools.partial(torch.autocast, device.type, dtype=torch.bfloat16)
