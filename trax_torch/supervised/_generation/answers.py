"""Types out as types in: a prompt of numpy's is answered in numpy."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import numpy as np

from trax_torch import _nest

_Function = TypeVar("_Function", bound=Callable[..., Any])


def in_kind(decode: _Function) -> _Function:
    """Lets a call of decoding that is given arrays or lists answer arrays; tensors, tensors.

    What counts are `inputs`, or without any a `start_id` for each row. Of a tokenizer's mapping it
    is `input_ids`.
    """

    @functools.wraps(decode)
    def answered(model: Any, inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        result = decode(model, inputs, *args, **kwargs)
        given = kwargs.get("start_id", args[2] if len(args) > 2 else None)
        given = given if inputs is None else inputs
        if isinstance(given, Mapping):
            given = given.get("input_ids")
        if given is None or _is_number(given) or not _nest.has_foreign(given):
            return result
        return _each(result) if isinstance(result, Iterator) else _nest.to_arrays(result)

    return cast(_Function, answered)


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, np.generic)) or getattr(x, "ndim", None) == 0


def _each(stream: Any) -> Iterator[Any]:
    with contextlib.closing(stream):
        for item in stream:
            yield _nest.to_arrays(item)
