"""Objects of classes that the caller names come back as pickle would have made them."""

import collections
import dataclasses
import enum
import pickle

import numpy as np
import pytest
import torch
import trax_files
from pickled import (
    PROTOCOLS,
    ByClass,
    ByState,
    Names,
    Outer,
    Pair,
    Plain,
    Sizes,
    Slots,
    X,
    read,
    there_and_back,
)

from trax_torch import shapes
from trax_torch.interop import trax_checkpoint as tc
from trax_torch.supervised import history
from trax_torch.supervised.training import pickle_to_file, unpickle_from_file


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    x: object


def make_plain(x):
    return Plain(x)


class ByFunction(Plain):
    def __eq__(self, other):
        return self.x == other.x

    def __reduce__(self):
        return make_plain, (self.x,)


class ByKeyword(Plain):
    def __new__(cls, *, x):
        made = super().__new__(cls)
        made.x = x
        return made

    def __init__(self, *, x):
        pass

    def __getnewargs_ex__(self):
        return (), {"x": self.x}

    def __eq__(self, other):
        return self.x == other.x


class Color(enum.Enum):
    RED = 1


ALLOWED = {
    "a dataclass": (Plain(X, 2), [Plain]),
    "a frozen dataclass with slots": (Frozen(X), [Frozen]),
    "slots and attributes": (Slots(X), [Slots]),
    "its own reduce": (ByClass(X, 2), [ByClass]),
    "a function": (ByFunction(X), [Plain, make_plain]),
    "its own state": (ByState(X), [ByState]),
    "a namedtuple": (Pair(X, 1), [Pair]),
    "a list": (Names([X, X, 1]), [Names]),
    "a dict": (Sizes(a=X, b=1), [Sizes]),
    "an enum": (Color.RED, [Color]),
    "a class within a class": (Outer.Inner(X), [Outer.Inner]),
    "the class itself": (Plain, [Plain]),
    "keys": ({Color.RED: 1, Pair(1, 2): 2, Frozen(3): 3}, [Color, Pair, Frozen]),
    "a path": (torch.Size([2, 3]), [torch.Size]),
    "one in another": (Plain(Pair(Color.RED, 1)), (Plain, Pair, Color)),
    "a default": (collections.defaultdict(Plain), [Plain]),
    "a bare class": (Plain(1), Plain),
    "a shape": (shapes.ShapeDtype((2, 3), np.int32), [shapes.ShapeDtype]),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("obj", "allow"), ALLOWED.values(), ids=ALLOWED)
def test_objects_of_allowed_classes_come_back(obj, allow, protocol):
    """As pickle would have made them."""
    if protocol < 4 and "." in getattr(type(obj), "__qualname__", ""):
        pytest.skip("before protocol 4, Python writes a class within a class as a call of getattr")

    got = read(pickle.dumps(obj, protocol), allow=allow)

    assert got == obj
    assert type(got) is type(pickle.loads(pickle.dumps(obj, protocol)))


def test_an_object_made_with_keywords_comes_back():
    """Protocols 4 and 5 have an opcode for it."""
    assert there_and_back(ByKeyword(x=X), allow=[ByKeyword]) == ByKeyword(x=X)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_object_in_itself_comes_back(protocol):
    loop = Plain(None)
    loop.x = [loop]

    got = read(pickle.dumps([loop, loop], protocol), allow=[Plain])

    assert got[0] is got[1] is got[0].x[0]


def test_a_history_of_trax_becomes_ours():
    """A class that has Trax's address here stands for Trax's."""
    theirs = trax_files.History({"train": {"loss": [(1, 0.5), (2, np.float32(0.25))]}})
    with trax_files.stand_ins():
        data = pickle.dumps(theirs, 5)

    got = read(data, allow=[history.History])

    assert isinstance(got, history.History)
    assert got.get("train", "loss") == [(1, 0.5), (2, 0.25)]


def test_an_allowed_class_that_fails_is_named():
    """The error of the class is the cause."""
    data = pickle.dumps(ByClass(1)).replace(b"K\x01\x85", b")", 1)

    with pytest.raises(tc.CheckpointError, match=r"model\.pkl.*: ByClass cannot be made") as caught:
        read(data, allow=[ByClass])
    assert isinstance(caught.value.__cause__, TypeError)


@pytest.mark.parametrize("allow", [["os.system"], [3], [Color.RED], "Plain"])
def test_only_classes_and_functions_can_be_allowed(allow):
    pickle_to_file(1, "model.pkl")

    with pytest.raises(TypeError, match="allow takes classes and functions; got .* the class its"):
        unpickle_from_file("model.pkl", allow=allow)
