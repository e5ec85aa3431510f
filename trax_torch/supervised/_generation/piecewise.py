"""Whether a model gives in pieces what it gives at once: what it is asked for in predict mode.

A part either remembers the positions before, or acts on each position alone. Layers of this package
that remember say so, and of the rest, and of torch's modules, a list is known. Of others nobody
knows, so a model that has some is tried: the same tokens at once and in pieces, as many as a call
may come to. That is done anew when weights have changed, since a part may have been shut off.
"""

import functools
import math
import re
import weakref
from typing import Any

import torch
from torch import nn

from trax_torch import _torch_private
from trax_torch import layers as tl
from trax_torch.layers._predict import look_again, modules_in
from trax_torch.supervised._generation.checks import Hook, has_own_cache
from trax_torch.supervised._generation.compiled_step import step, steps_of
from trax_torch.supervised._generation.quantizing import DENSE

_LONGEST = 512  # positions of a trial
# How far logits may be apart by rounding, as a share of the largest.
_TOLERANCES = {torch.float64: 1e-7, torch.float32: 1e-3}

# What acts on each position alone, where positions are an axis before the last, or is made of what
# it holds. Layers of functions go by their names, if the function is none of a user's.
_ALONE = {
    *(nn.Linear, nn.Identity, nn.Embedding, nn.LayerNorm, nn.RMSNorm),
    *(nn.Dropout, nn.ModuleList, nn.ModuleDict, nn.Sequential, nn.ParameterList),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU),
    *(nn.Mish, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardsigmoid),
    *(nn.Hardswish, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Threshold),
    *(tl.Serial, tl.Parallel, tl.Wrapped, tl.Accelerate, *DENSE, tl.Embedding),
    *(tl.Dropout, tl.LayerNorm, tl.ShiftRight, tl.ReversibleHalfResidual, tl.ReversibleSelect),
    tl.ReversibleSerial,
}
_NAMES_ALONE = {
    *("Relu", "ParametricRelu", "LeakyRelu", "Elu", "Selu", "Gelu", "FastGelu", "Sigmoid", "Tanh"),
    *("HardSigmoid", "HardTanh", "Softplus", "Exp", "Log", "Swish", "Negate", "StopGradient"),
    *("ToFloat", "LogSoftmax", "SplitIntoHeads", "MergeHeads", "PaddingMask", "MakeZeroState"),
    *("EncoderDecoderMask", "Dup", "Drop", "Select", "Swap", "Add", "SubtractTop", "Multiply"),
    *("Gate", "FlattenList", "XYAvg", "RemoveAxes12"),
}


def check_pieces(
    layer: tl.Layer, source: torch.Tensor | None, prompt: torch.Tensor, n_steps: int | None
) -> None:
    """Refuses a model with a part of its own that looks along positions, and does not remember.

    Args:
      layer: the model.
      source: integers (batch, length), or None.
      prompt: integers (batch, length); the trial is on its device.
      n_steps: how many tokens will be read after it at most, or None.

    Raises:
      TypeError: if pieces give other logits than the whole, with what may be the reason.
    """
    unknown = _unknown_parts(layer)
    if not unknown:
        return
    n = _LONGEST if n_steps is None else min(_LONGEST, prompt.shape[1] + n_steps)
    longest = 2 ** max(2, math.ceil(math.log2(n)))
    parts, weights = [weakref.ref(m) for m in unknown], _marks_of_weights(layer)
    steps = steps_of(layer)
    *tried, n_tried = steps.tried or (None, None, 0)
    if tried == [parts, weights] and n_tried >= longest:
        return
    source = None if source is None else source[:1]
    shorter = [2**i for i in reversed(range(1, int(math.log2(longest))))]
    for length in (longest, max(2, n), *shorter):
        tokens = torch.arange(length, device=prompt.device)[None] % _n_ids(layer, prompt)
        try:
            whole = _logits(layer, source, tokens, [length])
        except tl.LayerError:  # there is no room, or the run itself will say what is wrong
            continue
        if whole.dim() != 3:  # likewise
            return
        _compare(layer, source, tokens, whole, unknown)
        steps.tried = parts, weights, longest
        return


def _marks_of_weights(layer: tl.Layer) -> list[Any]:
    """Returns what is something else when weights have changed."""
    return [(id(p), _torch_private.version(p)) for p in layer.parameters()]


def _compare(
    layer: tl.Layer,
    source: torch.Tensor | None,
    tokens: torch.Tensor,
    whole: torch.Tensor,
    unknown: list[nn.Module],
) -> None:
    """Raises TypeError if the logits of tokens in pieces are not those of the whole."""
    n = tokens.shape[1]
    n_last = min(2, n - 1)
    try:
        pieces = _logits(layer, source, tokens, [n - n_last, *[1] * n_last])
        if _are_alike(whole, pieces, _TOLERANCES.get(_dtype_of(layer), 0.05)):
            return
        reason = "gives other logits for tokens in pieces than at once"
    except tl.LayerError as error:
        reason = f"fails where tokens come in pieces ({error.__cause__})"
    names = ", ".join(dict.fromkeys(type(m).__name__ for m in _innermost(unknown)))
    raise TypeError(
        f"{layer.name} cannot predict position by position: it {reason}. It has parts of which it "
        f"is not known whether they act on each position alone: {names}. Decode with "
        f"eval_mode=True; or let a part that looks along positions offer init_cache, reset_cache "
        f"and reorder_cache, as decoding.CachedModule says."
    )


@torch.no_grad()
def _logits(
    layer: tl.Layer, source: torch.Tensor | None, tokens: torch.Tensor, sizes: list[int]
) -> torch.Tensor:
    """Returns the logits of tokens that come in pieces of given sizes."""
    with layer.predict(1, tokens.shape[1]):
        pieces = [step(layer, source, part) for part in tokens.split(sizes, dim=1)]
    look_again()  # what was run may have made modules
    return torch.cat(pieces, dim=1)


class Shifts:
    """Finds a ShiftRight that shifts more than the tokens by one.

    Decoding puts the start symbol before the tokens, which is what one such shift does: in predict
    mode it passes all on.

    Args:
      layer: the model.
      tokens: what it is given, integers (batch, length).

    Attributes:
      hooks: look at what is shifted.
    """

    def __init__(self, layer: tl.Layer, tokens: torch.Tensor):
        self._layer, self._tokens = layer, tokens
        self._shifted: list[torch.Tensor] = []
        self._wrong: list[str] = []
        shifts = [m for m in modules_in(layer) if isinstance(m, tl.ShiftRight)]
        self.hooks = [Hook(m, "forward", self._look) for m in shifts]

    def _look(self, module: Any, args: tuple[Any, ...], output: Any) -> None:
        (x,) = args
        is_of_tokens = x.shape == self._tokens.shape and not x.is_floating_point()
        is_shifted = any(x is each for each in self._shifted)
        if module._n_positions != 1 or not is_of_tokens or is_shifted:
            self._wrong.append(module.name)
        self._shifted.append(output)

    def check(self) -> None:
        if self._wrong:
            raise TypeError(
                f"Predict mode begins with the start symbol instead of shifting the tokens by one; "
                f"{self._wrong[0]} in {self._layer.name} shifts further, or something else. Decode "
                f"with eval_mode=True, or build the model with one ShiftRight, of its tokens."
            )


def _unknown_parts(module: nn.Module) -> list[nn.Module]:
    """Returns the parts of which nobody has said how they look at positions."""
    found: dict[nn.Module, None] = {}
    seen: set[nn.Module] = set()
    waiting = [module]
    while waiting:
        part = waiting.pop()
        if part in seen or _remembers(part):  # what remembers sees to what is in it
            continue
        seen.add(part)
        if type(part) not in _ALONE and not _is_known_function(part):
            found[part] = None
        waiting += [m for m in reversed(part._modules.values()) if m is not None]
    return list(found)


def _remembers(module: nn.Module) -> bool:
    if isinstance(module, tl.Layer):
        return type(module).init_cache is not tl.Layer.init_cache
    return has_own_cache(module)


def _is_known_function(module: nn.Module) -> bool:
    if type(module) is not tl.PureLayer:
        return False
    function: Any = module.fn or module._forward_fn
    while isinstance(function, functools.partial):
        function = function.func
    owner = (getattr(function, "__module__", None) or "torch").split(".")[0]
    return owner in ("torch", "trax_torch") and _without_arguments(module.name) in _NAMES_ALONE


@functools.lru_cache(maxsize=1024)
def _without_arguments(name: str) -> str:
    return re.split("[^A-Za-z]", name)[0]


def _innermost(modules: list[nn.Module]) -> list[nn.Module]:
    among = set(modules)
    return [m for m in modules if not any(c in among for c in m.modules() if c is not m)]


def _n_ids(layer: tl.Layer, prompt: torch.Tensor) -> int:
    """Returns how many token ids a model surely takes, from 0."""
    sizes = [
        m.weight.shape[0] for m in modules_in(layer) if isinstance(m, (tl.Embedding, nn.Embedding))
    ]
    return min(sizes) if sizes else int(prompt.max()) + 1


def _dtype_of(layer: tl.Layer) -> torch.dtype:
    return next((p.dtype for p in layer.parameters()), torch.float32)


def _are_alike(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    """Tells whether logits are the same but for rounding; those that are no numbers, others see."""
    if one.shape != other.shape:
        return False
    difference = (one - other).abs().nan_to_num(0.0, 0.0, 0.0)
    scale = one.abs().nan_to_num(0.0, 0.0, 0.0).max()
    return bool(difference.max() <= tolerance * scale)
