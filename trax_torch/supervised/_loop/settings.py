"""What a Loop may be asked for, checked once: which values are in range, and which go together."""

import contextlib
import dataclasses
import functools
import math
import operator
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch

from trax_torch import _torch_private
from trax_torch.supervised._tasks import At

# The words that settings take, for type checkers to know.
Precision = Literal["bf16", "fp16", "fp32", "tf32"]
OnNonfinite = Literal["raise", "skip"]
Strategy = Literal["ddp", "fsdp", "hsdp"]
ActivationCheckpointing = bool | Literal["offload"]
BestAt = Literal["evals", "checkpoints"]
ResumeData = Literal["exact", "restart"]

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # that autocast computes in
_SKIPS = 100  # how many steps on_nonfinite='skip' stands for


@dataclass(frozen=True)
class StepConfig:
    """How steps are computed: the same on all ranks."""

    precision: Precision | None = None
    n_accumulation_steps: int = 1
    compile: bool = False
    on_nonfinite: OnNonfinite | int = "raise"
    adasum: bool = False
    strategy: Strategy = "ddp"
    find_unused_parameters: bool = False
    loss_chunk_size: int = 0
    use_memory_efficient_trainer: bool | int = False
    activation_checkpointing: ActivationCheckpointing = False
    clip_grad_norm: float | None = None
    clip_grad_value: float | None = None


@dataclass(frozen=True)
class LoopConfig(StepConfig):
    """The settings of a run: `Loop`'s arguments but for models, tasks and callbacks.

    `Loop` tells what each of them means. Whole numbers are Python's or numpy's, and kept as
    Python's, so that ranks compare alike.

    Raises:
      ValueError: if one is out of range, or two do not go together.
      TypeError: if the seed is no whole number.
    """

    output_dir: str | None = None
    checkpoint_at: At | None = None
    checkpoint_low_metric: str | None = None
    checkpoint_high_metric: str | None = None
    best_at: BestAt = "evals"
    permanent_checkpoint_at: At | None = None
    eval_at: At | None = None
    which_task: Callable[[int], int] | None = None
    n_devices: int | None = None
    random_seed: int | None = None
    device: str | torch.device | None = None
    progress: bool | None = None
    verbose: bool = True
    log_every: int | None = None
    keep_last: int | None = None
    background_saves: bool = False
    save_at_end: bool = True
    resume_data: ResumeData = "exact"
    resume_from: str | None = None
    timeout: float = 300.0

    # Whether a model.pkl.gz stands for the checkpoint 'model', and whether a run goes on with data
    # that is further than the checkpoint and cannot go back; `InTraxsWays` has both.
    has_stand_in: ClassVar[bool] = False
    data_may_be_ahead: ClassVar[bool] = False

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> "LoopConfig":
        """Returns the settings among a call's arguments by name."""
        return cls(**{f.name: arguments[f.name] for f in dataclasses.fields(cls)})

    def in_traxs_ways(self) -> "LoopConfig":
        """Returns the same settings for a run of a program that was written for Trax."""
        return InTraxsWays.of(vars(self))

    def of_steps(self) -> dict[str, Any]:
        """Returns by name how steps are computed, as plain data."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(StepConfig)}

    def __str__(self) -> str:
        """The settings of steps that are not the default."""
        changed = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in dataclasses.fields(StepConfig)
            if getattr(self, f.name) != f.default
        ]
        return ", ".join(changed)

    def __post_init__(self) -> None:
        self._check_steps()
        for name in ("checkpoint_at", "permanent_checkpoint_at", "eval_at", "which_task"):
            given = getattr(self, name)
            if given is not None and not callable(given):
                what = "0" if name == "which_task" else "step % 100 == 0"
                raise TypeError(
                    f"{name} is a function of a step, such as lambda step: {what}; got {given!r}."
                )
        if self.use_memory_efficient_trainer:
            self._check_memory_efficient()
        if self.best_at not in ("evals", "checkpoints"):
            raise ValueError(f"best_at is 'evals' or 'checkpoints'; got {self.best_at!r}.")
        if self.resume_data not in ("exact", "restart"):
            raise ValueError(f"resume_data is 'exact' or 'restart'; got {self.resume_data!r}.")
        if self.log_every is not None and self._count("log_every") < 1:
            raise ValueError(
                f"log_every is after how many steps training is logged, at least 1; got "
                f"{self.log_every!r}. None logs it with evals alone."
            )
        if self.keep_last is not None and self._count("keep_last") < 1:
            raise ValueError(
                f"keep_last is at least 1, or None to keep all; got {self.keep_last!r}."
            )
        if self.random_seed is not None:
            object.__setattr__(self, "random_seed", _seed(self.random_seed))
        if self.output_dir is not None:
            object.__setattr__(self, "output_dir", os.path.expanduser(self.output_dir))

    def _check_steps(self) -> None:
        """Raises ValueError if steps cannot be computed so."""
        if self.precision is not None and self.precision not in get_args(Precision):
            words = ", ".join(map(repr, get_args(Precision)))
            raise ValueError(f"precision is one of {words}, or None; got {self.precision!r}.")
        if self.compile not in (False, True):
            raise ValueError(
                f"compile is True or False; got {self.compile!r}. Give a model that "
                f"torch.compile(model, backend=...) made for settings of your own."
            )
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
        if self.precision == "fp16" and self.loss_chunk_size:
            raise ValueError(
                "loss_chunk_size computes gradients in the forward pass, where precision='fp16' "
                "does not scale them yet. Leave one of them out, or give precision='bf16'."
            )
        self._limit("clip_grad_norm", "a norm of all gradients together")
        self._limit("clip_grad_value", "the largest size of a gradient's element")
        if self.strategy not in get_args(Strategy):
            raise ValueError(f"strategy is 'ddp', 'fsdp' or 'hsdp'; got {self.strategy!r}.")
        self._check_rivals()
        if self.on_nonfinite not in ("raise", "skip") and self._count("on_nonfinite") < 0:
            raise ValueError(
                f"on_nonfinite is 'raise', 'skip', or how many steps may be skipped; got "
                f"{self.on_nonfinite!r}."
            )
        if isinstance(self.use_memory_efficient_trainer, bool):
            level = int(self.use_memory_efficient_trainer)
            object.__setattr__(self, "use_memory_efficient_trainer", level)
        if self._count("use_memory_efficient_trainer") not in (0, 1, 2):
            raise ValueError(
                f"use_memory_efficient_trainer is False, True or 2; got "
                f"{self.use_memory_efficient_trainer!r}. "
                f"Give True, or 2 to keep weights in host memory, too; or leave it out."
            )

    def _check_rivals(self) -> None:
        """Raises ValueError if two ways to compute steps do not go together."""
        reasons = {
            "adasum": "merges whole gradients of ranks by how much they agree, and here each rank "
            "ever has a part of one, which is added up already",
            "loss_chunk_size": "uses the last layer's weights while it does not compute",
        }
        for other, reason in reasons.items():
            value = getattr(self, other)
            if self.is_sharded and value:
                raise ValueError(
                    f"{other}={value} does not go with strategy={self.strategy!r}: it {reason}. "
                    f"Leave one of them out."
                )
        if self.activation_checkpointing not in (False, True, "offload"):
            raise ValueError(
                f"activation_checkpointing is True, 'offload' or False; got "
                f"{self.activation_checkpointing!r}."
            )
        if self.activation_checkpointing and self.compile:
            raise ValueError(
                "activation_checkpointing has blocks computed again, and compile=True makes one "
                "program of them, which decides itself what it keeps. Leave one of them out."
            )

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

    def _limit(self, name: str, what: str) -> None:
        """Keeps a limit as a Python float; raises ValueError if it is none."""
        value = getattr(self, name)
        if value is None:
            return
        is_number = hasattr(value, "__float__") and not isinstance(value, bool)
        if not (is_number and 0 < float(value) < math.inf):
            raise ValueError(
                f"{name} is {what}, positive and finite, or None for no clipping; got {value!r}. "
                f"Give a number, such as 1.0, or leave it out."
            )
        object.__setattr__(self, name, float(value))

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
            "clip_grad_norm": (
                self.clip_grad_norm is not None,
                "the norm of all gradients is known when most weights are updated already. Leave "
                "it out, or give clip_grad_value; Adafactor clips each weight's update by itself",
            ),
            "precision": (
                self.precision == "fp16",
                "whether gradients overflow is known when other weights are updated already. Give "
                "precision='bf16'",
            ),
            "compile": (self.compile, "blocks run one by one. Leave it out"),
            "activation_checkpointing": (
                bool(self.activation_checkpointing),
                "blocks are computed again as it is. Leave it out",
            ),
            "strategy": (
                self.is_sharded,
                "blocks bring and update their weights themselves. Leave one of the two out; "
                "activation_checkpointing=True goes with it",
            ),
        }
        for name, (is_asked, reason) in reasons.items():
            if is_asked:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} does not go with "
                    f"use_memory_efficient_trainer={self.use_memory_efficient_trainer!r}: {reason}."
                )

    @property
    def is_sharded(self) -> bool:
        """Whether ranks hold parts of weights."""
        return self.strategy != "ddp"

    @property
    def n_skips(self) -> int:
        """How many steps that are not finite may be skipped."""
        words = {"raise": 0, "skip": _SKIPS}
        return words[self.on_nonfinite] if self.on_nonfinite in words else int(self.on_nonfinite)

    def start(self) -> tuple[str | None, str | None]:
        """Returns the directory and filename of the checkpoint to start from, to be loaded."""
        is_path = self.resume_from is not None and os.path.dirname(self.resume_from)
        return (self.resume_from, None) if is_path else (None, self.resume_from)

    def autocast(self, device: torch.device) -> Callable[[], Any]:
        """Returns what makes the context to compute in."""
        if self.precision not in _TYPES or self.stays_in_float32(device):
            return contextlib.nullcontext
        return functools.partial(torch.autocast, device.type, dtype=_TYPES[self.precision])

    def stays_in_float32(self, device: torch.device) -> bool:
        """Tells whether bfloat16 is asked for, of a processor that has no fast product of it."""
        is_wanted = self.precision == "bf16" and device.type == "cpu"
        return is_wanted and not _torch_private.cpu_multiplies_bfloat16()


@dataclass(frozen=True)
class InTraxsWays(LoopConfig):
    """Settings of a run that does what Trax's code does, where programs rest on it."""

    has_stand_in: ClassVar[bool] = True
    data_may_be_ahead: ClassVar[bool] = True


def _seed(value: Any) -> int:
    """Returns a seed as Python's own number."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"random_seed is a whole number, such as 0; got {value!r}.") from None
