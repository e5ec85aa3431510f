"""Layers: `from trax_torch import layers as tl`."""

from trax_torch.layers.activation_fns import FastGelu, Gelu, Relu, Sigmoid, Swish, Tanh
from trax_torch.layers.attention import (
    CausalAttention,
    ConfigurableAttention,
    DotProductCausalAttention,
    MergeHeads,
    PositionalEncoding,
    ShiftRight,
    SplitIntoHeads,
)
from trax_torch.layers.base import (
    EMPTY_STATE,
    EMPTY_WEIGHTS,
    GET_STATE_FROM_CACHE,
    GET_WEIGHTS_FROM_CACHE,
    Fn,
    Layer,
    LayerError,
    PureLayer,
    as_layer,
    flatten_weights_and_state,
    unflatten_weights_and_state,
)
from trax_torch.layers.combinators import (
    Add,
    Branch,
    Concatenate,
    Drop,
    Dup,
    Multiply,
    Parallel,
    Residual,
    Select,
    Serial,
    Split,
    SubtractTop,
    Swap,
)
from trax_torch.layers.core import (
    Dense,
    Dropout,
    Embedding,
    Flatten,
    LogSoftmax,
    Mean,
    Softmax,
    Sum,
    log_softmax,
)
from trax_torch.layers.initializers import (
    GlorotUniformInitializer,
    RandomNormalInitializer,
    RandomUniformInitializer,
    ScaledInitializer,
)
from trax_torch.layers.metrics import (
    CategoryAccuracy,
    CategoryCrossEntropy,
    L2Loss,
    WeightedCategoryAccuracy,
    WeightedCategoryCrossEntropy,
)
from trax_torch.layers.normalization import LayerNorm

__all__ = [name for name in dir() if not name.startswith("_") and name[0].isupper()] + [
    "as_layer",
    "flatten_weights_and_state",
    "log_softmax",
    "unflatten_weights_and_state",
]
