"""What type checkers know of decoding: which arguments, and what is returned for them.

Functions whose results depend on a flag have one signature a flag; `decoding` has the functions,
with what they do, and a test that both have the same arguments. Arrays, lists and what tokenizers
give are answered in kind, of which a type says nothing: `Any`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, cast, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from trax_torch.supervised._generation.beam_tree import BeamTree

Arrays = npt.NDArray[np.integer[Any]] | Sequence[Sequence[int]] | Sequence[int]
Tokens = torch.Tensor | Arrays
Pair = tuple[torch.Tensor, torch.Tensor]
Processor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class OfRuns(Protocol):
    """What has a processor for each run."""

    def begin(self, tokens: torch.Tensor) -> Processor:
        """Returns the processor of a run with prompts of these tokens, (rows, length)."""
        ...


Processors = Processor | OfRuns | Sequence[Processor | OfRuns]


class SampleStream(Protocol):
    """The type of `autoregressive_sample_stream`."""

    @overload
    def __call__(
        self,
        model: nn.Module,
        inputs: Arrays | Mapping[str, Any],
        batch_size: int = 1,
        temperature: float = 1.0,
        start_id: int | Tokens = 0,
        accelerate: bool = True,
        eval_mode: bool = False,
        eval_min_length: int = 1,
        *,
        seed: int | Sequence[int] | None = None,
        max_length: int | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        prompt_lengths: Tokens | None = None,
        return_log_probs: bool = False,
        pad_id: int = 0,
        n_samples: int | None = None,
        stop: Sequence[Sequence[int]] | None = None,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logits_processor: Processors | None = None,
        banned: Sequence[int] = (),
        forced: Mapping[int, int | Sequence[int] | torch.Tensor] | None = None,
        draft: nn.Module | Literal["prompt"] | None = None,
    ) -> Iterator[Any]: ...

    @overload
    def __call__(
        self,
        model: nn.Module,
        inputs: torch.Tensor | None = None,
        batch_size: int = 1,
        temperature: float = 1.0,
        start_id: int | Tokens = 0,
        accelerate: bool = True,
        eval_mode: bool = False,
        eval_min_length: int = 1,
        *,
        seed: int | Sequence[int] | None = None,
        max_length: int | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        prompt_lengths: Tokens | None = None,
        return_log_probs: Literal[False] = False,
        pad_id: int = 0,
        n_samples: int | None = None,
        stop: Sequence[Sequence[int]] | None = None,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logits_processor: Processors | None = None,
        banned: Sequence[int] = (),
        forced: Mapping[int, int | Sequence[int] | torch.Tensor] | None = None,
        draft: nn.Module | Literal["prompt"] | None = None,
    ) -> Iterator[torch.Tensor]: ...

    @overload
    def __call__(
        self,
        model: nn.Module,
        inputs: torch.Tensor | None = None,
        batch_size: int = 1,
        temperature: float = 1.0,
        start_id: int | Tokens = 0,
        accelerate: bool = True,
        eval_mode: bool = False,
        eval_min_length: int = 1,
        *,
        seed: int | Sequence[int] | None = None,
        max_length: int | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        prompt_lengths: Tokens | None = None,
        return_log_probs: Literal[True],
        pad_id: int = 0,
        n_samples: int | None = None,
        stop: Sequence[Sequence[int]] | None = None,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logits_processor: Processors | None = None,
        banned: Sequence[int] = (),
        forced: Mapping[int, int | Sequence[int] | torch.Tensor] | None = None,
        draft: nn.Module | Literal["prompt"] | None = None,
    ) -> Iterator[Pair]: ...

    @overload
    def __call__(
        self,
        model: nn.Module,
        inputs: torch.Tensor | None = None,
        batch_size: int = 1,
        temperature: float = 1.0,
        start_id: int | Tokens = 0,
        accelerate: bool = True,
        eval_mode: bool = False,
        eval_min_length: int = 1,
        *,
        seed: int | Sequence[int] | None = None,
        max_length: int | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        prompt_lengths: Tokens | None = None,
        return_log_probs: bool,
        pad_id: int = 0,
        n_samples: int | None = None,
        stop: Sequence[Sequence[int]] | None = None,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logits_processor: Processors | None = None,
        banned: Sequence[int] = (),
        forced: Mapping[int, int | Sequence[int] | torch.Tensor] | None = None,
        draft: nn.Module | Literal["prompt"] | None = None,
    ) -> Iterator[torch.Tensor] | Iterator[Pair]: ...


class Sample(Protocol):
    """The type of `autoregressive_sample`."""

    @overload
    def __call__(
        self,
        model: nn.Module,
        inputs: Arrays | Mapping[str, Any],
        batch_size: int = 1,
        temperature: float = 1.0,
        start_id: int | Tokens = 0,
        eos_id: int | Sequence[int] = 1,
        max_length: int = 100,
        accelerate: bool = True,
        eval_mode: bool = False,
        eval_min_length: int = 1,
        *,
        seed: int | Sequence[int] | None = None,
        pad_id: int = 0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        prompt_lengths: Tokens | None = None,
        return_log_probs: bool = False,
        n_samples: int | None = None,
        stop: Sequence[Sequence[int]] | None = None,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logits_processor: Processors | None = None,
        banned: Sequence[int] = (),
        forced: Mapping[int, int | Sequence[int] | torch.Tensor] | None = None,
        draft: nn.Module | Literal["prompt"] | None = None,
    ) -> Any: ...

    @overload
    def __call__(
        self,
        model: nn.Module,
        inputs: torch.Tensor | None = None,
        batch_size: int = 1,
        temperature: float = 1.0,
        start_id: int | Tokens = 0,
        eos_id: int | Sequence[int] = 1,
        max_length: int = 100,
        accelerate: bool = True,
        eval_mode: bool = False,
        eval_min_length: int = 1,
        *,
        seed: int | Sequence[int] | None = None,
        pad_id: int = 0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        prompt_lengths: Tokens | None = None,
        return_log_probs: Literal[False] = False,
        n_samples: int | None = None,
        stop: Sequence[Sequence[int]] | None = None,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logits_processor: Processors | None = None,
        banned: Sequence[int] = (),
        forced: Mapping[int, int | Sequence[int] | torch.Tensor] | None = None,
        draft: nn.Module | Literal["prompt"] | None = None,
    ) -> torch.Tensor: ...

    @overload
    def __call__(
        self,
        model: nn.Module,
        inputs: torch.Tensor | None = None,
        batch_size: int = 1,
        temperature: float = 1.0,
        start_id: int | Tokens = 0,
        eos_id: int | Sequence[int] = 1,
        max_length: int = 100,
        accelerate: bool = True,
        eval_mode: bool = False,
        eval_min_length: int = 1,
        *,
        seed: int | Sequence[int] | None = None,
        pad_id: int = 0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        prompt_lengths: Tokens | None = None,
        return_log_probs: Literal[True],
        n_samples: int | None = None,
        stop: Sequence[Sequence[int]] | None = None,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logits_processor: Processors | None = None,
        banned: Sequence[int] = (),
        forced: Mapping[int, int | Sequence[int] | torch.Tensor] | None = None,
        draft: nn.Module | Literal["prompt"] | None = None,
    ) -> Pair: ...

    @overload
    def __call__(
        self,
        model: nn.Module,
        inputs: torch.Tensor | None = None,
        batch_size: int = 1,
        temperature: float = 1.0,
        start_id: int | Tokens = 0,
        eos_id: int | Sequence[int] = 1,
        max_length: int = 100,
        accelerate: bool = True,
        eval_mode: bool = False,
        eval_min_length: int = 1,
        *,
        seed: int | Sequence[int] | None = None,
        pad_id: int = 0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        prompt_lengths: Tokens | None = None,
        return_log_probs: bool,
        n_samples: int | None = None,
        stop: Sequence[Sequence[int]] | None = None,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logits_processor: Processors | None = None,
        banned: Sequence[int] = (),
        forced: Mapping[int, int | Sequence[int] | torch.Tensor] | None = None,
        draft: nn.Module | Literal["prompt"] | None = None,
    ) -> torch.Tensor | Pair: ...


class BeamSearch(Protocol):
    """The type of `beam_search`."""

    @overload
    def __call__(
        self,
        model: nn.Module,
        inputs: Arrays | Mapping[str, Any],
        batch_size: int = 1,
        n_beams: int = 2,
        start_id: int | Tokens = 0,
        eos_id: int | Sequence[int] = 1,
        max_length: int = 100,
        length_penalty: float = 1.0,
        accelerate: bool = True,
        *,
        pad_id: int = 0,
        return_scores: bool = False,
        early_stopping: bool = False,
        prompt_lengths: Tokens | None = None,
        n_groups: int = 1,
        diversity_penalty: float = 0.5,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logits_processor: Processors | None = None,
        banned: Sequence[int] = (),
        forced: Mapping[int, int | Sequence[int] | torch.Tensor] | None = None,
        tree: BeamTree | None = None,
    ) -> Any: ...

    @overload
    def __call__(
        self,
        model: nn.Module,
        inputs: torch.Tensor | None = None,
        batch_size: int = 1,
        n_beams: int = 2,
        start_id: int | Tokens = 0,
        eos_id: int | Sequence[int] = 1,
        max_length: int = 100,
        length_penalty: float = 1.0,
        accelerate: bool = True,
        *,
        pad_id: int = 0,
        return_scores: Literal[False] = False,
        early_stopping: bool = False,
        prompt_lengths: Tokens | None = None,
        n_groups: int = 1,
        diversity_penalty: float = 0.5,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logits_processor: Processors | None = None,
        banned: Sequence[int] = (),
        forced: Mapping[int, int | Sequence[int] | torch.Tensor] | None = None,
        tree: BeamTree | None = None,
    ) -> torch.Tensor: ...

    @overload
    def __call__(
        self,
        model: nn.Module,
        inputs: torch.Tensor | None = None,
        batch_size: int = 1,
        n_beams: int = 2,
        start_id: int | Tokens = 0,
        eos_id: int | Sequence[int] = 1,
        max_length: int = 100,
        length_penalty: float = 1.0,
        accelerate: bool = True,
        *,
        pad_id: int = 0,
        return_scores: Literal[True],
        early_stopping: bool = False,
        prompt_lengths: Tokens | None = None,
        n_groups: int = 1,
        diversity_penalty: float = 0.5,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logits_processor: Processors | None = None,
        banned: Sequence[int] = (),
        forced: Mapping[int, int | Sequence[int] | torch.Tensor] | None = None,
        tree: BeamTree | None = None,
    ) -> Pair: ...

    @overload
    def __call__(
        self,
        model: nn.Module,
        inputs: torch.Tensor | None = None,
        batch_size: int = 1,
        n_beams: int = 2,
        start_id: int | Tokens = 0,
        eos_id: int | Sequence[int] = 1,
        max_length: int = 100,
        length_penalty: float = 1.0,
        accelerate: bool = True,
        *,
        pad_id: int = 0,
        return_scores: bool,
        early_stopping: bool = False,
        prompt_lengths: Tokens | None = None,
        n_groups: int = 1,
        diversity_penalty: float = 0.5,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logits_processor: Processors | None = None,
        banned: Sequence[int] = (),
        forced: Mapping[int, int | Sequence[int] | torch.Tensor] | None = None,
        tree: BeamTree | None = None,
    ) -> torch.Tensor | Pair: ...


def is_sample_stream(function: Callable[..., Any]) -> SampleStream:
    """Returns a function as what type checkers are to know it by."""
    return cast(SampleStream, function)


def is_sample(function: Callable[..., Any]) -> Sample:
    """Returns a function as what type checkers are to know it by."""
    return cast(Sample, function)


def is_beam_search(function: Callable[..., Any]) -> BeamSearch:
    """Returns a function as what type checkers are to know it by."""
    return cast(BeamSearch, function)
