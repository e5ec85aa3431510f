"""The loss in chunks: the last Dense layer and the loss, a few positions at a time.

The activations of all positions for all words of a vocabulary are the largest tensor of many
models. Here they never exist at once: this room says where a model may be cut before its last
layer, and how a loss's inputs fall into chunks. What a chunk stands for, `_microbatches` says.
"""

import functools
import math
from typing import Any

import torch
from torch import nn

from trax_torch import _nest, _torch_private
from trax_torch import layers as tl
from trax_torch.layers._protocol import has_hooks
from trax_torch.optimizers._microbatches import WEIGHING, Shares, weighs_by_targets

# Losses of Trax that are means, or sums, over positions; and measures that are not.
_OVER_POSITIONS = (
    "CategoryCrossEntropy",
    "WeightedCategoryCrossEntropy",
    "BinaryCrossEntropy",
    "L2Loss",
    "SmoothL1Loss",
    "CrossEntropyLoss",
    "CrossEntropyLossWithLogSoftmax",
    "CrossEntropySum",
    "BinaryCrossEntropyLoss",
    "BinaryCrossEntropySum",
)
_OVER_MORE = (
    "MaskedSequenceAccuracy",
    "SequenceAccuracy",
    "MacroAveragedFScore",
    "WeightedFScore",
)

_Grad = torch.Tensor | None  # None where a loss does not depend on it


def split_head(model: tl.Layer) -> tuple[list[tl.Layer], tl.Layer | None]:
    """Cuts a model before its last Dense layer, if it ends in one.

    A model ends in a Dense layer or an `nn.Linear`, or in one of them and a LogSoftmax, if it is a
    Serial or an `nn.Sequential`, of whatever depth, that does. Nothing in the model changes; the
    layers are the model's own.

    Args:
      model: a layer that has its weights; one that still waits for them is not cut.

    Returns:
      `(body, head)`: the layers before, in order, and the last Dense as one layer, with the
      LogSoftmax if there is one. The head takes the top of the stack that the body leaves. Where
      the model ends otherwise, or someone listens by a hook to it or to one of the two, the body is
      all of it and the head None.

    Example:
      >>> model = tl.Serial(tl.Dense(4), tl.Serial(tl.Relu(), tl.Dense(9)))
      >>> _ = model.init(torch.ones(1, 3))
      >>> body, head = split_head(model)
      >>> body, head
      ([Dense_4, Relu], Dense_9)
    """
    body, ends = _ends_of(model), list[tl.Layer]()
    if body and _is_log_softmax(body[-1]):
        ends.append(body.pop())
        body = [*body[:-1], *_ends_of(body[-1])] if body else []
    if not body or not _is_dense(body[-1]):
        return [model], None
    ends.append(body.pop())
    return body, ends[0] if len(ends) == 1 else tl.Serial(*reversed(ends))


class ChunkedLoss(nn.Module):
    """Computes a loss, and at once its gradients, over chunks of positions.

    It takes what the loss takes, packed alike, but the head's input in the place of its output. The
    loss and all gradients are those of the whole: each chunk counts by its share of the weights, as
    `Shares` has it. Where gradients are wanted, they are computed in the forward pass, chunk by
    chunk, so that no activation is computed twice; the backward pass hands them out, once. Memory
    holds one chunk's activations, one gradient of the head's weights, and what has the size of the
    inputs. Weights that the loss reaches by itself, to hold another layer's small, say, get their
    gradients, too.

    Positions are the items of the leading axes, (batch * length). Nothing is known of what losses
    do that are neither Trax's nor torch's `nn.CrossEntropyLoss` and `nn.NLLLoss`, so they get whole
    rows of the batch: as many as have `chunk_size` positions together, and at least one.

    Args:
      head: the layer before the loss, which looks at one position alone; None if there is none.
      loss: takes the head's output, and targets, weights or what it will, and gives one number.
      chunk_size: how many positions there are in a chunk.

    Attributes:
      n_in: how many items the loss takes.
      is_known: whether the loss is known to be a mean or a sum over positions.

    Raises:
      ValueError: if the loss is known to be neither; in a step, if a weight that the loss reaches
        by itself has hooks.
    """

    def __init__(self, head: tl.Layer | None, loss: tl.Layer, chunk_size: int):
        super().__init__()
        if loss.name in _OVER_MORE and _is_of_trax(loss):
            raise ValueError(
                f"Chunks of positions need a loss that is a mean over positions, and {loss.name} "
                f"is none. Leave loss_chunk_size at 0, or take another loss."
            )
        self.head_and_loss = tl.Serial(loss) if head is None else tl.Serial(head, loss)
        self.n_in = loss.n_in
        self._has_head = head is not None
        self._chunk_size = chunk_size
        self._shares = Shares(tl.Serial() if head is None else head, loss)
        self._is_of_positions = loss.name in _OVER_POSITIONS and _is_of_trax(loss)
        module = loss.module if isinstance(loss, tl.Wrapped) else None
        is_plain = type(module) in WEIGHING and getattr(module, "reduction", None) in (
            "mean",
            "sum",
        )
        self._is_of_classes = is_plain and weighs_by_targets(loss)
        self.is_known = self._is_of_positions or self._is_of_classes

    def forward(self, inputs: Any) -> torch.Tensor:
        """Returns the loss."""
        items = (inputs,) if self.n_in == 1 else tuple(inputs)
        items, n_chunks = self._laid_out(items)
        pairs = self._shares.cut(items, n_chunks)
        leaves = list(_nest.leaves(items))
        named = {k: p for k, p in self.head_and_loss.named_parameters() if p.requires_grad}
        places = [i for i, leaf in enumerate(leaves) if getattr(leaf, "requires_grad", False)]
        if not torch.is_grad_enabled() or not (places or named):
            losses = [self.head_and_loss(self._packed(chunk)) for chunk, _ in pairs]
            return _total(losses, [share for _, share in pairs])
        chunks = [chunk for chunk, _ in pairs]
        shares = [_detached(share) for _, share in pairs]
        work = _Work(self, chunks, shares, places, list(named))
        wanted: list[torch.Tensor] = [*(leaves[i] for i in places), *named.values()]
        with torch.no_grad():
            losses, grads, others = work.run(wanted)
        apply: Any = _GradientsAtOnce.apply  # torch says nothing of its types
        total, losses = apply(losses, shares, grads, *wanted, *others)
        if any(getattr(share, "requires_grad", False) for _, share in pairs):
            # Weights that the model computes: they have a say in what each chunk stands for, too.
            known = zip(pairs, shares, losses, strict=True)
            total = total + sum((share - fixed) * loss for (_, share), fixed, loss in known)
        result: torch.Tensor = total
        return result

    def _packed(self, chunk: tuple[Any, ...]) -> Any:
        return tl.inputs_from_stack(chunk, self.n_in)

    def _laid_out(self, items: tuple[Any, ...]) -> tuple[tuple[Any, ...], int]:
        """Returns the items with what is cut along axis 0, and into how many chunks."""
        first = next(_nest.leaves(items))
        n_positions = 1  # in a row
        if self._is_of_classes and first.dim() > 1 and (first.dim() == 2 or not self._has_head):
            items = _classes_last(items)
        elif self._is_of_positions:
            flat = _positions_first(items, self._has_head)
            if flat is None:
                return items, 1  # they do not agree, and the loss says so best itself
            items = flat
        else:
            n_positions = math.prod(first.shape[1:-1])
        # The only axis that a head or classes have is none of positions.
        n_needed = 2 if self._has_head or self._is_of_classes else 1
        n_rows = len(next(_nest.leaves(items))) if first.dim() >= n_needed else 1
        n_in_chunk = max(1, self._chunk_size // max(1, n_positions))
        return items, max(1, math.ceil(n_rows / n_in_chunk))


class _Work:
    """The chunks of a loss, and how one of them is computed.

    Args:
      chunked: the loss.
      chunks: of its inputs.
      shares: what each counts for.
      places: which leaves of a chunk need a gradient.
      names: which parameters do.
    """

    def __init__(
        self,
        chunked: ChunkedLoss,
        chunks: list[tuple[Any, ...]],
        shares: list[Any],
        places: list[int],
        names: list[str],
    ):
        self._chunked = chunked
        self._chunks = chunks
        self._shares = shares
        self._places = places
        self._names = names

    def run(
        self, wanted: list[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[_Grad], list[torch.Tensor]]:
        """Computes all chunks.

        Returns:
          `(losses, grads, others)`: each chunk's loss; the gradients of their total, of what is
          wanted and of the others; and these, what else is trained that the loss depends on.
        """
        n = len(self._places)
        # In place of the parameters, whose own hooks wait for the gradient of the whole.
        params = [p.detach().requires_grad_() for p in wanted[n:]]
        in_place = dict(zip(self._names, params, strict=True))
        outs: list[_Grad] = [None] * n
        sums: dict[torch.Tensor, _Grad] = dict.fromkeys(params)
        losses = []
        for i, (chunk, share) in enumerate(zip(self._chunks, self._shares, strict=True)):
            loss, grads, of_weights = self._one(chunk, share, in_place)
            losses.append(loss)
            grad = None
            for k, grad in enumerate(grads):
                if grad is not None:
                    outs[k] = self._put(outs[k], grad, i, wanted[k])
            for p, grad in of_weights.items():
                sums[p] = sums.get(p) if grad is None else _add(sums.get(p), grad)
            del grads, of_weights, grad
        summed = [None if s is None else s.to(p.dtype) for p, s in sums.items()]
        return losses, [*outs, *summed], list(sums)[len(params) :]

    def _put(
        self, out: torch.Tensor | None, grad: torch.Tensor, i: int, whole: torch.Tensor
    ) -> torch.Tensor:
        """Puts a chunk's gradient in its place in that of the whole."""
        if out is None:
            out = torch.zeros(whole.shape, dtype=whole.dtype, device=whole.device)
        n = len(self._chunks)
        (torch.tensor_split(out, n)[i] if n > 1 else out).copy_(grad)
        return out

    def _one(
        self, chunk: tuple[Any, ...], share: Any, params: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, tuple[_Grad, ...], dict[torch.Tensor, _Grad]]:
        """Returns a chunk's loss, and the gradients of its leaves and of weights."""
        leaves = [_detached(leaf) for leaf in _nest.leaves(chunk)]
        tracked = [leaves[i].requires_grad_() for i in self._places]
        inputs = self._chunked._packed(_nest.rebuild(chunk, leaves))
        layer = self._chunked.head_and_loss
        with torch.enable_grad():
            loss = torch.func.functional_call(layer, params, (inputs,))
        wanted = [*tracked, *params.values()]
        others = [] if self._chunked.is_known else _others(loss, wanted)
        wanted += others
        if isinstance(share, torch.Tensor):
            weight = share.to(loss.dtype).expand(loss.shape)
        else:  # filled on the device: a copy to it would be waited for
            weight = torch.full_like(loss, share)
        with torch.autocast(loss.device.type, enabled=False):  # as in a backward pass of its own
            # Others may be reached through activations, whose backward pass is still to come.
            grads = torch.autograd.grad(loss, wanted, weight, bool(others), allow_unused=True)
        n = len(tracked)
        return loss.detach(), grads[:n], dict(zip(wanted[n:], grads[n:], strict=True))


def _others(loss: torch.Tensor, known: list[torch.Tensor]) -> list[torch.Tensor]:
    """Returns the leaves that a loss depends on besides those that are known.

    Raises:
      ValueError: if one has hooks.
    """
    found, seen, due = list[torch.Tensor](), set(), [loss.grad_fn]
    while due:
        node = due.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = _torch_private.leaf_of(node)
        if leaf is not None:
            found.append(leaf)
        due += [following for following, _ in node.next_functions]
    passed_over = set(known)
    others = [leaf for leaf in found if leaf not in passed_over]
    for leaf in others:
        if _torch_private.gradient_hooks(leaf)[0]:
            raise ValueError(
                f"Chunks need weights whose hooks may wait for the gradient of the whole, and the "
                f"loss reaches one of shape {tuple(leaf.shape)} by itself, whose hooks would see "
                f"each chunk's, too. Take them off, or leave loss_chunk_size at 0."
            )
    return others


class _GradientsAtOnce(torch.autograd.Function):
    """Hands out gradients that are there already; the backward pass scales them in place.

    The scaling makes them unfit for a second backward pass, which autograd then refuses.
    """

    @staticmethod
    def forward(
        ctx: Any, losses: list[Any], shares: list[Any], grads: list[Any], *wanted: torch.Tensor
    ) -> Any:
        ctx.save_for_backward(*grads)
        each = torch.stack(losses)
        ctx.mark_non_differentiable(each)
        return _total(losses, shares), each

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: torch.Tensor, _: Any
    ) -> Any:
        grads = ctx.saved_tensors
        for grad in grads:
            if grad is not None:
                grad.mul_(gradient)
        return None, None, None, *grads


def _total(losses: list[torch.Tensor], shares: list[Any]) -> torch.Tensor:
    """Returns the loss of all chunks together, in the type of each."""
    dtype = _sum_type(losses[0].dtype)
    terms = [loss.to(dtype) * share for loss, share in zip(losses, shares, strict=True)]
    return torch.stack(terms).sum().to(losses[0].dtype)


def _add(total: torch.Tensor | None, grad: torch.Tensor) -> torch.Tensor:
    """Adds a gradient to the sum so far, in float32 or better."""
    if total is None:
        # Another gradient may be the very same tensor, so it is no place for a sum.
        total = torch.zeros(grad.shape, dtype=_sum_type(grad.dtype), device=grad.device)
    return total.add_(grad)


def _sum_type(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _detached(x: Any) -> Any:
    return x.detach() if isinstance(x, torch.Tensor) else x


def _positions_first(items: tuple[Any, ...], has_head: bool) -> tuple[Any, ...] | None:
    """Returns the items of one of Trax's losses with positions along axis 0; None if they differ.

    Targets are one for each position, or as many as there are activations, and weights broadcast
    to them; their last axis stays, then.
    """
    x, targets, *weights = items
    n = max(x.dim() - 1, 0 if has_head else 1)
    lead = x.shape[:n]
    if not n or targets.shape[:n] != lead or targets.dim() > n + 1:
        return None
    spread = [targets]
    for w in weights:
        w = w[(None,) * (targets.dim() - w.dim())]
        try:
            spread.append(w.expand(*lead, *w.shape[n:]))
        except RuntimeError:
            return None
    return tuple(item.flatten(0, n - 1) for item in (x, *spread))


def _classes_last(items: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns (batch, classes, ...) activations and their targets with positions along axis 0."""
    x, targets = items
    if x.dim() == 2:
        return items
    if targets.dim() == x.dim():  # probabilities
        return tuple(item.movedim(1, -1).flatten(0, -2) for item in items)
    return x.movedim(1, -1).flatten(0, -2), targets.flatten()


def _ends_of(layer: tl.Layer) -> list[tl.Layer]:
    """Returns layers that are a model in series, cut as finely as its end asks for."""
    if type(layer) is tl.Serial and layer.sublayers and not has_hooks(layer):
        return [*layer.sublayers[:-1], *_ends_of(layer.sublayers[-1])]
    if not isinstance(layer, tl.Wrapped) or layer.n_in != 1 or has_hooks(layer):
        return [layer]
    modules = _modules_of(layer.module)
    if modules == [layer.module]:
        return [layer]
    n_last = 2 if isinstance(modules[-1], nn.LogSoftmax) else 1
    # One module goes on as such: what travels between its children is no data stack.
    before = [nn.Sequential(*modules[:-n_last])] if modules[:-n_last] else []
    return [tl.as_layer(module, n_in=1) for module in (*before, *modules[-n_last:])]


def _modules_of(module: nn.Module) -> list[nn.Module]:
    """Returns the modules that an `nn.Sequential` runs, its last one's in its place."""
    if type(module) is not nn.Sequential or not len(module) or has_hooks(module):
        return [module]
    *before, last = module
    modules = [*before, *_modules_of(last)]
    if isinstance(modules[-1], nn.LogSoftmax):
        modules[-2:-1] = [m for each in modules[-2:-1] for m in _modules_of(each)]
    return modules


def _is_dense(layer: tl.Layer) -> bool:
    # No subclass, and nothing with hooks: it may look at several positions, or change a buffer
    # whenever it is called.
    return type(_inner(layer)) in (tl.Dense, nn.Linear) and not _is_heard(layer)


def _is_log_softmax(layer: tl.Layer) -> bool:
    if _is_heard(layer):
        return False
    module = _inner(layer)
    if isinstance(module, nn.LogSoftmax):
        return module.dim == -1
    return layer.name == "LogSoftmax" and getattr(_function_of(layer), "keywords", {}) == {
        "axis": -1
    }


def _is_heard(layer: tl.Layer) -> bool:
    return has_hooks(layer) or has_hooks(_inner(layer))


def _inner(layer: tl.Layer) -> nn.Module:
    return layer.module if isinstance(layer, tl.Wrapped) else layer


def _is_of_trax(loss: tl.Layer) -> bool:
    """Tells whether a loss is made in Trax's room for them, and not just called like one."""
    while isinstance(loss, tl.Serial) and loss.sublayers:
        loss = loss.sublayers[-1]
    function = _function_of(loss)
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__module__", "") == tl.L2Loss.__module__


def _function_of(layer: tl.Layer) -> Any:
    return getattr(layer, "_forward_fn", None)
