"""GPT-2's weights as those of `models.TransformerLM`, and back.

Both are the same function: layer norms before attention and feed-forward parts, learned positions,
biases everywhere but in the head. Only `TransformerLM` shifts its tokens by itself.
"""

from typing import Any

import torch
from torch import nn

from trax_torch import layers as tl
from trax_torch import models
from trax_torch.interop.huggingface.library import is_model, transformers

_ACTIVATIONS = {
    "gelu_new": tl.FastGelu,
    "gelu_pytorch_tanh": tl.FastGelu,
    "gelu": tl.Gelu,
    "relu": tl.Relu,
}
_BACK = {"FastGelu": "gelu_new", "Gelu": "gelu", "Relu": "relu"}
_BLOCK = ("ln_1", "q", "k", "v", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
_CHECKED = 8  # positions by which both functions are compared


def to_transformer_lm(model: Any, dropout: float = 0.0) -> tl.Layer:
    """Returns a `models.TransformerLM` that is the same function as a GPT-2 of transformers.

    Its output at a position is GPT-2's at the one before, where the first token is 0: it puts this
    start symbol before the tokens by itself. To decode from a prompt as GPT-2 does, give the
    prompt's first token as `start_id`, and the others as `inputs`.

    Args:
      model: a `GPT2LMHeadModel`; its weights are copied, to where and in the type that they are.
      dropout: of the new model while it trains; GPT-2 drops in other places.

    Raises:
      TypeError: if it is another function than `TransformerLM` can be; it says by what.

    Example:
      >>> lm = to_transformer_lm(GPT2LMHeadModel.from_pretrained("gpt2"))     # doctest: +SKIP
    """
    _check_can_be_ours(model)
    config = model.config
    layer = models.TransformerLM(
        config.vocab_size,
        config.n_embd,
        config.n_inner or 4 * config.n_embd,
        config.n_layer,
        config.n_head,
        config.n_positions,
        dropout,
        ff_activation=_ACTIVATIONS[config.activation_function],
        layer_norm_epsilon=config.layer_norm_epsilon,
    )
    layer.init(torch.zeros(1, 1, dtype=torch.int64), rng=0)
    layer.to(model.lm_head.weight)
    theirs = model.transformer.state_dict()
    with torch.no_grad():
        for name, (weight, bias) in _pairs(layer, config.n_layer).items():
            if name == "head":
                weight.copy_(model.lm_head.weight)
                bias.zero_()
                continue
            for mine, kind in ((weight, "weight"), (bias, "bias")):
                if mine is not None:
                    mine.copy_(_part(theirs, name, kind))
    _compare(layer, model)
    return layer.train(model.training)


def to_gpt2(layer: tl.Layer, **settings: Any) -> Any:
    """Returns a `GPT2LMHeadModel` that is the same function as a `models.TransformerLM`.

    Args:
      layer: with weights, which are copied; its head has no bias other than 0, as after
        `to_transformer_lm`. A head that is no copy of the embedding is a weight of its own.
      **settings: others of `GPT2Config`: symbols, dropouts.

    Raises:
      TypeError: if it is another function than a GPT-2 can be; it says by what.

    Example:
      >>> to_gpt2(lm, eos_token_id=50256).save_pretrained("folder")           # doctest: +SKIP
    """
    sizes = _sizes(layer)
    pairs = _pairs(layer, sizes["n_layer"])
    head, bias = pairs.pop("head")
    if bool(bias.any()):
        raise TypeError(
            "GPT-2's head has no bias, but that of the layer has, which is not 0. Train without "
            "it: zero it after each step, or freeze it at 0."
        )
    tied = torch.equal(head, pairs["wte"][0])
    library = transformers()
    config = library.GPT2Config(**{**sizes, "tie_word_embeddings": tied, **_NO_SYMBOLS, **settings})
    model = library.GPT2LMHeadModel(config).to(head)
    weights: dict[str, list[torch.Tensor]] = {}
    for name, (weight, other) in pairs.items():
        parts = [weight] if other is None else [weight, other]
        for kind, part in zip(("weight", "bias"), parts, strict=False):
            weights.setdefault(f"{_theirs(name)}.{kind}", []).append(part)
    with torch.no_grad():
        for name, parts in weights.items():
            whole = torch.cat([p.detach() for p in parts])
            is_turned = whole.dim() == 2 and not name.startswith("w")
            model.transformer.get_parameter(name).copy_(whole.T if is_turned else whole)
        model.lm_head.weight.copy_(head)
    _compare(layer, model)
    return model.train(layer.training)


_NO_SYMBOLS = {"bos_token_id": None, "eos_token_id": None}


def _pairs(layer: tl.Layer, n_layers: int) -> dict[str, tuple[Any, Any]]:
    """Names a TransformerLM's weights, which come in the order of Trax, after GPT-2's parts."""
    params = iter(layer.parameters())
    pairs: dict[str, tuple[Any, Any]] = {"wte": (next(params), None), "wpe": (next(params), None)}
    names = [f"h.{i}.{part}" for i in range(n_layers) for part in _BLOCK]
    for name in (*names, "ln_f", "head"):
        pairs[name] = next(params), next(params)
    return pairs


def _theirs(name: str) -> str:
    """Returns the part of GPT-2 that holds a weight, where those of q, k and v are one."""
    block, _, last = name.rpartition(".")
    return f"{block}.attn.c_attn" if last in ("q", "k", "v") else name


def _part(theirs: dict[str, torch.Tensor], name: str, kind: str) -> torch.Tensor:
    """Returns one of GPT-2's weights in the shape of ours: its matrices map rows."""
    weight = theirs[f"{_theirs(name)}.{kind}"]
    if _theirs(name) != name:
        weight = weight.chunk(3, dim=-1)["qkv".index(name[-1])]
    return weight.T if weight.dim() == 2 and not name.startswith("w") else weight


def _check_can_be_ours(model: Any) -> None:
    """Raises TypeError if a model is no GPT-2, or one that TransformerLM cannot be."""
    if not is_model(model):
        raise TypeError(f"A GPT2LMHeadModel of transformers is needed; got {type(model).__name__}.")
    config = model.config
    if type(model).__name__ == "GPT2LMHeadModel":
        wrong = {
            "activation_function": config.activation_function not in _ACTIVATIONS,
            "scale_attn_weights": not config.scale_attn_weights,
            "scale_attn_by_inverse_layer_idx": config.scale_attn_by_inverse_layer_idx,
            "add_cross_attention": config.add_cross_attention,
        }
        others = [f"{name}={getattr(config, name)!r}" for name, is_so in wrong.items() if is_so]
    else:
        others = _what_differs(model)
    if others:
        raise TypeError(
            f"TransformerLM is another function than {type(model).__name__}, which has "
            f"{', '.join(others)}. Decode and train it as it is."
        )


def _what_differs(model: Any) -> list[str]:
    """Returns what a model has that TransformerLM has not."""
    config = model.config
    heads = getattr(config, "num_attention_heads", None)
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    kinds = {type(module).__name__ for module in model.modules()}
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    found = {
        "an encoder": config.is_encoder_decoder,
        "RMSNorm": any("RMSNorm" in kind for kind in kinds),
        "rotary positions": any("Rotary" in kind for kind in kinds),
        "a gated feed-forward part": "gate_proj" in names,
        "fewer heads of keys than of queries": getattr(config, "num_key_value_heads", heads)
        not in (heads, None),
        "a sliding window": getattr(config, "sliding_window", None) is not None,
        "no biases": bool(linear) and all(m.bias is None for m in linear),
    }
    return [what for what, is_so in found.items() if is_so] or ["blocks that are no GPT-2's"]


def _sizes(layer: tl.Layer) -> dict[str, Any]:
    """Returns a TransformerLM's sizes, in the words of GPT-2.

    Raises:
      TypeError: if the layer is none.
    """
    tokens = [m for m in layer.modules() if isinstance(m, tl.Embedding)]
    places = [m for m in layer.modules() if isinstance(m, tl.PositionalEncoding)]
    dense = [m for m in layer.modules() if isinstance(m, tl.Dense)]
    norms = [m for m in layer.modules() if isinstance(m, tl.LayerNorm)]
    splits: list[Any] = [m for m in layer.modules() if _name(m) == "SplitIntoHeads"]
    kinds = {_name(m) for m in layer.modules() if _name(m) in _BACK}
    epsilons = {m.epsilon for m in norms}
    if [len(x) for x in (tokens, places, kinds, epsilons)] == [1] * 4 and splits and len(dense) > 6:
        vocab, d_model = next(tokens[0].parameters()).shape
        d_ff, n_layers = next(dense[4].parameters()).shape[0], len(dense) // 6
        n_heads = splits[0](torch.zeros(1, 1, d_model)).shape[1]
        kind = kinds.pop()
        sizes = {
            "vocab_size": vocab,
            "n_positions": next(places[0].parameters()).shape[0],
            "n_embd": d_model,
            "n_inner": d_ff,
            "n_layer": n_layers,
            "n_head": n_heads,
            "activation_function": _BACK[kind],
            "layer_norm_epsilon": epsilons.pop(),
        }
        activation = _ACTIVATIONS[_BACK[kind]]
        twin = models.TransformerLM(
            vocab, d_model, d_ff, n_layers, n_heads, ff_activation=activation
        )
        if str(twin) == str(layer):
            return sizes
    raise TypeError(
        f"GPT-2 is the same function as a models.TransformerLM with Relu, Gelu or FastGelu, and "
        f"weights; got {_name(layer)}, of other layers."
    )


def _name(module: Any) -> str:
    return str(getattr(module, "name", type(module).__name__))


@torch.no_grad()
def _compare(layer: tl.Layer, model: Any) -> None:
    """Raises TypeError if logits differ: what sizes do not tell, such as hooks."""
    n = min(_CHECKED, model.config.n_positions)
    tokens = torch.arange(n, device=model.device)[None] % model.config.vocab_size
    modes = layer.training, model.training
    layer.eval()
    model.eval()
    try:
        mine = layer(tokens).double()
        theirs = model(torch.cat([tokens[:, :1] * 0, tokens[:, :-1]], 1)).logits.double()
    finally:
        layer.train(modes[0])
        model.train(modes[1])
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-3}.get(model.dtype, 0.1)
    if float((mine - theirs).abs().max()) > tolerance * float(theirs.abs().max()):
        raise TypeError(
            f"{_name(layer)} and {type(model).__name__} have the same weights, and give other "
            f"logits. Remove hooks and changes made by hand."
        )
