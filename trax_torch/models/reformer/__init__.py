"""The Reformer: transformers for long sequences, trained without keeping activations."""

from trax_torch.models.reformer.reformer import (
    DecoderBlock,
    EncoderBlock,
    EncoderDecoderBlock,
    Reformer,
    ReformerLM,
    ReformerShortenLM,
)

__all__ = [
    "DecoderBlock",
    "EncoderBlock",
    "EncoderDecoderBlock",
    "Reformer",
    "ReformerLM",
    "ReformerShortenLM",
]
