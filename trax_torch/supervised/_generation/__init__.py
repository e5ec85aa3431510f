"""How tokens come out of a model; `supervised.decoding` alone calls it.

`prompts` takes what a user gives, `engine` runs a model along it: prefill, then token by token, by
`compiled_step`. `sampling` draws a token, `beams` chooses a beam search's survivors; `checks`,
`piecewise` and `nan_check` refuse what cannot be decoded; `int8` makes weights of 8 bits.
"""

from trax_torch.supervised._generation.beams import Search
from trax_torch.supervised._generation.compiled_step import steps_of
from trax_torch.supervised._generation.engine import EvalRun, PredictRun
from trax_torch.supervised._generation.int8 import Int8Dense, with_int8
from trax_torch.supervised._generation.nan_check import NanCheck
from trax_torch.supervised._generation.prompts import (
    check_counts,
    cut_to_lengths,
    start_symbols,
    tokens_of,
)
from trax_torch.supervised._generation.sampling import Sampler, doubts_in, expect, log_probs_of

__all__ = [
    "EvalRun",
    "Int8Dense",
    "NanCheck",
    "PredictRun",
    "Sampler",
    "Search",
    "check_counts",
    "cut_to_lengths",
    "doubts_in",
    "expect",
    "log_probs_of",
    "start_symbols",
    "steps_of",
    "tokens_of",
    "with_int8",
]
