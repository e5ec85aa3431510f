"""The model's logits -> logits to choose by: penalties, what is banned or forced, users' functions.

What a run remembers for it, the tokens so far, is of the run. Which token is taken, others decide.
"""

import contextlib
import functools
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trax_torch.layers import _predict
from trax_torch.supervised._generation.nan_check import NanCheck
from trax_torch.supervised._generation.sampling import doubts_in, expect

_NONE_LEFT = (
    "Penalties, banned and forced tokens and logits_processor leave no symbol to choose for token "
    "{n}: in a row all logits are -inf, or one is NaN or +inf. Leave at least one symbol finite."
)


@dataclass(frozen=True)
class Rules:
    """What a call asks of the logits that tokens are chosen by; in this order.

    Attributes:
      repetition_penalty: divides positive logits of tokens that the row has, prompt included, and
        multiplies negative ones; above 0, 1 for none.
      presence_penalty: is taken from the logits of tokens that were made in the row.
      frequency_penalty: likewise, times how often each was made.
      logits_processor: a function (tokens so far, logits) -> logits, or several in turn.
      banned: token ids that are never made.
      forced: by places of tokens to make, from 0, or from -1 backwards for the last ones, what they
        are: an integer, or one for each prompt.

    Raises:
      ValueError, TypeError: if one is out of its range, or of another type.

    Source: repetition: Keskar et al. 2019, arXiv:1909.05858, equation 5, with the treatment of
      negative logits of Hugging Face's transformers; presence and frequency: OpenAI's API.
    """

    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logits_processor: Any = None
    banned: Any = ()
    forced: Any = None

    def __post_init__(self) -> None:
        expect(
            lambda: 0 < self.repetition_penalty < math.inf,
            f"repetition_penalty is a number above 0; got {self.repetition_penalty!r}. Give 1.0 "
            f"for none, 1.2 for some.",
        )
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            expect(
                functools.partial(math.isfinite, value),
                f"{name} is a number that logits are lessened by; got {value!r}. Give 0.0 for "
                f"none, 0.5 for some.",
            )
        for name, given in (
            ("logits_processor", _processors(self.logits_processor)),
            ("banned", _ids(self.banned)),
            ("forced", _places(self.forced)),
        ):
            object.__setattr__(self, name, given)

    @property
    def are_none(self) -> bool:
        """Whether logits stay as they are."""
        return self == Rules()


class Processing:
    """The logits of one run, by its rules.

    Args:
      rules: what is asked.
      tokens: those of the prompts, integers (batch, length), without a start symbol.
      lengths: how many of each row count, integers (batch,); None for all.
      width: how many sequences go on from each prompt from the first token on.
      max_length: how many tokens there will be at most, or None.
      may_end: whether a sequence may go on with no symbol at all, as a beam that ends there.
      layer: the model, which users' functions find as it is outside the run; None for none.
    """

    def __init__(
        self,
        rules: Rules,
        tokens: torch.Tensor,
        lengths: torch.Tensor | None,
        width: int,
        max_length: int | None,
        may_end: bool = False,
        layer: nn.Module | None = None,
    ):
        self._rules, self._batch, self._may_end = rules, len(tokens), may_end
        self._tokens = _padded_on_the_left(tokens, lengths).repeat_interleave(width, 0)
        self._nan_check = NanCheck(max_length, _NONE_LEFT)
        self._aside = _predict.Aside([] if layer is None else _predict.layers_in(layer))
        with contextlib.closing(self._aside), self._aside:
            self._processors = [
                each.begin(self._tokens) if hasattr(each, "begin") else each
                for each in rules.logits_processor
            ]
        self._forced = _forced_at(rules.forced, max_length, self._batch)
        self._n = 0  # tokens made
        # Of each sequence: which symbols it has, and how often each was made; (rows, vocab).
        self._has: torch.Tensor | None = None
        self._counts: torch.Tensor | None = None

    def __call__(self, logits: torch.Tensor, counts: torch.Tensor | None) -> torch.Tensor:
        """Returns what the next tokens are chosen by.

        Args:
          logits: the model's, floats (rows, vocab); they stay as they are.
          counts: rows that matter, booleans (rows,); None for all.

        Raises:
          ValueError: if a symbol is outside the vocabulary, a processor returns another shape, or
            none is left to choose.
          TypeError: if a processor returns no tensor.
        """
        rules, given = self._rules, logits
        if not self._n:
            self._begin(logits)
        if self._has is not None:
            p = rules.repetition_penalty
            logits = torch.where(self._has, torch.where(logits > 0, logits / p, logits * p), logits)
        if self._counts is not None:
            less = rules.frequency_penalty * self._counts
            logits = logits - less - rules.presence_penalty * (self._counts > 0)
        if self._processors:
            with contextlib.closing(self._aside), self._aside:
                for processor in self._processors:
                    # What it changes in place is its own.
                    logits = _checked(processor, processor(self._tokens, logits.clone()), given)
        if rules.banned:
            logits = logits.index_fill(1, self._banned, -math.inf)
        if self._n in self._forced:
            forced = self._forced[self._n].to(logits.device)[:, None]
            forced = forced.repeat_interleave(len(logits) // self._batch, 0)
            # The model's own, so that a hypothesis scores what the model says of it.
            logits = torch.full_like(given, -math.inf).scatter(1, forced, given.gather(1, forced))
        self._n += 1
        doubts = doubts_in(logits)
        if self._may_end:
            doubts = doubts.masked_fill(logits.amax(-1) == -math.inf, 0.0)
        self._nan_check.add(doubts, counts, self._n)
        return logits

    def add(self, tokens: torch.Tensor, parents: torch.Tensor | None = None) -> None:
        """Remembers the tokens that were taken.

        Args:
          tokens: integers (batch, width).
          parents: which of the row's sequences each goes on from, integers (batch, width); None for
            its own.
        """
        if parents is not None:
            width = len(self._tokens) // self._batch
            firsts = torch.arange(self._batch, device=tokens.device)[:, None] * width
            rows = (firsts + parents).flatten()
            self._tokens = self._tokens[rows]
            self._has = None if self._has is None else self._has[rows]
            self._counts = None if self._counts is None else self._counts[rows]
        new = tokens.reshape(-1, 1)
        if self._processors:
            self._tokens = torch.cat([self._tokens, new], dim=1)
        if self._has is not None:
            self._has.scatter_(1, new, True)
        if self._counts is not None:
            self._counts.scatter_add_(1, new, torch.ones_like(new, dtype=self._counts.dtype))

    def _begin(self, logits: torch.Tensor) -> None:
        """Makes what is kept by symbols, now that the vocabulary is known."""
        rules, (rows, vocab) = self._rules, logits.shape
        self._banned = torch.tensor(rules.banned, dtype=torch.int64, device=logits.device)
        forced = [int(t) for tokens in self._forced.values() for t in tokens]
        for name, ids in (("banned", rules.banned), ("forced", forced)):
            outside = [i for i in ids if i >= vocab]
            if outside:
                raise ValueError(
                    f"{name} tokens are ids of the model's vocabulary, 0 to {vocab - 1}; got "
                    f"{outside[0]}."
                )
        if rules.repetition_penalty != 1:
            # One more symbol for what is none: padding, and ids that are never made.
            ids = self._tokens.where((self._tokens >= 0) & (self._tokens < vocab), vocab)
            has = torch.zeros(rows, vocab + 1, dtype=torch.bool, device=logits.device)
            self._has = has.scatter_(1, ids.to(logits.device), True)[:, :vocab].contiguous()
        if rules.presence_penalty or rules.frequency_penalty:
            self._counts = torch.zeros_like(logits)
        if not self._processors:  # then nobody looks at them any more
            self._tokens = self._tokens[:, :0]


def _padded_on_the_left(tokens: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """Returns rows that end together; -1 stands before those that are shorter."""
    if lengths is None:
        return tokens
    n = tokens.shape[1]
    places = torch.arange(n, device=tokens.device) - (n - lengths[:, None])
    return tokens.gather(1, places.clamp(min=0)).masked_fill(places < 0, -1)


def _processors(given: Any) -> tuple[Callable[..., Any], ...]:
    several = given if isinstance(given, (list, tuple)) else () if given is None else (given,)
    for each in several:
        if not callable(each) and not hasattr(each, "begin"):
            raise TypeError(
                f"logits_processor is a function (tokens so far, logits) -> logits, or a list of "
                f"them; got {each!r}."
            )
    return tuple(several)


def _checked(processor: Any, logits: Any, given: torch.Tensor) -> torch.Tensor:
    """Returns what a processor returned, in the type of the logits that the model gave."""
    name = getattr(processor, "__name__", type(processor).__name__)
    needed = f"A logits processor returns logits of shape {tuple(given.shape)}; {name} returned"
    if not isinstance(logits, torch.Tensor):
        raise TypeError(f"{needed} {type(logits).__name__}. Return the tensor.")
    if logits.shape != given.shape:
        raise ValueError(f"{needed} {tuple(logits.shape)}. Mask symbols by -inf.")
    return logits.to(given)


def _ids(given: Any) -> tuple[int, ...]:
    needed = f"banned are token ids, a list of integers from 0; got {given!r}"
    try:
        ids = tuple(operator.index(i) for i in given)
    except TypeError:
        raise TypeError(f"{needed}. Give [] for none.") from None
    if any(i < 0 for i in ids):
        raise ValueError(f"{needed}.")
    return ids


def _places(given: Any) -> dict[int, Any]:
    needed = f"forced are tokens by their places, as in {{0: 5, -1: 1}}; got {given!r}"
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(f"{needed}.")
    try:
        places = {
            operator.index(place): [operator.index(t) for t in _several(tokens)]
            for place, tokens in given.items()
        }
    except TypeError:
        raise TypeError(f"{needed}. Tokens are integers, one for all rows or one a row.") from None
    if any(t < 0 for tokens in places.values() for t in tokens):
        raise ValueError(f"{needed}. Tokens are ids from 0.")
    return places


def _several(tokens: Any) -> Any:
    tokens = tokens.tolist() if hasattr(tokens, "tolist") else tokens
    return tokens if isinstance(tokens, (list, tuple)) else [tokens]


def _forced_at(
    places: Mapping[int, list[int]], max_length: int | None, batch: int
) -> dict[int, torch.Tensor]:
    """Returns what is forced by places from 0, integers (batch,) each.

    Raises:
      ValueError: if there is no such place, or there are not as many tokens as rows.
    """
    found: dict[int, torch.Tensor] = {}
    for place, tokens in places.items():
        at = place
        if max_length is not None:
            if not -max_length <= place < max_length:
                raise ValueError(
                    f"forced has place {place}, but there are {max_length} tokens: give one from "
                    f"{-max_length} to {max_length - 1}, or a larger max_length."
                )
            at = place % max_length
        elif place < 0:
            raise ValueError(
                f"forced has place {place}, which counts from the end; give max_length, too."
            )
        if len(tokens) not in (1, batch):
            raise ValueError(
                f"forced has {len(tokens)} tokens at place {place} for {batch} rows. Give one for "
                f"all, or one a row."
            )
        asked = torch.tensor(tokens).expand(batch)
        if not torch.equal(found.setdefault(at, asked), asked):
            raise ValueError(
                f"forced has two tokens for one place: {place} is place {at} of {max_length}. Give "
                f"one of them."
            )
    return found
