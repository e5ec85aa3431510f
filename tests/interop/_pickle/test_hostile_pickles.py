"""A hostile or damaged pickle is refused at once; nothing in it runs or takes memory."""

import collections
import gzip
import os
import pickle
import random
import resource
import struct
import time
import tracemalloc

import numpy as np
import processor_time
import pytest
from opcodes import call, int64, named, text
from pickled import MARKER, PROTOCOLS, ByClass, ByState, Names, Pair, Plain, Sizes, Slots, X, read

from trax_torch.interop import trax_checkpoint as tc
from trax_torch.supervised.training import pickle_to_file, unpickle_from_file

MIB = 1 << 20


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
    """Whatever a file asks for, the answer is an error in seconds, not minutes; nothing runs."""
    with open("model.pkl", "wb") as f:
        f.write(b"\x80\4" + opcodes + b".")

    with processor_time.at_most(10):
        refused("model.pkl", allow=[Plain, Slots])


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
    assert time.process_time() - start < 30  # seconds of this process; a loaded machine takes 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # in KB


def test_max_bytes_is_for_files_that_are_trusted():
    """Much can be one value over and over, and be well meant."""
    pickle_to_file(np.zeros(10 * MIB), "model.pkl", gzip=True)

    with pytest.raises(tc.UnsafeCheckpointError, match="more than max_bytes="):
        unpickle_from_file("model.pkl", gzip=True)
    assert not unpickle_from_file("model.pkl", gzip=True, max_bytes=90 * MIB).any()


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
