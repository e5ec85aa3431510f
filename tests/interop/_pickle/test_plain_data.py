"""Plain data and arrays come back as they were, and nothing else is read unless it is allowed."""

import collections
import functools
import gzip
import math
import os
import pickle

import numpy as np
import pytest
import torch
import trax_files
from hypothesis import given, settings
from hypothesis import strategies as st
from pickled import MARKER, PROTOCOLS, Outer, Plain, Slots, read, there_and_back

from trax_torch import layers as tl
from trax_torch import shapes
from trax_torch.interop import trax_checkpoint as tc
from trax_torch.supervised.training import unpickle_from_file


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
        (Slots(1), r"pickled\.Slots'.* allow=\[Slots\]"),
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
