"""What each layer of a model attends to: its weights, caught where torch computes with them.

Layers of this package, of transformers and torch's own attend by `scaled_dot_product_attention`,
which gives no weights; they are computed beside it from the same queries, keys and mask.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.backends import mha
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from trax_torch import _nest, _pictures, _tables
from trax_torch.layers import _predict, _protocol
from trax_torch.supervised._generation.asked import layer_of
from trax_torch.supervised._generation.checks import Hooked, id_hooks


class AttentionMaps(Mapping[str, torch.Tensor]):
    """The attention weights of a model's layers, by the names of the modules that attend.

    Each is (batch, heads, queries, keys); a query's weights add up to 1. `attention_of` makes it.

    Args:
      maps: the weights by name, in the order of the calls.
    """

    def __init__(self, maps: Mapping[str, torch.Tensor]):
        self._maps = dict(maps)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._maps[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._maps)

    def __len__(self) -> int:
        return len(self._maps)

    def __repr__(self) -> str:
        rows = [(name, *map(str, x.shape)) for name, x in self._maps.items()]
        return _tables.table(
            ("layer", "batch", "heads", "queries", "keys"), rows, numbers=(1, 2, 3, 4)
        )

    def plot(
        self,
        layer: str | None = None,
        row: int = 0,
        queries: Sequence[str] | None = None,
        keys: Sequence[str] | None = None,
    ) -> Any:
        """Returns a picture: a panel for each layer, its heads averaged; or each head of one layer.

        A darker square is a larger weight: of the position on the left for the one below.

        Args:
          layer: whose heads to show; None shows all layers.
          row: of the batch.
          queries: what to write beside positions on the left, one for each; by default numbers.
          keys: likewise below; by default as `queries`, if there are as many.

        Returns:
          A `matplotlib.figure.Figure`, which a notebook shows, and `savefig(path)` writes.

        Raises:
          ImportError: if there is no matplotlib; says how to install it.
          KeyError: if there is no such layer.
        """
        if layer is None:
            shown = {name: x[row].mean(0) for name, x in self._maps.items()}
        else:
            shown = {f"head {i}": x for i, x in enumerate(self._maps[layer][row])}
        n_columns = min(len(shown), 4)
        made, panels = _pictures.figure(len(shown), "AttentionMaps.plot", n_columns, (3.0, 3.0))
        for (name, weights), panel in zip(shown.items(), panels, strict=True):
            n, m = weights.shape
            below = queries if keys is None and queries is not None and n == m else keys
            _pictures.label(panel, "keys", "queries", name)
            panel.grid(False)
            panel.imshow(
                weights.float().cpu().numpy(), cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto"
            )
            _ticks(panel.xaxis, below, m, rotation=90 * (len("".join(below or ())) > 20))
            _ticks(panel.yaxis, queries, n)
        return made


def _ticks(axis: Any, names: Sequence[str] | None, n: int, rotation: int = 0) -> None:
    """Writes names beside places, or, where there are many or none, numbers beside some."""
    if names is None or n > 40:
        axis.get_major_locator().set_params(integer=True)
        return
    if len(names) != n:
        raise ValueError(f"Each of {n} positions needs a name; got {len(names)}. Leave them out.")
    axis.set_ticks(range(n), labels=list(names), fontsize=7, rotation=rotation)


def attention_of(model: Any, tokens: Any, source: Any = None) -> AttentionMaps:
    """Returns what each layer of a model attends to, as it reads tokens.

    The model is run once, in eval mode and without gradients, and is after it as it was. Where it
    begins with a `ShiftRight`, as `models.TransformerLM` does, position i reads the token before
    the i-th. Seen are layers that attend by torch's `scaled_dot_product_attention`: this package's
    but for those that hash or cut in chunks, transformers' by default, and torch's own.

    Args:
      model: as for `autoregressive_sample`; a plain module is called with the tokens.
      tokens: integers (batch, length).
      source: what an encoder-decoder reads besides, integers (batch, length).

    Returns:
      `AttentionMaps`: by the names of modules, floats (batch, heads, queries, keys).

    Raises:
      LayerError: if an id is outside the vocabulary.
      ValueError: if no layer was seen to attend.

    Example:
      >>> from trax_torch import models
      >>> model = models.TransformerLM(vocab_size=8, d_model=8, d_ff=8, n_layers=1, n_heads=2)
      >>> _ = model.init(torch.zeros(1, 1, dtype=torch.int64), rng=0)
      >>> (weights,) = attention_of(model, torch.tensor([[3, 1, 2]])).values()
      >>> weights.shape
      torch.Size([1, 2, 3, 3])
    """
    layer = layer_of(model)
    device = next((p.device for p in layer.parameters()), torch.device("cpu"))
    given = [_nest.to_tensor(x, device) for x in (source, tokens) if x is not None]
    seen, checks = _Seen(), Hooked(id_hooks(layer))
    with contextlib.ExitStack() as stack:
        stack.enter_context(_predict.lock_for(layer))
        stack.enter_context(_protocol.modes_kept(layer))
        layer.eval()
        for name, module in layer.named_modules():
            for hook in seen.hooks(name.removeprefix("module."), module):
                stack.callback(hook.remove)
        stack.enter_context(contextlib.closing(checks))
        stack.enter_context(checks)
        stack.enter_context(torch.no_grad())
        # Torch's own layers would take a kernel that gives nothing away.
        stack.callback(mha.set_fastpath_enabled, mha.get_fastpath_enabled())
        mha.set_fastpath_enabled(False)
        stack.enter_context(seen)
        layer(given[0] if len(given) == 1 else tuple(given))
    if not seen.maps:
        raise ValueError(
            f"No layer of {layer.name} was seen to attend by torch's scaled_dot_product_attention. "
            f"A model of transformers does so if it is loaded with attn_implementation='sdpa'."
        )
    return AttentionMaps(seen.maps)


class _Seen(TorchFunctionMode):
    """Computes weights beside attention, under the name of the module that is being called."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: dict[str, torch.Tensor] = {}
        self._inside: list[str] = []

    def hooks(self, name: str, module: nn.Module) -> list[Any]:
        """Has a module say when it is called."""
        enter: Callable[..., None] = lambda *_: self._inside.append(name)  # noqa: E731
        leave: Callable[..., None] = lambda *_: self._leave()  # noqa: E731
        return [
            module.register_forward_pre_hook(enter),
            module.register_forward_hook(leave, always_call=True),
        ]

    def _leave(self) -> None:
        self._inside.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            return self._of_torch(args, kwargs)
        if func is F.scaled_dot_product_attention:
            self._note(_weights(*args, **kwargs))
        return func(*args, **kwargs)

    def _of_torch(self, args: Any, kwargs: dict[str, Any]) -> Any:
        """Asks `nn.MultiheadAttention` for the weights of all heads, and answers as was asked."""
        asked = {"need_weights": True, "average_attn_weights": False}
        forward: Any = F.multi_head_attention_forward
        outputs, weights = forward(*args, **{**kwargs, **asked})
        self._note(weights if weights.dim() == 4 else weights[None])
        if not kwargs.get("need_weights", True):
            return outputs, None
        average = kwargs.get("average_attn_weights", True)
        return outputs, weights.mean(-3) if average else weights

    def _note(self, weights: torch.Tensor) -> None:
        name = self._inside[-1] if self._inside else ""
        n = sum(each == name or each.startswith(f"{name}#") for each in self.maps)
        self.maps[f"{name}#{n + 1}" if n else name] = weights


def _weights(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Returns the weights of `F.scaled_dot_product_attention`, as its documentation has them."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        n, m = scores.shape[-2:]
        scores = scores.masked_fill(
            ~torch.ones(n, m, dtype=torch.bool, device=scores.device).tril(), -torch.inf
        )
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        else:
            scores = scores + attn_mask
    return scores.softmax(-1)
