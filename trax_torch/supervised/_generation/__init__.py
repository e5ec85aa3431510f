"""How tokens come out of a model, shown by `beam_tree` and `attention_maps`; for `decoding` alone.

`asked` says which run it is, of what a user gives (`prompts`, `symbols`, `text`); `engine` runs a
model along it: prefill, then token by token, by `compiled_step`; `ragged` reads several at once, or
rows are `refilled` as `generating` has it. `drawing` asks `sampling`, and `drafted` does by
`drafts`, as long as `budget` says; `searching` lets `beams` choose. `logits_processors` come
before, `stop_sequences` after; `checks`, `piecewise` and `nan_check` refuse; `int8` is weights.
"""

from trax_torch.supervised._generation import habits
from trax_torch.supervised._generation.answers import in_kind
from trax_torch.supervised._generation.asked import layer_of, run_for
from trax_torch.supervised._generation.attention_maps import AttentionMaps, attention_of
from trax_torch.supervised._generation.beam_tree import BeamTree
from trax_torch.supervised._generation.cached_module import CachedModule
from trax_torch.supervised._generation.compiled_step import steps_of
from trax_torch.supervised._generation.drawing import Drawing
from trax_torch.supervised._generation.generate import generate, refilled_run
from trax_torch.supervised._generation.generating import Generated
from trax_torch.supervised._generation.int8 import Int8Dense, with_int8
from trax_torch.supervised._generation.logits_processors import Rules
from trax_torch.supervised._generation.prompts import check_counts
from trax_torch.supervised._generation.sampling import Sampler
from trax_torch.supervised._generation.searching import Searching
from trax_torch.supervised._generation.signatures import (
    is_beam_search,
    is_sample,
    is_sample_stream,
)
from trax_torch.supervised._generation.stop_sequences import stop_sequences
from trax_torch.supervised._generation.symbols import END, PADDING, START, ends_and_padding
from trax_torch.supervised._generation.text import texts_of_tokens, tokens_of_texts

__all__ = [
    "END",
    "PADDING",
    "START",
    "AttentionMaps",
    "BeamTree",
    "CachedModule",
    "Drawing",
    "Generated",
    "Int8Dense",
    "Rules",
    "Sampler",
    "Searching",
    "attention_of",
    "check_counts",
    "ends_and_padding",
    "generate",
    "habits",
    "in_kind",
    "is_beam_search",
    "is_sample",
    "is_sample_stream",
    "layer_of",
    "refilled_run",
    "run_for",
    "steps_of",
    "stop_sequences",
    "texts_of_tokens",
    "tokens_of_texts",
    "with_int8",
]
