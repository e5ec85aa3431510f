"""How tokens come out of a model, shown by `beam_tree` and `attention_maps`; for `decoding` alone.

`asked` says which run it is (`prompts`, `symbols`, `text`); `engine` runs it by `compiled_step` or
`kept_programs`, which go by its `fingerprint`; `ragged` reads several tokens at once; rows are
`refilled` as `generating` has it. `drawing` asks `sampling`, `drafted` does by `drafts`, `budget`;
`searching` lets `beams` choose. `logits_processors` come before, `stop_sequences` after; `checks`,
`piecewise` and `nan_check` refuse; `quantizing` rounds, by `int8` or `int4`.
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
from trax_torch.supervised._generation.kept_programs import warm_up
from trax_torch.supervised._generation.logits_processors import Rules
from trax_torch.supervised._generation.prompts import check_counts
from trax_torch.supervised._generation.quantizing import quantized
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
    "quantized",
    "refilled_run",
    "run_for",
    "steps_of",
    "stop_sequences",
    "texts_of_tokens",
    "tokens_of_texts",
    "warm_up",
]
