"""Grammars of the library outlines-core, for decoding: what is made fits a regular expression.

A `Grammar` is a `logits_processor` of `supervised.decoding`. outlines-core (extra `grammars`) turns
an expression and a vocabulary into a graph of states, each of which says which tokens may follow.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from trax_torch import _extras, _public_names

__dir__ = _public_names.names_of(__name__)


class Grammar:
    """Lets decoding make nothing but tokens whose text fits a regular expression, and then an end.

    A row that meets `max_length` before may hold the beginning of a text that fits. Where a text
    may be over, `eos_id` may be made; where it must be over, it alone is. What follows it is the
    model's own. Rows, samples and beams are each at a place of their own; one grammar serves any
    number of calls, one after another or at once.

    Args:
      pattern: a regular expression, as the crate regex-automata has it, which the whole text fits.
        Look-around and back-references are none.
      texts: the text of each token id, str or bytes; None for those that stand for none, which are
        never made. Of byte-level tokenizers take bytes: a token may be a part of a character.
      eos_id: the end symbol; the call of decoding must have it, too.

    Raises:
      ImportError: if outlines-core is not installed.
      ValueError: if the pattern is none, or no text of the tokens fits it.

    Example:
      >>> texts = [None, None, *"0123456789."]
      >>> price = Grammar(r"[1-9][0-9]*\\.[0-9]{2}", texts, eos_id=1)        # doctest: +SKIP
      >>> decoding.autoregressive_sample(model, logits_processor=price)     # doctest: +SKIP

    Source: Willard and Louf 2023, arXiv:2307.09702.
    """

    def __init__(self, pattern: str, texts: Sequence[str | bytes | None], eos_id: int = 1):
        library = _extras.needed("outlines_core", "A grammar", "grammars")
        ids: dict[bytes, list[int]] = {}
        for i, text in enumerate(texts):
            if text and i != eos_id:
                as_bytes = text.encode() if isinstance(text, str) else bytes(text)
                ids.setdefault(as_bytes, []).append(i)
        try:
            self._index = library.Index(pattern, library.Vocabulary(eos_id, ids))
        except ValueError as error:
            raise ValueError(
                f"A grammar is a regular expression that some text of the tokens fits; "
                f"{pattern!r} is none ({error})."
            ) from error
        self._eos_id = eos_id
        self._allowed: dict[int, list[int]] = {}  # by states; shared by all runs

    @classmethod
    def of_json(
        cls,
        schema: Mapping[str, Any] | str,
        texts: Sequence[str | bytes | None],
        eos_id: int = 1,
    ) -> "Grammar":
        """Returns the grammar of JSON texts that fit a JSON schema.

        Args:
          schema: as a mapping, or as JSON. Parts of JSON Schema that no regular expression can
            tell, such as recursion, are refused by outlines-core.
          texts, eos_id: as for `Grammar`.
        """
        library = _extras.needed("outlines_core.json_schema", "A grammar", "grammars")
        text = schema if isinstance(schema, str) else json.dumps(schema)
        return cls(library.build_regex_from_schema(text), texts, eos_id)

    def begin(self, tokens: torch.Tensor) -> "_Run":
        """Returns the processor of one run, whose texts begin after these tokens, (rows, n)."""
        return _Run(self, tokens.shape[1])

    def first(self) -> int:
        """Returns the state before the first token."""
        state: int = self._index.get_initial_state()
        return state

    def after(self, state: int | None, token: int) -> int | None:
        """Returns the state after a token, or None after the end, and after what does not fit."""
        if state is None or token == self._eos_id:
            return None
        following: int | None = self._index.get_next_state(state, token)
        return following

    def allowed(self, state: int) -> list[int]:
        """Returns which tokens may follow."""
        if state not in self._allowed:
            self._allowed[state] = self._index.get_allowed_tokens(state)
        return self._allowed[state]


class _Run:
    """A grammar along one run; what it remembers is where each text is."""

    def __init__(self, grammar: Grammar, n_before: int):
        self._grammar, self._n_before = grammar, n_before
        self._states: dict[tuple[int, ...], int | None] = {(): grammar.first()}

    def __call__(self, tokens: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Masks what may not follow; see `decoding.autoregressive_sample_stream`."""
        texts = [tuple(row) for row in tokens[:, self._n_before :].tolist()]
        states = self._states  # after the tokens before the last ones
        self._states = {
            text: self._grammar.after(states[text[:-1]], text[-1]) if text else states[()]
            for text in texts
        }
        masked = torch.full_like(logits, -torch.inf)
        for row, text in enumerate(texts):
            state = self._states[text]
            if state is None:
                masked[row] = logits[row]
            else:
                allowed = torch.tensor(self._grammar.allowed(state), device=logits.device)
                masked[row, allowed] = logits[row, allowed]
        return masked
