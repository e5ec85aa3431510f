"""How tokens come out of a model; `supervised.decoding` alone calls it.

`asked` says which run it is, of what a user gives (`prompts`, `symbols`, `text`); `engine` runs a
model along it: prefill, then token by token, by `compiled_step`. `sampling` draws a token, `beams`
chooses a beam search's survivors; `checks`, `piecewise` and `nan_check` refuse what cannot be
decoded; `int8` makes weights of 8 bits.
"""

from trax_torch.supervised._generation import habits
from trax_torch.supervised._generation.answers import in_kind
from trax_torch.supervised._generation.asked import run_for
from trax_torch.supervised._generation.beams import Search
from trax_torch.supervised._generation.compiled_step import steps_of
from trax_torch.supervised._generation.int8 import Int8Dense, with_int8
from trax_torch.supervised._generation.nan_check import NanCheck
from trax_torch.supervised._generation.prompts import check_counts
from trax_torch.supervised._generation.sampling import Sampler, doubts_in, expect, log_probs_of
from trax_torch.supervised._generation.signatures import (
    is_beam_search,
    is_sample,
    is_sample_stream,
)
from trax_torch.supervised._generation.symbols import (
    END,
    PADDING,
    START,
    ends_and_padding,
    is_end,
)
from trax_torch.supervised._generation.text import texts_of_tokens, tokens_of_texts

__all__ = [
    "END",
    "PADDING",
    "START",
    "Int8Dense",
    "NanCheck",
    "Sampler",
    "Search",
    "check_counts",
    "doubts_in",
    "ends_and_padding",
    "expect",
    "habits",
    "in_kind",
    "is_beam_search",
    "is_end",
    "is_sample",
    "is_sample_stream",
    "log_probs_of",
    "run_for",
    "steps_of",
    "texts_of_tokens",
    "tokens_of_texts",
    "with_int8",
]
