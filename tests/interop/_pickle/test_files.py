"""What is pickled to a file comes back; what a file may not do is refused by name."""

import builtins
import collections
import dataclasses
import enum
import errno
import functools
import gzip
import math
import os
import pickle
import random
import resource
import stat
import struct
import time
import tracemalloc

import numpy as np
import pytest
import torch
import trax_files
from hypothesis import given, settings
from hypothesis import strategies as st
from opcodes import call, int64, named, text

from trax_torch import layers as tl
from trax_torch import shapes
from trax_torch.interop import trax_checkpoint as tc
from trax_torch.supervised import history, training
from trax_torch.supervised.training import pickle_to_file, unpickle_from_file

PROTOCOLS = [2, 3, 4, 5]
MARKER = "marker-of-a-file-that-ran"
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _nothing_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not os.path.exists(MARKER)


def read(data, **arguments):
    with open("model.pkl", "wb") as f:
        f.write(data)
    return unpickle_from_file("model.pkl", **arguments)


def there_and_back(obj, gzip=False, **arguments):
    pickle_to_file(obj, "model.pkl", gzip)
    return unpickle_from_file("model.pkl", gzip, **arguments)


def assert_same(a, b):
    """Asserts that two nests have the same types, values and bits."""
    assert type(a) is type(b)
    if isinstance(a, (np.ndarray, np.generic)):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes()
    elif isinstance(a, dict):
        assert_same(list(a), list(b))
        assert_same(list(a.values()), list(b.values()))
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, float) and math.isnan(a):
        assert math.isnan(b)
    else:
        assert a == b


# Plain data.

NUMBERS = (
    st.integers()
    | st.integers(-(1 << 2000), 1 << 2000)
    | st.floats(allow_nan=False)
    | st.booleans()
    | st.complex_numbers(allow_nan=False)
)
TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates too
PLAIN = st.none() | NUMBERS | TEXT | st.binary()
KEYS = PLAIN | st.tuples(PLAIN, PLAIN) | st.frozensets(PLAIN, max_size=3)
ARRAYS = st.builds(
    lambda code, shape, seed: (
        np.random.default_rng(seed).integers(0, 2, shape).astype(code)  # odd bits stay numbers
    ),
    st.sampled_from(["?", "b", "B", "h", "i", "l", "L", "e", "f", "d", "F", "D", ">f", ">i"]),
    st.lists(st.integers(0, 3), max_size=4).map(tuple),
    st.integers(0, 9),
)
LEAVES = (
    PLAIN
    | st.floats()
    | st.binary().map(bytearray)
    | ARRAYS
    | ARRAYS.filter(lambda a: a.size).map(lambda a: a.flat[0])
    | st.sets(KEYS, max_size=3)
    | st.frozensets(KEYS, max_size=3)
)
NESTS = st.recursive(
    LEAVES,
    lambda nests: (
        st.lists(nests, max_size=4)
        | st.lists(nests, max_size=4).map(tuple)
        | st.dictionaries(KEYS, nests, max_size=4)
    ),
    max_leaves=12,
)


@given(NESTS, st.booleans())
@settings(max_examples=100, deadline=None)
def test_plain_data_and_arrays_come_back(nest, gzip):
    """Types, values, order and bits are those that were written, compressed or not."""
    assert_same(there_and_back(nest, gzip), nest)


@given(NESTS, st.sampled_from(PROTOCOLS))
@settings(max_examples=100, deadline=None)
def test_what_python_writes_is_read(nest, protocol):
    """Each protocol from 2 on has its own way for bytes, sets and arrays."""
    data = pickle.dumps(nest, protocol)

    assert_same(read(data), pickle.loads(data))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("write", [pickle.dumps, pickle._dumps], ids=["C", "Python"])
@pytest.mark.parametrize(
    "value",
    [
        b"",
        bytearray(b"\xff"),
        bytearray(),
        set(),
        frozenset(),
        2.5j,
        "\udc80",
        -(1 << 2000),
        torch.float16,
        np.dtype("float32"),
        np.dtype(">i4"),
        collections.OrderedDict(b=1, a=2),
        collections.defaultdict(list, a=[1]),
        collections.defaultdict(dict),
        collections.defaultdict(None, a=1),
        list(range(3000)),
        dict.fromkeys(range(3000)),
        set(range(3000)),
        {np.int64(3): 1, (np.float32(2), "a"): 2},
        functools.reduce(lambda nest, _: [nest, 1], range(200), []),
    ],
    ids=lambda value: str(value)[:20],
)
def test_each_form_of_a_value_is_read(value, write, protocol):
    """Both of Python's picklers, and each value's own opcodes or calls."""
    got = read(write(value, protocol))

    assert_same(got, value)
    assert getattr(got, "default_factory", 0) == getattr(value, "default_factory", 0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "move",
    [
        lambda a: a,
        lambda a: a.T,
        lambda a: a.transpose(1, 2, 0),
        lambda a: a[::2],
        lambda a: a[:0],
        lambda a: a[1, 1, 1],
        lambda a: a.astype(a.dtype.newbyteorder()),
    ],
)
@pytest.mark.parametrize("code", ["?", "i", "Q", "e", "d", "D"])
def test_arrays_are_as_pickle_makes_them(code, move, protocol):
    """Values, type, byte order, memory order, and whether one may write."""
    data = pickle.dumps(move(np.arange(24).astype(code).reshape(2, 3, 4)), protocol)

    got, wanted = read(data), pickle.loads(data)

    assert_same(got, wanted)
    for flag in ("WRITEABLE", "C_CONTIGUOUS", "F_CONTIGUOUS"):
        assert got.flags[flag] == wanted.flags[flag]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_shared_stays_shared(protocol):
    """One list, array or dict under two names is one; what holds itself holds itself."""
    part, array = [1], np.ones(2)
    itself, ring, loop, long = [], ([],), {}, ([], 1, 2, 3)
    itself.append(itself)
    ring[0].append(ring)
    loop["loop"] = loop
    long[0].append(long)

    got = read(pickle.dumps([part, part, array, array, itself, ring, loop, long], protocol))

    assert got[0] is got[1]
    assert got[2] is got[3]
    assert got[4][0] is got[4]
    assert got[5][0][0] is got[5]
    assert got[6]["loop"] is got[6]
    assert got[7][0][0] is got[7]


def test_a_file_of_trax_is_read(tmp_path):
    """Trax writes with the highest protocol, to gzip with the level 2 and the file's name."""
    value = {"step": 3, "loss": [(1, 0.5)], "w": (np.ones((2, 3), np.float32), np.float32(2))}
    with open(tmp_path / "m.pkl.gz", "wb") as f, gzip.GzipFile(None, "wb", 2, f) as g:
        pickle.dump(value, g, protocol=pickle.HIGHEST_PROTOCOL)

    assert_same(unpickle_from_file(tmp_path / "m.pkl.gz", gzip=True), value)


@pytest.mark.parametrize("by", [trax_files.reconstruct_array, trax_files.reconstruct_device_array])
def test_arrays_of_jax_become_arrays_of_numpy(by):
    """Trax's weights are arrays of JAX; nothing of JAX is needed to read them."""
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    with trax_files.stand_ins():
        data = pickle.dumps([trax_files.jax_array(weights, by)], 5)

    assert_same(read(data), [weights])


def test_tensors_come_back_as_arrays():
    """Parameters, views, shared ones, and whole state_dicts."""
    layer = torch.nn.Linear(2, 3)
    view = torch.arange(6.0).reshape(2, 3).T

    got = there_and_back({"a": view, "b": view, "w": layer.weight, "all": layer.state_dict()})

    assert_same(got["a"], view.numpy())
    assert got["a"] is got["b"]
    assert_same(got["w"], layer.weight.detach().numpy())
    assert list(got["all"]) == ["weight", "bias"]


def test_weights_of_a_layer_come_back():
    """A layer takes what its weights were written as."""
    layer, twin = tl.Serial(tl.Dense(3), tl.Dense(2)), tl.Serial(tl.Dense(3), tl.Dense(2))
    layer.init(shapes.ShapeDtype((1, 4)))
    twin.init(shapes.ShapeDtype((1, 4)))

    twin.weights = there_and_back(layer.weights, gzip=True)

    x = torch.ones(1, 4)
    assert torch.equal(layer(x), twin(x))


@pytest.mark.parametrize(
    ("obj", "words"),
    [
        (tl.Dense(3), r"got a module, Dense\. Write its weights"),
        ([torch.nn.ReLU()], r"got a module, ReLU\. Write its weights"),
        (torch.ones(2, dtype=torch.bfloat16), r"numpy has no bfloat16\. Write tensor\.float"),
    ],
)
def test_what_would_not_come_back_is_not_written(obj, words):
    with pytest.raises(TypeError, match=words):
        pickle_to_file(obj, "model.pkl")

    assert os.listdir() == []


def test_the_address_is_that_of_trax():
    assert training.pickle_to_file.__name__ in training.__all__
    assert training.unpickle_from_file.__name__ in training.__all__


# Classes that the caller names.


@dataclasses.dataclass
class Plain:
    x: object
    y: object = None


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    x: object


class Slots:
    __slots__ = ("__dict__", "_x", "y")

    def __init__(self, x):
        self._x, self.z = x, x

    def __eq__(self, other):
        return (self._x, self.z) == (other._x, other.z)

    __hash__ = None


class ByClass(Plain):
    def __reduce__(self):
        return ByClass, (self.x,), {"y": self.y}


def make_plain(x):
    return Plain(x)


class ByFunction(Plain):
    def __eq__(self, other):
        return self.x == other.x

    def __reduce__(self):
        return make_plain, (self.x,)


class ByState(Plain):
    def __getstate__(self):
        return [self.x]

    def __setstate__(self, state):
        self.x, self.y = state[0], None


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


Pair = collections.namedtuple("Pair", "x y")


class Names(list):
    pass


class Sizes(dict):
    pass


class Color(enum.Enum):
    RED = 1


class Outer:
    class Inner(Plain):
        pass


X = {"a": [1, (2, 3)], "w": (1.5, None)}
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


# What is refused.


class Call:
    def __init__(self, function, *args):
        self._call = function, args

    def __reduce__(self):
        return self._call


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("allow", [[], [Plain]])
@pytest.mark.parametrize(
    ("obj", "name"),
    [
        (Call(os.system, f"touch {MARKER}"), r"'posix\.system'.* allow=\[system\]"),
        (Call(eval, f"open({MARKER!r}, 'w')"), r"eval'.* allow=\[eval\]"),
        (Call(__import__, "antigravity"), r"__import__'.* allow=\[__import__\]"),
        (Call(getattr, [], "append"), r"getattr'.* allow=\[getattr\]"),
        (Slots(1), r"test_pickle_files\.Slots'.* allow=\[Slots\]"),
        ([Plain(Slots(1))], r"allow=\[(Slots|Plain)\]"),
        (Outer.Inner(1), "allow="),
        (range(3), "range'"),
        (Slots, r"allow=\[Slots\]"),
        (collections.Counter("aab"), r"collections\.Counter'.* allow=\[Counter\]"),
        (np.random.default_rng(0), r"numpy\.random.* allow="),
        (np.array(["text"]), r"type 'U4'; only numbers and booleans are read"),
        (np.array([None]), r"type 'O8'; only numbers"),
        (np.array(["2020"], "M8[s]"), r"type 'M8'; only numbers"),
        (np.ones(2, "f4,i4"), r"type 'V8'; only numbers"),
        (np.longdouble(1), r"type 'f16'; only numbers"),
        ([np.ndarray], "a class or function of Python's or numpy's as a value"),
        ({"kind": list}, "a class or function of Python's or numpy's as a value"),
        (1 << 5000, "an integer of more than 2040 bits"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_plain_data_is_refused(obj, name, allow, protocol):
    """The error names the file, the class and what to do, and nothing ran."""
    data = pickle.dumps(obj, protocol)

    with pytest.raises(tc.UnsafeCheckpointError, match=rf"model\.pkl is refused: .*{name}") as e:
        read(data, allow=allow)
    assert ("Nothing in it was run." in str(e.value)) == (allow == [])


def test_bfloat16_is_refused_by_name():
    with trax_files.stand_ins():
        data = pickle.dumps(trax_files.bfloat16, 5)

    with pytest.raises(tc.UnsafeCheckpointError, match="bfloat16, which numpy does not have"):
        read(data)


def long(value):
    data = value.to_bytes(255, "little")
    return b"\x8a\xff" + data


def doubled(n):
    """Returns opcodes for a tuple of 2**n empty tuples that shares its halves."""
    return b")\x94" + b"".join(b"h" + bytes([i]) + b"\x86\x94" for i in range(n))


def alike(n):
    """Returns n tuples of integers that all have one hash."""
    prime = (1 << 61) - 1
    return [(i * prime, -i * prime) for i in range(n)]


PLAIN_NAME = named(Plain.__module__, "Plain")
SLOTS_NAME = named(Slots.__module__, "Slots")
RECONSTRUCT = named("numpy.core.multiarray", "_reconstruct")
NDARRAY = named("numpy", "ndarray")
NEW_ARRAY = call(RECONSTRUCT, NDARRAY, b"K\0\x85C\1b")
SCALAR = named("numpy.core.multiarray", "scalar")
FROM_BUFFER = named("numpy.core.numeric", "_frombuffer")
F4 = call(named("numpy", "dtype"), text("f4"), b"\x89\x88")
B1 = call(named("numpy", "dtype"), text("b1"), b"\x89\x88")
ONE = b"C\4\0\0\x80?"
FILL = b"(K\1)" + F4 + b"\x89" + ONE + b"tb"
HUGE = b"(" + int64(1 << 40) + b"t"
BUILTINS = {"set": b"]", "frozenset": b"]", "bytearray": b"C\0"}

HOSTILE = {
    "asks for 4 GB": call(named("builtins", "bytearray"), int64(4 << 30)),
    "asks for 4 GB of bytes": call(named("builtins", "bytes"), int64(4 << 30)),
    "asks for 4 GB of text": call(named("_codecs", "encode"), int64(4 << 30), text("latin1")),
    "encodes by another codec": call(named("_codecs", "encode"), text("a"), text("unicode_escape")),
    "encodes to no bytes": call(named("_codecs", "encode"), text("\u1234"), text("latin1")),
    "a set of a number": call(named("builtins", "set"), int64(4 << 30)),
    "a set of text": call(named("builtins", "set"), text("abc")),
    "calls list": call(named("builtins", "list"), b")"),
    "calls int": call(named("builtins", "int"), text("9" * 200)),
    "calls what was not allowed": call(named("os", "system"), text(f"touch {MARKER}")),
    "calls an allowed object": call(call(PLAIN_NAME, b"K\1"), b"K\1"),
    "calls a tuple of names": call(PLAIN_NAME, NDARRAY),
    "calls with no tuple": PLAIN_NAME + b"]R",
    "makes no class": b"K\1)\x81",
    "makes a name": NDARRAY + b")\x81",
    "makes with odd keywords": PLAIN_NAME + b")}K\1K\1s\x92",
    "names a method of what is allowed": call(
        named(Plain.__module__, "Plain.__init__.__globals__"), b")"
    ),
    "names a part of the interpreter": named("trax_torch.interop._pickle.plain_data", "PlainRules"),
    "computes a name": b"K\1" + text("list") + b"\x93",
    "a name with odd signs": named("o\ns", "sys\ntem]"),
    "a defaultdict of calls": call(named("collections", "defaultdict"), RECONSTRUCT),
    "a defaultdict of arrays": call(named("collections", "defaultdict"), NDARRAY),
    "a defaultdict of a list": call(named("collections", "defaultdict"), b"]"),
    "a complex number of text": call(named("builtins", "complex"), text("1" * 200), text("2")),
    "a state for a list": b"]}b",
    "a state for a dict": b"}}" + text("__class__") + PLAIN_NAME + b"sb",
    "a state for a class": PLAIN_NAME + b"}" + text("__init__") + b"Nsb",
    "a state that is a list": PLAIN_NAME + b")\x81]b",
    "a state of names": PLAIN_NAME + b")\x81" + NDARRAY + b"b",
    "a state with odd keys": PLAIN_NAME + b")\x81}K\1K\1sb",
    "a slot that is none": SLOTS_NAME + b")\x81N}" + text("__class__") + PLAIN_NAME + b"s\x86b",
    "a slot that is an attribute": SLOTS_NAME + b")\x81N}" + text("z") + b"K\1s\x86b",
    "an array of a huge shape": NEW_ARRAY + b"(K\1" + HUGE + F4 + b"\x89" + ONE + b"tb",
    "an empty array of a huge shape": NEW_ARRAY
    + (b"(K\1(K\0" + int64(1 << 62) + b"t" + F4 + b"\x89C\0tb"),
    "an array of a negative shape": NEW_ARRAY
    + (b"(K\1" + int64(-1) * 2 + b"\x86" + F4 + b"\x89" + ONE + b"tb"),
    "an array of 33 axes": NEW_ARRAY + b"(K\1(" + b"K\1" * 33 + b"t" + F4 + b"\x89" + ONE + b"tb",
    "an array of text": NEW_ARRAY + b"(K\1)" + F4 + b"\x89" + text("abcd") + b"tb",
    "an array of a list": NEW_ARRAY + b"(K\1K\1\x85" + F4 + b"\x89]Natb",
    "an array of odd booleans": NEW_ARRAY + b"(K\1)" + B1 + b"\x89C\1\2tb",
    "an array filled twice": NEW_ARRAY + FILL + FILL,
    "an array without contents": NEW_ARRAY,
    "arrays within arrays": NEW_ARRAY + b"(" + NEW_ARRAY + b")" + F4 + b"\x89" + ONE + b"tb",
    "an array made as another class": call(RECONSTRUCT, PLAIN_NAME, b"K\0\x85C\1b"),
    "an array made at a huge shape": call(RECONSTRUCT, NDARRAY, HUGE, b"C\1b"),
    "an array on a number": call(FROM_BUFFER, b"K\1", F4, b")", text("C")),
    "an array on too much": call(FROM_BUFFER, b"\x96\x05" + bytes(12), F4, b")", text("C")),
    "an array of no order": call(FROM_BUFFER, ONE, F4, b")", text("A")),
    "an array of odd axes": call(FROM_BUFFER, ONE, F4, b")", text("K"), b"K\0\x85"),
    "an array without a type": call(FROM_BUFFER, ONE, text("f4"), b")", text("C")),
    "an odd boolean": call(SCALAR, B1, b"C\1\7"),
    "a scalar of too much": call(SCALAR, F4, b"C\5abcde"),
    "a type of fields": F4 + b"(K\3" + text("<") + b"N)}" + int64(-1) * 2 + b"K\0tb",
    "a type made twice": F4 + (b"(K\3" + text("<") + b"NNN" + int64(-1) * 2 + b"K\0tb") * 2,
    "a type of an odd order": F4 + b"(K\3" + text("^") + b"NNN" + int64(-1) * 2 + b"K\0tb",
    "a type of types": call(named("numpy", "dtype"), F4, b"\x89\x88"),
    "a type of a state that is an array": F4
    + (b"(K\3" + text("<") + NEW_ARRAY + FILL + b"NN" + int64(-1) * 2 + b"K\0tb"),
    "a key that is a list": b"}]Ns",
    "a key that is an array": b"}" + NEW_ARRAY + FILL + b"Ns",
    "a key that is a name": b"}" + NDARRAY + b"Ns",
    "a key that holds a list": b"}]\x85Ns",
    "a key that hashes for ever": b"}" + doubled(60) + b"Ns",
    "an item that hashes for ever": b"\x8f(" + doubled(60) + b"\x90",
    "a frozen item that hashes for ever": b"(" + doubled(60) + b"\x91",
    "keys that hash long": doubled(7) + b"0](" + b"}h\x07Ns" * 2000 + b"e",
    "a key that is deep": b"}" + b")" + b"\x85" * 20_000 + b"Ns",
    "keys of one hash": pickle.dumps(dict.fromkeys(alike(200)))[2:-1],
    "items of one hash": pickle.dumps(set(alike(200)))[2:-1],
    "large keys of one hash": b"}("
    + (b"".join(long(((1 << 61) - 1) * i) + b"N" for i in range(200)) + b"u"),
    "a key twice": b"}(" + (text("a") + b"N") * 2 + b"u",
    "a key twice, differently": b"}(K\1N\x88Nu",
    "an item twice": b"\x8f(K\1K\1\x90",
    "a key without a value": b"}(" + text("a") + b"u",
    "items for a list": b"](K\1\x90",
    "values for a set": b"\x8fK\1a",
    "the same text encoded many times": b"X\0\0\1\0" + bytes(1 << 16) + b"\x940(" + b"".join(
        call(named("_codecs", "encode"), b"h\0", text("latin1")) for _ in range(200)
    ) + b"t",
    "the same list made a set many times": b"](" + b"".join(
        b"M" + struct.pack("<H", i) for i in range(1 << 13)
    ) + b"e\x940(" + b"".join(call(named("builtins", "set"), b"h\0") for _ in range(50)) + b"t",
    "the same bytes checked many times": b"B\0\0\1\0" + bytes(1 << 16) + b"\x940(" + b"".join(
        call(FROM_BUFFER, b"h\0", B1, b"J\0\0\1\0\x85", text("C")) for _ in range(200)
    ) + b"t",
    "groups nested too deep": b"(" * 100_000 + b"t" * 100_000,
    "bytes beyond the end": b"\x8e" + struct.pack("<Q", 1 << 60),
    "text beyond the end": b"\x8d" + struct.pack("<Q", 1 << 60),
    "text that is no UTF-8": b"\x8c\1\xff",
    "a longer number": b"\x8b" + struct.pack("<i", 0x7FFFFFFF),
    "a buffer from elsewhere": b"\x97",
    "an object from elsewhere": b"K\1Q",
    "an extension": b"\x82\1",
    "an instance": b"(ios\nsystem\n",
    "numbers of the memo without order": b"Nr\xff\xff\xff\xff",
    "what was never remembered": b"h\7",
    "an empty stack": b"0",
    "an empty stack below a mark": b"](a",
    "a group without a beginning": b"t",
    "a value left over": b"NN",
    "a mark left over": b"(N",
}  # fmt: skip


def refused(path, gzip=False, **arguments):
    with pytest.raises(tc.CheckpointError, match=os.path.basename(path)) as caught:
        unpickle_from_file(path, gzip, **arguments)
    return str(caught.value)


@pytest.mark.parametrize("opcodes", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused(opcodes):
    """Whatever a file asks for, the answer is an error within a second; nothing runs."""
    with open("model.pkl", "wb") as f:
        f.write(b"\x80\4" + opcodes + b".")

    start = time.process_time()
    refused("model.pkl", allow=[Plain, Slots])
    assert time.process_time() - start < 1


@pytest.mark.parametrize("opcodes", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_takes_little_memory(opcodes):
    """At most 200 bytes for each of the file."""
    with open("model.pkl", "wb") as f:
        f.write(b"\x80\4" + opcodes + b".")

    tracemalloc.start()
    try:
        refused("model.pkl", allow=[Plain, Slots])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MIB + 200 * len(opcodes)


def test_hand_made_pickles_load_if_they_are_harmless():
    """The opcodes that the tests above are made of are read where they say nothing odd."""
    made = [NEW_ARRAY + FILL, call(SCALAR, F4, ONE), call(FROM_BUFFER, ONE, F4, b")", text("C"))]
    objects = [call(PLAIN_NAME, b"K\1"), SLOTS_NAME + b")\x81N}" + text("y") + b"K\1s\x86b"]

    got = read(b"\x80\4(" + b"".join(made + objects) + b"t.", allow=[Plain, Slots])

    assert got[:4] == (1, 1, 1, Plain(1))
    assert got[4].y == 1


def test_the_corpus_is_dangerous():
    """Pickle's own reader would have run this file."""
    pickle.loads(b"\x80\4" + HOSTILE["calls what was not allowed"] + b".")

    assert os.path.exists(MARKER)
    os.unlink(MARKER)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "a pickle that ends within an opcode"),
        (b"once upon a time", "no pickle"),
        (pickle.dumps([1], 1), "no pickle"),
        (b"\x80\6N.", "no pickle"),
        (pickle.dumps([1]) * 2, "something after a pickle's end"),
        (pickle.dumps([1]) + b"\n", "something after a pickle's end"),
        (pickle.dumps([1])[:-1], "a pickle without an end"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_no_whole_pickle_is_refused(data, words, packed):
    with pytest.raises(tc.UnsafeCheckpointError, match=words):
        read(gzip.compress(data) if packed else data, gzip=packed)


def test_a_file_cut_anywhere_is_refused():
    """Not one byte may be missing, compressed or not."""
    for packed in (False, True):
        pickle_to_file({"w": np.arange(9), "x": [1, "a"]}, "model.pkl", packed)
        with open("model.pkl", "rb") as f:
            whole = f.read()
        for length in range(len(whole)):
            with pytest.raises(tc.CheckpointError, match="model.pkl"):
                read(whole[:length], gzip=packed)


@pytest.mark.parametrize("tail", [b"\0", b"garbage", gzip.compress(b"more")], ids=len)
def test_bytes_after_the_end_of_gzip_are_refused(tail):
    with pytest.raises(tc.UnsafeCheckpointError, match="bytes follow the end of the gzip stream"):
        read(gzip.compress(pickle.dumps(1)) + tail, gzip=True)


def test_the_other_setting_of_gzip_is_told():
    with pytest.raises(tc.CheckpointError, match="it is a gzip file; read it with gzip=True"):
        read(gzip.compress(pickle.dumps(1)))
    with pytest.raises(tc.CheckpointError, match="it is no gzip file; read it with gzip=False"):
        read(pickle.dumps(1), gzip=True)


BOMBS = {
    "zeros": (bytes(100 * MIB), None),
    "bytes": (b"\x80\4B" + struct.pack("<I", 100 * MIB) + bytes(100 * MIB), None),
    "lists": (b"\x80\4(" + b"]" * 2_000_000 + b"t.", 8 * MIB),
}


@pytest.mark.parametrize(("data", "max_bytes"), BOMBS.values(), ids=BOMBS)
def test_a_gzip_bomb_is_refused(data, max_bytes):
    """What unpacks to far more than it is, or to far more values."""
    with open("model.pkl", "wb") as f:
        f.write(gzip.compress(data, 1))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    error = refused("model.pkl", gzip=True, max_bytes=max_bytes)

    assert "if you trust the file, read it with a larger max_bytes" in error
    assert (
        time.process_time() - start < 5
    )  # seconds of this process; a loaded machine takes up to 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # in KB


def test_max_bytes_is_for_files_that_are_trusted():
    """Much can be one value over and over, and be well meant."""
    pickle_to_file(np.zeros(10 * MIB), "model.pkl", gzip=True)

    with pytest.raises(tc.UnsafeCheckpointError, match="more than max_bytes="):
        unpickle_from_file("model.pkl", gzip=True)
    assert not unpickle_from_file("model.pkl", gzip=True, max_bytes=90 * MIB).any()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda p: os.symlink("/dev/zero", p)])
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_no_file_is_not_read(make, packed):
    """A FIFO, a folder or a device in the file's place neither hangs nor fills memory."""
    make("model.pkl")

    with pytest.raises(tc.CheckpointError, match="model.pkl cannot be read: .* a file is needed"):
        unpickle_from_file("model.pkl", packed)


def test_a_file_that_is_not_there_is_told_as_by_open():
    with pytest.raises(FileNotFoundError, match="model.pkl"):
        unpickle_from_file("model.pkl")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_damaged_file_loads_or_is_refused(protocol):
    """200 random changes end in a value or a CheckpointError, and never in anything else."""
    parts = [X, {1, 2}, frozenset("a"), b"a", bytearray(b"a"), 2j, np.ones((2, 3)), np.int8(3)]
    objects = [Plain(1), Slots(2), ByState(3), Names([1]), Sizes(a=1), Pair(1, 2), ByClass(1, 2)]
    named_tuples = {Pair(1, 2): collections.OrderedDict(a=np.arange(3).astype(">i4"))}
    whole = pickle.dumps([parts, objects, named_tuples, parts[0]], protocol)
    allow = [type(x) for x in objects]
    assert repr(read(whole, allow=allow)[0]) == repr(parts)
    draw = random.Random(protocol)
    n_loaded = 0
    for _ in range(200):
        data = bytearray(whole)
        at, length = draw.randrange(len(data)), draw.choice([1, 1, 2, 4, 16])
        kind = draw.choice(["flip", "set", "cut", "double"])
        if kind == "flip":
            data[at] ^= 1 << draw.randrange(8)
        else:
            new = {"set": draw.randbytes(length), "cut": b"", "double": data[at : at + length] * 2}
            data[at : at + length] = new[kind]
        try:
            read(bytes(data), allow=allow)
        except tc.CheckpointError:
            continue
        n_loaded += 1

    assert n_loaded < 100


# Writing.


def fail(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


class Broken:
    def __reduce__(self):
        raise KeyboardInterrupt


@pytest.mark.parametrize("gzip", [False, True])
@pytest.mark.parametrize(
    ("function", "obj", "error"),
    [
        ("open", 2, OSError),
        ("os.fsync", 2, OSError),
        ("os.replace", 2, OSError),
        (None, [0] * 100_000 + [Broken()], KeyboardInterrupt),
        (None, [0] * 100_000 + [lambda: 1], (AttributeError, pickle.PicklingError)),
    ],
)
@pytest.mark.parametrize("before", [[], ["model.pkl"]])
def test_a_failed_write_changes_nothing(function, obj, error, gzip, before, monkeypatch):
    """The old file is as it was, and there is no other."""
    for name in before:
        pickle_to_file(1, name, gzip)
    with monkeypatch.context() as patch:
        if function:
            module, _, name = function.rpartition(".")
            patch.setattr(os if module else builtins, name, fail)
        with pytest.raises(error) as caught:
            pickle_to_file(obj, "model.pkl", gzip)

    assert os.listdir() == before
    assert [unpickle_from_file(name, gzip) for name in before] == [1 for _ in before]
    if function:
        assert "what was there before is as it was: 'model.pkl'" in str(caught.value)
        assert caught.value.errno == errno.ENOSPC


def test_nothing_is_taken_back_once_the_file_is_in_its_place(monkeypatch):
    """If the folder cannot be synchronised, the new file may be there to stay, and is whole."""
    pickle_to_file(1, "model.pkl")
    calls, fsync = [], os.fsync
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: fail() if calls else calls.append(fsync(fd)))
        with pytest.raises(OSError, match="No space"):
            pickle_to_file(2, "model.pkl")

    assert unpickle_from_file("model.pkl") == 2
    assert os.listdir() == ["model.pkl"]


def test_data_is_on_the_disk_before_the_name(monkeypatch):
    """First the file is synchronised, then it gets its name, then the folder is."""
    events = []
    for name in ("fsync", "replace"):
        function = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, f=function: (events.append(n), f(*a))[1])

    pickle_to_file(1, "model.pkl")

    assert events == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("path", ["folder", "fifo", "none/model.pkl", "model.pkl/model.pkl"])
def test_what_is_no_place_for_a_file_is_left_alone(path):
    """The errors are those of `open`, and name the file that was asked for."""
    os.mkdir("folder")
    os.mkfifo("fifo")
    pickle_to_file(1, "model.pkl")
    before = sorted(os.listdir())

    with pytest.raises(OSError, match=f"nothing was written.*{path}") as caught:
        pickle_to_file(2, path)

    kinds = [IsADirectoryError, FileExistsError, FileNotFoundError, NotADirectoryError]
    assert isinstance(caught.value, tuple(kinds))
    assert sorted(os.listdir()) == before


def test_the_mode_is_as_open_gives_it():
    """The umask decides for a new file; a file that was there keeps its own."""
    before = os.umask(0o027)
    try:
        pickle_to_file(1, "new.pkl")
        pickle_to_file(1, "old.pkl")
        os.chmod("old.pkl", 0o600)
        pickle_to_file(2, "old.pkl")
    finally:
        os.umask(before)

    assert stat.S_IMODE(os.stat("new.pkl").st_mode) == 0o640
    assert stat.S_IMODE(os.stat("old.pkl").st_mode) == 0o600


def test_a_link_is_followed():
    """The file it names is replaced, the link stays."""
    os.mkdir("there")
    os.symlink("there/model.pkl", "model.pkl")

    assert there_and_back([1, 2]) == [1, 2]
    assert os.path.islink("model.pkl")
    assert os.listdir("there") == ["model.pkl"]


def test_equal_objects_make_equal_files(tmp_path):
    """No time and no name of the file is in it."""
    for name in ("a", "b"):
        pickle_to_file({"w": np.ones(3)}, tmp_path / name, gzip=True)

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with gzip.open(tmp_path / "a") as f:
        assert pickle.load(f)["w"].tolist() == [1, 1, 1]


def test_a_long_name_is_no_hindrance():
    """The temporary file's name does not hold it."""
    name = "n" * 250
    pickle_to_file(1, name)

    assert unpickle_from_file(name) == 1
