"""Models."""

from trax_torch.models.transformer import TransformerLM

__all__ = ["TransformerLM"]
