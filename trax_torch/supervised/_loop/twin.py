"""The model in eval mode while it trains: other modules around the very same tensors."""

import copy
import itertools
import warnings

from torch import nn

from trax_torch import layers as tl


def twin_of(model: tl.Layer) -> tl.Layer:
    """Returns a copy of a model, in eval mode, whose weights and buffers are the model's own.

    A model whose tensors are cut into parts, or that was compiled, is returned itself, and so, with
    a warning, is one that cannot be copied: its mode is that of training then.
    """
    tensors = list(itertools.chain(model.parameters(), model.buffers()))
    is_cut = any(type(p) is not nn.Parameter for p in model.parameters())
    if is_cut or any(hasattr(m, "_orig_mod") for m in model.modules()):
        return model
    try:
        return copy.deepcopy(model, {id(t): t for t in tensors}).eval()
    except Exception as error:
        warnings.warn(
            f"loop.eval_model is the model in training, which cannot be copied ({error}). Call "
            f"its eval() before it predicts, and train() afterwards.",
            stacklevel=5,
        )
        return model
