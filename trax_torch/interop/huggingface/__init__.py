"""Models of Hugging Face's transformers, decoded here, and GPT-2's weights in `TransformerLM`.

`as_layer` is what `supervised.decoding` does with such a model by itself. transformers is imported
when one of its models is there, never by this package alone.
"""

from trax_torch.interop.huggingface.adapters import as_layer
from trax_torch.interop.huggingface.gpt2 import to_gpt2, to_transformer_lm
from trax_torch.interop.huggingface.library import is_model

__all__ = ["as_layer", "is_model", "to_gpt2", "to_transformer_lm"]
