"""Sentences about shapes, checked whenever a layer is called.

A sentence such as `'bld,b11l->bld'` has a word for each tensor: those that come in, an arrow, those
that go out. In a word, a letter is one axis, and the same letter is the same size throughout the
sentence; a digit is an axis of just that size; `...` is any number of axes, the same in all words
that have it. Nothing is checked in compiled code, where shapes are checked as it is made.
"""

import functools
import inspect
import string
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from trax_torch.layers.base import Layer
from trax_torch.layers.combinators import Serial

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


def assert_shape(specification: str) -> Callable[[_Decorated], _Decorated]:
    """Returns a decorator for layer classes, and for functions that return a layer.

    A decorated class checks what goes into `forward` and what comes out. The layer that a decorated
    function returns is put in an `AssertFunction`.

    Args:
      specification: a sentence, see the module's docstring; `'...a->...b'` fits Dense.

    Raises:
      ValueError: if it is no sentence.
      LayerError: from the layer, when shapes do not fit.

    Example:
      >>> @assert_shape('...d->...')
      ... class Norm(Layer):
      ...     def forward(self, x):
      ...         return x.norm(dim=-1)
      >>> Norm()(torch.ones(2, 4)).shape
      torch.Size([2])

    Source: Trax `layers/assert_shape.py::assert_shape`.
    """
    _parse(specification, arrow=True)
    message = _defined_here()

    def decorate(target: Any) -> Any:
        if inspect.isclass(target):
            return _with_checked_forward(target, specification, message)

        @functools.wraps(target)
        def make(*args: Any, **kwargs: Any) -> Layer:
            return AssertFunction(specification, target(*args, **kwargs), message)

        return make

    return decorate


def AssertFunction(specification: str, layer: Any, message: str | None = None) -> Layer:
    """Returns a layer that runs another and checks what goes in and what comes out.

    It prints, and lays out its weights, as a Serial of that layer.

    Args:
      specification: a sentence with an arrow, see the module's docstring.
      layer: what is run.
      message: ends the error's text; by default it says where this function was called.

    Raises:
      LayerError: when it is called, if shapes do not fit, or the sentence is none.

    Example:
      >>> AssertFunction('...d->...d', Serial())(torch.ones(2, 4)).shape
      torch.Size([2, 4])

    Source: Trax `layers/assert_shape.py::AssertFunction`.
    """
    return _Checked(specification, layer, message or _defined_here())


class AssertShape(Layer):
    """Passes tensors on if their shapes fit a sentence without an arrow.

    Args:
      spec: a word for each tensor, see the module's docstring.
      message: ends the error's text; by default it says where the layer was created.
      visible_layer: shows the layer where a model is printed.

    Raises:
      LayerError: when it is called, if shapes do not fit, or the sentence is none.

    Example:
      >>> _ = AssertShape('bld,b11l')((torch.ones(2, 3, 4), torch.ones(2, 1, 1, 3)))

    Source: Trax `layers/assert_shape.py::AssertShape`.
    """

    def __init__(self, spec: str, message: str | None = None, visible_layer: bool = False):
        n = spec.count(",") + 1
        super().__init__(n_in=n, n_out=n)
        self._spec = spec
        self._message = message or _defined_here()
        self._visible = visible_layer

    def forward(self, xs: Any) -> Any:
        """Returns its inputs."""
        if not torch.compiler.is_compiling():
            (words,) = _parse(self._spec, arrow=False)
            _Check(self._spec, self._message).fit("input", words, xs)
        return xs

    def __repr__(self) -> str:
        return super().__repr__() if self._visible else ""


class _Checked(Serial):
    """One layer with a sentence about what goes in and comes out."""

    def __init__(self, specification: str, layer: Any, message: str):
        super().__init__(layer, name="Serial")
        self._specification = specification
        self._message = message

    def forward(self, x: Any) -> Any:
        if torch.compiler.is_compiling():
            return super().forward(x)
        return _checked_call(self._specification, self._message, super().forward, x)


def _with_checked_forward(cls: Any, specification: str, message: str) -> Any:
    """Puts checks around a class's `forward`; the class stays what it is, and pickles."""
    forward = cls.forward

    @functools.wraps(forward)
    def checked(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        def run(x: Any) -> Any:
            return forward(self, x, *args, **kwargs)

        if torch.compiler.is_compiling():
            return run(x)
        return _checked_call(specification, message, run, x)

    cls.forward = checked
    return cls


def _checked_call(sentence: str, message: str, run: Callable[[Any], Any], x: Any) -> Any:
    words_in, words_out = _parse(sentence, arrow=True)
    check = _Check(sentence, message)
    check.fit("input", words_in, x)
    y = run(x)
    check.fit("output", words_out, y)
    return y


@dataclass(frozen=True)
class _Word:
    """What one tensor's shape must be: letters and digits, with `...` between them or without."""

    text: str
    before: str
    after: str
    is_open: bool


@functools.cache
def _parse(sentence: str, arrow: bool) -> tuple[tuple[_Word, ...], ...]:
    """Returns the words of a sentence: those before the arrow and those after it."""
    sides = sentence.split("->")
    if len(sides) != 1 + arrow:
        form = "words->words, such as 'bld->bld'" if arrow else "words without an arrow, as 'bld,d'"
        raise ValueError(f"A sentence about shapes has the form {form}; got {sentence!r}.")
    return tuple(tuple(_word(text, sentence) for text in side.split(",")) for side in sides)


def _word(text: str, sentence: str) -> _Word:
    before, ellipsis, after = text.partition("...")
    for sign in before + after:
        if sign not in string.ascii_letters + string.digits:
            raise ValueError(
                f"A word of a sentence about shapes is made of letters, digits and at most one "
                f"'...'; got {text!r} in {sentence!r}, with {sign!r}."
            )
    return _Word(text, before, after, bool(ellipsis))


class _Check:
    """One reading of a sentence: what its letters turned out to be."""

    def __init__(self, sentence: str, message: str):
        self._sentence = sentence
        self._message = message
        self._sizes: dict[str, tuple[Any, str]] = {}  # letter -> (size, where it was seen)

    def fit(self, side: str, words: tuple[_Word, ...], xs: Any) -> None:
        """Raises ValueError unless the tensors fit the words and what the letters stand for."""
        tensors = xs if isinstance(xs, (tuple, list)) else (xs,)
        shapes = [tuple(x.shape) for x in tensors]
        if len(shapes) != len(words):
            self._fail(f"it has {len(words)} {side}s, but {len(shapes)} came", side, shapes)
        for number, (word, shape) in enumerate(zip(words, shapes, strict=True), start=1):
            where = f"{side} {number}"
            n, m = len(word.before), len(word.after)
            if len(shape) < n + m or (len(shape) != n + m and not word.is_open):
                least = "at least " if word.is_open else ""
                reason = f"{word.text!r} has {least}{n + m} axes, but {where} has {len(shape)}"
                self._fail(reason, side, shapes)
            end = len(shape) - m
            found = [*zip(word.before, shape[:n], strict=True)]
            found += zip(word.after, shape[end:], strict=True)
            if word.is_open:
                found.append(("...", shape[n:end]))
            for letter, size in found:
                known, earlier = self._sizes.setdefault(letter, (size, where))
                if letter.isdigit():
                    known, earlier = int(letter), "the sentence"
                if size != known:
                    reason = f"{letter} is {known} in {earlier}, but {size} in {where}"
                    self._fail(reason, side, shapes)

    def _fail(self, reason: str, side: str, shapes: list[Any]) -> None:
        raise ValueError(
            f"The shapes do not fit {self._sentence!r}: {reason}. The {side} shapes are "
            f"{', '.join(map(str, shapes))}. {self._message}"
        )


def _defined_here() -> str:
    """Says which line asked for the check: the first one outside this file."""
    frame: Any = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return f"Defined at {frame.f_code.co_filename}:{frame.f_lineno}"
