"""Models of Trax's supervised library, written with layers alone."""

from trax_torch.models.mlp import MLP
from trax_torch.models.reformer import Reformer, ReformerLM, ReformerShortenLM
from trax_torch.models.resnet import Resnet50, WideResnet
from trax_torch.models.rnn import GRULM, RNNLM, LSTMSeq2SeqAttn
from trax_torch.models.transformer import (
    Transformer,
    TransformerDecoder,
    TransformerEncoder,
    TransformerLM,
)

__all__ = [
    "GRULM",
    "MLP",
    "RNNLM",
    "LSTMSeq2SeqAttn",
    "Reformer",
    "ReformerLM",
    "ReformerShortenLM",
    "Resnet50",
    "Transformer",
    "TransformerDecoder",
    "TransformerEncoder",
    "TransformerLM",
    "WideResnet",
]
