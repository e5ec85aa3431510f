"""Functions made of functions: gradients, maps over a batch, and gradients of one's own."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import checkpoint

from trax_torch import _nest, _recompute, _seeds, _torch_private, shapes
from trax_torch.fastmath import _arrays

_Fn = Callable[..., Any]


def _tensors_of(args: Any) -> Any:
    """Returns arguments with arrays and floats as tensors; whole numbers and others as they are."""

    def of_leaf(x: Any) -> Any:
        x = _arrays.as_tensors(x, like)
        return torch.tensor(x) if isinstance(x, float) else x

    like = _arrays.first_tensor(args)
    return _nest.map_leaves(of_leaf, args)


def _answer(result: Any, args: Any) -> Any:
    """Returns tensors where one was among the arguments, else arrays."""
    if _arrays.first_tensor(args) is not None:
        return result
    return _nest.map_leaves(lambda x: _arrays.of_torch(x) if isinstance(x, Tensor) else x, result)


def grad(fun: _Fn, argnums: int | Sequence[int] = 0, has_aux: bool = False) -> _Fn:
    """Returns the function that gives the gradient of `fun`, whose value is one number.

    Args:
      fun: a function of tensors, or of nests of them, in the functions of `fastmath` or torch.
      argnums: by which argument, or arguments.
      has_aux: whether `fun` answers a pair, of which the second is handed on: `(gradient, aux)`.

    Returns:
      A function of the same arguments. Numbers and arrays are answered with arrays, tensors with
      tensors.

    Example:
      >>> float(grad(lambda x: 3 * x * x)(5.0))
      30.0

    Source: Trax `fastmath/ops.py::grad`; `torch.func.grad`.
    """
    argnums = argnums if isinstance(argnums, int) else tuple(argnums)

    @functools.wraps(fun)
    def gradient(*args: Any, **kwargs: Any) -> Any:
        of = torch.func.grad(fun, argnums, has_aux)
        return _answer(of(*_tensors_of(args), **kwargs), args)

    return gradient


def value_and_grad(fun: _Fn, argnums: int | Sequence[int] = 0, has_aux: bool = False) -> _Fn:
    """Returns the function that gives `(value, gradient)`; arguments are those of `grad`.

    With `has_aux` it gives `((value, aux), gradient)`.

    Example:
      >>> [float(x) for x in value_and_grad(lambda x: 3 * x * x)(5.0)]
      [75.0, 30.0]
    """
    argnums = argnums if isinstance(argnums, int) else tuple(argnums)

    @functools.wraps(fun)
    def both(*args: Any, **kwargs: Any) -> Any:
        of = torch.func.grad_and_value(fun, argnums, has_aux)
        gradient, value = of(*_tensors_of(args), **kwargs)
        return _answer((value, gradient), args)

    return both


def vjp(fun: _Fn, *primals: Any, has_aux: bool = False) -> Any:
    """Returns `(outputs, function)`; the latter gives gradients by each input for those of outputs.

    Args:
      fun: a function of tensors, or nests of them.
      primals: its arguments.
      has_aux: whether `fun` answers a pair, of which the second is handed on as a third item.

    Example:
      >>> y, back = vjp(lambda x: x * x, 3.0)
      >>> float(y), float(back(1.0)[0])
      (9.0, 6.0)

    Source: Trax `fastmath/ops.py::vjp`; `torch.func.vjp`.
    """
    outputs, back, *aux = torch.func.vjp(fun, *_tensors_of(primals), has_aux=has_aux)

    def pulled(cotangents: Any) -> Any:
        gradients = back(_tensors_of(cotangents))
        return _answer(gradients, (primals, cotangents))

    return _answer(outputs, primals), pulled, *aux


def vmap(fun: _Fn, in_axes: Any = 0, out_axes: Any = 0) -> _Fn:
    """Returns the function that maps `fun` over an axis of its arguments.

    Args:
      fun: a function of tensors.
      in_axes: which axis of each argument; None for those that are the same for all.
      out_axes: where that axis is put in the results.

    Example:
      >>> vmap(lambda x: x.sum())(np.ones((2, 3), np.float32))
      Array([3., 3.], dtype=float32)

    Source: Trax `fastmath/ops.py::vmap`; `torch.func.vmap`, random numbers different in each part.
    """

    @functools.wraps(fun)
    def mapped(*args: Any, **kwargs: Any) -> Any:
        of = torch.func.vmap(fun, in_axes, out_axes, randomness="different")
        return _answer(of(*_tensors_of(args), **kwargs), args)

    return mapped


def jit(fun: _Fn, **settings: Any) -> _Fn:
    """Returns `fun` itself: torch computes at once, and needs no compiling to do so.

    Args:
      fun: a function.
      settings: JAX's, such as `static_argnums`, of which nothing depends here.

    `torch.compile(fun)` makes it faster, in some seconds.

    Example:
      >>> jit(abs, static_argnums=0) is abs
      True
    """
    return fun


def disable_jit() -> None:
    """Does nothing, since `jit` does nothing."""


def abstract_eval(f: _Fn) -> _Fn:
    """Returns the function that gives the signatures of `f`'s results, and computes nothing.

    Example:
      >>> abstract_eval(lambda x: x.sum(0))(shapes.ShapeDtype((2, 3)))
      ShapeDtype{shape:(3,), dtype:float32}
    """

    def of_shapes(*args: Any) -> Any:
        signatures = shapes.signature(args)
        inputs = _nest.map_leaves(
            lambda s: torch.empty(s.shape, dtype=s.dtype, device="meta"), signatures
        )
        return shapes.signature(f(*inputs))

    return of_shapes


def remat(fun: _Fn) -> _Fn:
    """Returns `fun` so that a backward pass computes it again, and memory holds its inputs alone.

    Under `grad` and its like all is kept if it depends on tensors besides its arguments.

    Example:
      >>> float(grad(remat(lambda x: x * x))(3.0))
      6.0

    Source: Trax `fastmath/ops.py::remat`; `torch.utils.checkpoint`.
    """

    @functools.wraps(fun)
    def again(*args: Any, **kwargs: Any) -> Any:
        if not _torch_private.is_transformed():
            return checkpoint.checkpoint(fun, *args, use_reentrant=False, **kwargs)
        tensors = (x for x in _nest.leaves((args, kwargs)) if isinstance(x, Tensor))
        draws = _seeds.Again(next((x.device for x in tensors), None))

        def once_more(given: Any) -> Any:
            with draws():
                return fun(*given[0], **given[1])

        is_done, results = _recompute.recomputed(
            lambda given: fun(*given[0], **given[1]), once_more, (args, kwargs)
        )
        if is_done:
            return results
        draws.rewind()
        return fun(*args, **kwargs)

    return again


def custom_vjp(f: _Fn, f_fwd: _Fn, f_bwd: _Fn, nondiff_argnums: Sequence[int] = ()) -> _Fn:
    """Returns a function with a backward pass of one's own.

    Args:
      f: what it computes, for which `f_fwd` speaks.
      f_fwd: of the same arguments; returns `(outputs, residuals)`.
      f_bwd: `f_bwd(*others, residuals, gradients)` returns a tuple, the gradient by each argument
        that has one; None for no gradient. `others` are the arguments without one.
      nondiff_argnums: which arguments have no gradient.

    Example:
      >>> clipped = custom_vjp(
      ...     lambda x: x, lambda x: (x, None), lambda _, g: (torch.clamp(g, -0.1, 0.1),))
      >>> round(float(grad(lambda x: 5 * clipped(x))(1.0)), 3)
      0.1

    Source: Trax `fastmath/ops.py::custom_vjp`; JAX `custom_vjp`; `torch.autograd.Function`.
    """
    others = tuple(nondiff_argnums)

    @functools.wraps(f)
    def function(*args: Any) -> Any:
        forms: list[Any] = []  # of outputs and residuals, whose leaves travel as one tuple

        def forward(*leaves: Any) -> tuple[Any, ...]:
            forms[:] = f_fwd(*_nest.rebuild(args, list(leaves)))
            made = _nest.leaves(tuple(forms))
            return tuple(
                x.view_as(x) if isinstance(x, Tensor) and any(x is leaf for leaf in leaves) else x
                for x in made
            )

        def backward(residuals: list[Any], gradients: list[Any]) -> list[Any]:
            kept = _nest.rebuild(forms[1], residuals)
            given = f_bwd(*(args[i] for i in others), kept, _nest.rebuild(forms[0], gradients))
            by_arg = iter(given)
            flat: list[Any] = []
            for i, arg in enumerate(args):
                gradient = None if i in others else next(by_arg)
                n = sum(1 for _ in _nest.leaves(arg))
                flat += [None] * n if gradient is None else _nest.leaves(gradient)
            return flat

        def n_outputs() -> int:
            return sum(1 for _ in _nest.leaves(forms[0]))

        apply: Any = _Custom.apply
        results = apply(forward, backward, n_outputs, *_nest.leaves(args))
        return _nest.rebuild(forms[0], list(results[: n_outputs()]))

    return function


class _Custom(torch.autograd.Function):
    """A function of tensors and its gradient, both given.

    Residuals go out as outputs without gradients, that `torch.func` sees them.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(forward: _Fn, backward: _Fn, n_outputs: _Fn, *leaves: Any) -> Any:
        return forward(*leaves)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, ctx.pull_back, n_outputs = inputs[:3]
        ctx.n = n_outputs()
        residuals = output[ctx.n :]
        ctx.residuals = [Tensor if isinstance(x, Tensor) else x for x in residuals]
        tensors = [x for x in residuals if isinstance(x, Tensor)]
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        saved = iter(ctx.saved_tensors)
        kept = [next(saved) if x is Tensor else x for x in ctx.residuals]
        return None, None, None, *ctx.pull_back(kept, list(gradients[: ctx.n]))
