"""Pipelines of examples, stage after stage, each of which keeps its place.

`stream` is what a stage gives, `items` how waiting examples lie in a checkpoint, `stages` makes
functions and datasets streams; the other rooms are stages. `data.inputs` hands them out.
"""

from trax_torch.data._pipeline.ahead import Prefetch
from trax_torch.data._pipeline.batching import (
    Batch,
    BucketByLength,
    UnBatch,
    batch,
    bucket_by_length,
    pad_to_max_dims,
)
from trax_torch.data._pipeline.bundles import Inputs, batcher, make_inputs
from trax_torch.data._pipeline.combining import Parallel, Serial
from trax_torch.data._pipeline.examples import (
    AddLossWeights,
    Append,
    AppendValue,
    CastTo,
    ConvertToUnicode,
    Dup,
    FilterByLength,
    FilterEmptyExamples,
    Log,
    Map,
    PadToLength,
    TruncateToLength,
    add_loss_weights,
)
from trax_torch.data._pipeline.keys import Key, as_keys, with_items
from trax_torch.data._pipeline.language import (
    MLM,
    ConcatenateToLMInput,
    PrefixLM,
    consume_noise_mask,
    generate_random_noise_mask,
    generate_sequential_chunks,
    random_spans_noise_mask,
)
from trax_torch.data._pipeline.problems import (
    addition_inputs,
    random_inputs,
    sequence_copy_inputs,
    simple_sequence_copy_inputs,
    sine_inputs,
)
from trax_torch.data._pipeline.shuffling import Shuffle, shuffle
from trax_torch.data._pipeline.sources import CountAndSkip, Examples, UniformlySeek
from trax_torch.data._pipeline.stages import Stage, each, named

__all__ = [
    "MLM",
    "AddLossWeights",
    "Append",
    "AppendValue",
    "Batch",
    "BucketByLength",
    "CastTo",
    "ConcatenateToLMInput",
    "ConvertToUnicode",
    "CountAndSkip",
    "Dup",
    "Examples",
    "FilterByLength",
    "FilterEmptyExamples",
    "Inputs",
    "Key",
    "Log",
    "Map",
    "PadToLength",
    "Parallel",
    "Prefetch",
    "PrefixLM",
    "Serial",
    "Shuffle",
    "Stage",
    "TruncateToLength",
    "UnBatch",
    "UniformlySeek",
    "add_loss_weights",
    "addition_inputs",
    "as_keys",
    "batch",
    "batcher",
    "bucket_by_length",
    "consume_noise_mask",
    "each",
    "generate_random_noise_mask",
    "generate_sequential_chunks",
    "make_inputs",
    "named",
    "pad_to_max_dims",
    "random_inputs",
    "random_spans_noise_mask",
    "sequence_copy_inputs",
    "shuffle",
    "simple_sequence_copy_inputs",
    "sine_inputs",
    "with_items",
]
