"""How mistakes at the doors are answered: by the line to write, and by a short traceback.

A door is what users call: `Loop`, `TrainTask`, `Loop.run`. Words that other libraries use there are
answered with ours, and of what goes wrong behind it users see their own lines, and where it failed.
"""

import difflib
import dis
import functools
import inspect
import logging
import os
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, TypeVar, cast

_log = logging.getLogger("trax_torch")

_Function = TypeVar("_Function", bound=Callable[..., Any])

_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep
_LIKE_A_USER = _OURS + "examples" + os.sep
_PLUMBING = ("_wrapped_call_impl", "_call_impl", "decorate_context")  # torch's, between modules
_NOTES = {  # by torch's own words for what goes wrong in a backward pass
    "does not require grad and does not have a grad_fn": (
        "No gradient gets from the loss to the weights: the model, or the loss, cuts it off by "
        "detach(), item(), numpy() or torch.no_grad(), or makes a tensor anew by torch.tensor(...)."
    ),
    "grad can be implicitly created only for scalar outputs": (
        "A loss is one number; this one is several. Take its mean: reduction='mean'."
    ),
    "modified by an inplace operation": (
        "The model changes in place what its gradient needs: write x = x + y for x += y, "
        "inplace=False, and no methods that end in _."
    ),
}
_RAISE = dis.opmap["RAISE_VARARGS"]


def is_ours(frame: types.FrameType) -> bool:
    """Tells whether a frame runs a line of this package, its examples left out."""
    file = frame.f_code.co_filename
    return file.startswith(_OURS) and not file.startswith(_LIKE_A_USER)


def shorten(error: BaseException) -> None:
    """Cuts lines of ours, and torch's plumbing, out of the traceback of an error and its causes.

    The lines of users and libraries stay, and the last one, where it failed. Where that is a line
    of ours that did not mean to raise, the fault is ours, and every line stays.
    """
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        each.__traceback__ = _shortened(each.__traceback__)
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)


def _shortened(traceback: types.TracebackType | None) -> types.TracebackType | None:
    entries = []
    while traceback is not None:
        entries.append(traceback)
        traceback = traceback.tb_next
    if not entries:
        return None
    last = entries[-1]
    is_meant = last.tb_frame.f_code.co_code[last.tb_lasti] == _RAISE
    if is_ours(last.tb_frame) and not is_meant:
        return entries[0]
    short = last
    for entry in reversed(entries[:-1]):
        frame = entry.tb_frame
        if not is_ours(frame) and frame.f_code.co_name not in _PLUMBING:
            short = types.TracebackType(short, frame, entry.tb_lasti, entry.tb_lineno)
    return short


def door(
    name: str, instead: Mapping[str, str], renamed: Mapping[str, str] | None = None
) -> Callable[[_Function], _Function]:
    """Returns a decorator: wrong argument names get the line to write, tracebacks are short.

    Args:
      name: what users call it.
      instead: by argument names that other libraries have, what to write here.
      renamed: by names that arguments had in older releases of Trax, those they have; they are
        taken as such, with a note in the log.
    """

    def decorate(function: _Function) -> _Function:
        known = [n for n in inspect.signature(function).parameters if n != "self"]

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            try:
                for old, new in (renamed or {}).items():
                    if old in kwargs and new not in kwargs:
                        kwargs[new] = kwargs.pop(old)
                        _log.info("%s(%s=) was its name in Trax 1.3.4; it is %s=.", name, old, new)
                unknown = [word for word in kwargs if word not in known]
                if unknown:
                    raise TypeError(_no_argument(name, unknown[0], known, instead))
                return function(*args, **kwargs)
            except Exception as error:
                shorten(error)
                _note(error)
                raise

        return cast(_Function, checked)

    return decorate


def _note(error: Exception) -> None:
    """Adds what to do about an error of torch's that names no module."""
    for words, note in _NOTES.items():
        if words in str(error) and not isinstance(error, (TypeError, AttributeError)):
            error.add_note(note)


def _no_argument(name: str, word: str, known: list[str], instead: Mapping[str, str]) -> str:
    return f"{name} has no argument {word!r}. " + (
        _advice(word, known, instead) or f"It takes {', '.join(known)}."
    )


def no_attribute(thing: object, word: str, instead: Mapping[str, str]) -> NoReturn:
    """Raises AttributeError with the line to write; for `__getattr__`.

    A property that raised AttributeError itself comes here, too, and raises its own again.
    """
    if hasattr(type(thing), word):
        object.__getattribute__(thing, word)
    kind = type(thing).__name__
    public = [n for n in dir(type(thing)) if not n.startswith("_")]
    advice = "" if word.startswith("_") else _advice(word, public, instead)
    raise AttributeError(f"{kind!r} object has no attribute {word!r}. {advice}".rstrip())


def _advice(word: str, known: Iterable[str], instead: Mapping[str, str]) -> str:
    if word in instead:
        return f"Write {instead[word]}."
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    return f"Did you mean {close[0]!r}?" if close else ""
