"""A file that Trax did not write is refused at once; nothing in it runs or takes memory."""

import gzip
import json
import os
import pickle
import random
import socket
import struct
import subprocess
import sys
import zlib

import figures
import processor_time
import pytest
import trax_files
from opcodes import call, int64, named, text
from pickled import MARKER

from trax_torch.interop import trax_checkpoint as tc

BN = figures.FOLDER / "trax_checkpoints" / "bn"
MIB = 1 << 20


# Pickles by hand: each name is the opcodes for one value.


def int32(value):
    return b"J" + struct.pack("<i", value)


def dtype(code="f4", order="<"):
    state = b"(K\x03" + text(order) + b"NNN" + int32(-1) + int32(-1) + b"K\0t"
    return call(named("numpy", "dtype"), text(code), b"\x89\x88") + state + b"b"


RECONSTRUCT = named("numpy.core.multiarray", "_reconstruct")
NDARRAY = named("numpy", "ndarray")
NEW_ARRAY = call(RECONSTRUCT, NDARRAY, b"K\0\x85C\1b")
ONE = b"\0\0\x80?"
LIST = named("builtins", "list")


def array(shape=b")", data=b"C\4" + ONE, kind=None):
    return NEW_ARRAY + b"(K\1" + shape + (kind or dtype()) + b"\x89" + data + b"tb"


def holding(**items):
    """Returns a pickle of a dict with the values that these opcodes make, and no weights."""
    items = {"flat_weights": b"]", **items}
    return b"\x80\4}" + b"".join(text(k) + v + b"s" for k, v in items.items()) + b"."


def weights(value):
    return holding(flat_weights=value)


class Call:
    def __init__(self, function, *args):
        self._call = function, args

    def __reduce__(self):
        return self._call


def doubled(n):
    """Returns opcodes for a tuple of 2**n empty tuples that shares its halves."""
    return b")\x94" + b"".join(b"h" + bytes([i]) + b"\x86\x94" for i in range(n))


def nested(n):
    """Returns opcodes for a tuple in a tuple, n deep."""
    return b")" + b"\x85" * n


def again(value, n_times):
    """Returns opcodes for a list that holds one value many times."""
    return b"](" + value + b"\x94" + b"h\0" * n_times + b"e"


def run_it(function, *args):
    return pickle.dumps({"flat_weights": [Call(function, *args)]}, protocol=4)


HUGE = b"(" + int64(1 << 40) + b"t"

PICKLES = {
    "runs a command": run_it(os.system, f"touch {MARKER}"),
    "runs a command, by protocol 2": pickle.dumps(Call(os.system, f"touch {MARKER}"), protocol=2),
    "runs a command, by protocol 0": pickle.dumps(Call(os.system, f"touch {MARKER}"), protocol=0),
    "evaluates": run_it(eval, f"open({MARKER!r}, 'w').close()"),
    "executes": run_it(exec, f"open({MARKER!r}, 'w').close()"),
    "opens a file": run_it(open, MARKER, "w"),
    "imports": run_it(__import__, "antigravity"),
    "gets an attribute": run_it(getattr, [], "append"),
    "names a submodule": weights(b"]cnumpy.core.multiarray\n_reconstruct.__class__\na"),
    "names a loader of numpy's": weights(b"]" + call(named("numpy", "load"), text(MARKER)) + b"a"),
    "names a loader of torch's": weights(
        b"]" + call(named("torch.storage", "_load_from_bytes"), b"C\0") + b"a"
    ),
    "names itself": weights(b"]" + named("trax_torch.interop", "trax_checkpoint") + b"a"),
    "computes a name": weights(b"]" + b"K\1" + text("list") + b"\x93a"),
    "names without an end": b"\x80\4c" + b"a" * 10_000,
    "asks for 4 GB": weights(b"]" + call(named("builtins", "bytearray"), int64(4 << 30)) + b"a"),
    "calls list": weights(b"]" + call(LIST, b")") + b"a"),
    "calls an array's class": weights(b"]" + call(NDARRAY, HUGE) + b"a"),
    "calls what is no name": weights(b"]" + call(text("list")) + b"a"),
    "a defaultdict of arrays": holding(
        history=call(named("collections", "defaultdict"), RECONSTRUCT)
    ),
    "reconstructs at a huge shape": weights(
        b"]" + call(RECONSTRUCT, NDARRAY, HUGE, b"C\1b") + b"a"
    ),
    "reconstructs another class": weights(b"]" + call(RECONSTRUCT, LIST, b"K\0\x85C\1b") + b"a"),
    "an array of a huge shape": weights(b"]" + array(HUGE) + b"a"),
    "an array of a shape beyond all memory": weights(
        b"]" + array(b"(" + int64((1 << 62) + 1) * 4 + b"t") + b"a"
    ),
    "an empty array of a huge shape": weights(
        b"]" + array(b"(K\0" + int64(1 << 62) + b"t", b"C\0") + b"a"
    ),
    "an array with too few bytes": weights(b"]" + array(b"K\2\x85") + b"a"),
    "an array with too many bytes": weights(b"]" + array(b"K\0\x85") + b"a"),
    "an array of a negative shape": weights(b"]" + array(int32(-1) * 2 + b"\x86") + b"a"),
    "an array of 33 axes": weights(b"]" + array(b"(" + b"K\1" * 33 + b"t") + b"a"),
    "an array of a shape that is no number": weights(b"]" + array(b"N\x85") + b"a"),
    "an array of a shape that is true": weights(b"]" + array(b"\x88\x85") + b"a"),
    "an array of text": weights(b"]" + array(data=text("abcd")) + b"a"),
    "an array without a state": weights(b"]" + NEW_ARRAY + b"a"),
    "an array filled twice": weights(b"]" + array() + array()[len(NEW_ARRAY) :] + b"a"),
    "an array of objects": weights(b"]" + array(b"K\1\x85", b"]Na", dtype("O8", "|")) + b"a"),
    "an array of pointers": weights(b"]" + array(b")", b"C\10" + bytes(8), dtype("O8")) + b"a"),
    "an array of dates": weights(b"]" + array(b")", b"C\10" + bytes(8), dtype("M8")) + b"a"),
    "an array of complex numbers": weights(
        b"]" + array(b")", b"C\10" + bytes(8), dtype("c8")) + b"a"
    ),
    "an array of text types": weights(b"]" + array(b")", b"C\4abcd", dtype("U1")) + b"a"),
    "an array of records": weights(b"]" + array(b")", b"C\4abcd", dtype("V4", "|")) + b"a"),
    "an array of big-endian numbers": weights(b"]" + array(kind=dtype("f4", ">")) + b"a"),
    "an array of odd booleans": weights(b"]" + array(b")", b"C\1\2", dtype("b1", "|")) + b"a"),
    "a type of fields": weights(
        b"]"
        + call(named("numpy", "dtype"), text("f4"), b"\x89\x88")
        + b"(K\3"
        + text("<")
        + b"N)}"
        + int32(-1) * 2
        + b"K\0tba"
    ),
    "bytes beyond the end": weights(b"]\x8e" + struct.pack("<Q", 1 << 60) + b"a"),
    "a bytearray beyond the end": weights(b"]\x96" + struct.pack("<Q", 1 << 60) + b"a"),
    "text beyond the end": weights(b"]X" + struct.pack("<I", 0xFFFFFFFF) + b"a"),
    "text that is no UTF-8": weights(b"]\x8c\1\xffa"),
    "a long number": weights(b"]\x8a\xff" + b"\xff" * 255 + b"a"),
    "a longer number": weights(b"]\x8b" + struct.pack("<i", 0x7FFFFFFF) + b"a"),
    "a buffer from elsewhere": weights(b"]\x97a"),
    "an object from elsewhere": weights(b"]K\1Qa"),
    "an extension": weights(b"]\x82\1a"),
    "an instance": b"\x80\2(ios\nsystem\n.",
    "an object with keywords": weights(b"]" + LIST + b")}\x92a"),
    "an object of a name": weights(b"]" + RECONSTRUCT + b")\x81a"),
    "an object with arguments": weights(
        b"]" + named("trax.supervised.history", "History") + b"K\1\x85\x81a"
    ),
    "a state for a list": weights(b"]}ba"),
    "a state for a name": weights(b"]" + LIST + b"}ba"),
    "a ShapeDtype of other slots": holding(
        input_signature=named("trax.shapes", "ShapeDtype")
        + b")\x81N}"
        + text("__class__")
        + b"Ns\x86b"
    ),
    "a ShapeDtype of a huge shape": holding(
        input_signature=named("trax.shapes", "ShapeDtype")
        + b")\x81N}"
        + text("shape")
        + b"("
        + int64(1 << 62) * 9
        + b"ts"
        + text("dtype")
        + dtype()
        + b"s\x86b"
    ),
    "a JAX array made by another": weights(
        b"]" + call(named("jax._src.array", "_reconstruct_array"), LIST, b")", b")", b"}") + b"a"
    ),
    "a key that is a number": holding(history=b"}K\1Ns"),
    "a key that is bytes": holding(history=b"}C\1aNs"),
    "a key that hashes for ever": holding(history=b"}" + doubled(60) + b"Ns"),
    "a key twice": holding(history=b"}" + (text("a") + b"Ns") * 2),
    "an item without a value": holding(history=b"}(" + text("a") + b"u"),
    "deep nesting": weights(nested(40_000)),
    "deep nesting of slots": holding(slots=nested(40_000)),
    "deep nesting of lists": b"\x80\4" + b"]" * 25_000 + b"a" * 24_999 + b".",
    "deep nesting of groups": b"\x80\4" + b"(" * 200_000 + b"t" * 200_000 + b".",
    "slots that double": holding(slots=doubled(60)),
    "slots that hold themselves": holding(slots=b"]\x94h\0a"),
    "slots that hold much, much": holding(
        slots=b"("
        + again(array(), 1000)
        + b"\x94("
        + b"h\1" * 1000
        + b"t\x94("
        + b"h\2" * 1000
        + b"tt"
    ),
    "weights that hold themselves": weights(b"]\x94h\0a"),
    "one array many times": weights(
        again(array(b"J\0\0\x10\0\x85", b"B\0\0\x40\0" + bytes(4 * MIB)), 3000)
    ),
    "one list of a history many times": holding(
        history=b"}"
        + text("_values")
        + b"}"
        + text("train")
        + b"}"
        + text("loss")
        + again(b"K\1K\1\x86", 3000)
        + b"\x94s"
        + b"".join(text(str(i)) + b"h\1s" for i in range(3000))
        + b"ss"
    ),
    "numbers of the memo without order": weights(b"]r\xff\xff\xff\xffa"),
    "a memo of millions": b"\x80\4N" + b"\x94" * 1_000_000 + b".",
    "lists by the million": b"\x80\4" + b"]" * 1_000_000 + b".",
    "lists in a list by the million": b"\x80\4]" + b"]a" * 500_000 + b".",
    "what was never remembered": weights(b"]h\7a"),
    "an empty stack": b"\x80\4.",
    "an empty stack below a mark": b"\x80\4](a.",
    "a group without a beginning": b"\x80\4t.",
    "no end": weights(b"]")[:-1],
    "a second pickle": weights(b"]") * 2,
    "a value left over": b"\x80\4N" + weights(b"]")[2:],
    "a mark left over": b"\x80\4(" + weights(b"]")[2:],
    "a protocol of tomorrow": b"\x80\6" + weights(b"]")[2:],
    "no protocol": weights(b"]")[2:],
    "nothing": b"",
    "something else": b"once upon a time",
}


def refused_at_once(path):
    """Asserts that a file is refused in seconds, not minutes; returns the error."""
    with processor_time.at_most(10), pytest.raises(tc.CheckpointError) as caught:
        tc.read(path)
    assert os.path.basename(path).split(".")[0] in str(caught.value)
    return caught.value


@pytest.mark.parametrize("data", PICKLES.values(), ids=PICKLES)
def test_a_pickle_that_trax_never_writes_is_refused(data, tmp_path):
    """Whatever a pickle asks for, the answer is an error, at once, and nothing runs."""
    path = tmp_path / "model.pkl.gz"
    path.write_bytes(gzip.compress(data, 6))

    refused_at_once(path)


def test_hand_made_pickles_load_if_they_are_harmless(tmp_path):
    """The opcodes that the tests above are made of are read where they say nothing odd."""
    path = tmp_path / "model.pkl.gz"
    data = weights(again(array(b"K\1\x85"), 2))
    path.write_bytes(gzip.compress(data))

    assert [w.tolist() for w in tc.read(path).flat_weights] == [[1.0]] * 3


def test_the_corpus_is_dangerous():
    """Pickle's own reader would have run these files."""
    for name in ("runs a command", "runs a command, by protocol 0", "evaluates", "executes"):
        pickle.loads(PICKLES[name])

        assert os.path.exists(MARKER)
        os.unlink(MARKER)


def test_the_error_says_that_nothing_ran(tmp_path):
    """A user reads which name was asked for, and that it was not called."""
    path = tmp_path / "model.pkl.gz"
    path.write_bytes(gzip.compress(PICKLES["runs a command"]))

    with pytest.raises(tc.UnsafeCheckpointError, match=r"'posix\.system'. Nothing in it was run"):
        tc.read(path)


# Gzip.


def gzip_bombs():
    zeros = gzip.compress(bytes(100 * MIB), 1)
    header = b"\x80\4}" + text("flat_weights") + b"]B" + struct.pack("<I", 100 * MIB)
    in_a_pickle = zlib.compressobj(1, wbits=31)
    packed = in_a_pickle.compress(header) + in_a_pickle.compress(bytes(100 * MIB))
    return {"zeros": zeros, "a pickle of zeros": packed + in_a_pickle.flush()}


def npy(header, data=b"", version=1, length=None):
    """Returns an array as numpy stores it, with a header of one's own."""
    size = struct.pack("<H" if version == 1 else "<I", len(header) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + size + header.encode() + data


def header(descr="'<f4'", order="False", shape="(2,)"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


GOOD = npy(header(), 2 * ONE)
ARRAYS = {
    "a shape too large": npy(header(shape="(3,)"), 2 * ONE),
    "a shape too small": npy(header(shape="(1,)"), 2 * ONE),
    "a huge shape": npy(header(shape="(1099511627776,)"), 2 * ONE),
    "a shape beyond all memory": npy(header(shape="(4611686018427387905, 4)"), 2 * ONE),
    "an empty huge shape": npy(header(shape="(0, 4611686018427387905)")),
    "a negative shape": npy(header(shape="(-2,)"), 2 * ONE),
    "a shape of 33 axes": npy(header(shape="(" + "1, " * 32 + "2)"), 2 * ONE),
    "objects": npy(header("'|O'"), pickle.dumps([Call(os.system, f"touch {MARKER}")])),
    "pointers": npy(header("'|O8'"), bytes(16)),
    "dates": npy(header("'<M8[s]'"), bytes(16)),
    "complex numbers": npy(header("'<c8'"), bytes(16)),
    "big-endian numbers": npy(header("'>f4'"), 2 * ONE),
    "odd booleans": npy(header("'|b1'"), b"\1\2"),
    "records": npy(header("[('a', '<f4')]"), 2 * ONE),
    "code in the header": npy(header(shape=f"(__import__('os').system('touch {MARKER}'),)")),
    "nesting in the header": npy(header(shape="(" * 4000)),
    "signs in the header": npy(header(shape="-" * 9000 + "1")),
    "a longer header": npy(header(), 2 * ONE, length=200),
    "a shorter header": npy(header(), 2 * ONE, length=20),
    "a header of gigabytes": npy(header(), 2 * ONE, version=2, length=0xFFFFFFFF),
    "a version of tomorrow": npy(header(), 2 * ONE, version=4),
    "half of a header": GOOD[:30],
    "half of the magic": GOOD[:5],
    "half of the data": GOOD[:-4],
    "something after the last array": GOOD + b"\n",
    "something between arrays": GOOD + b"\0" + GOOD,
    "something else": b"once upon a time",
    "a zip of arrays": b"PK\3\4" + GOOD,
}


@pytest.mark.parametrize("data", ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize("name", ["weights", "opt_slots0"])
def test_arrays_that_numpy_would_not_write_are_refused(data, name, tmp_path):
    """Headers are checked before memory is taken, and never evaluated."""
    path = trax_files.write_today(tmp_path)
    (tmp_path / f"model.{name}.npy.gz").write_bytes(gzip.compress(data))

    error = refused_at_once(path)

    assert f"model.{name}.npy.gz" in str(error)


def test_hand_made_arrays_load_if_they_are_harmless(tmp_path):
    """The header that the tests above change is read as it is."""
    path = trax_files.write_today(tmp_path)
    (tmp_path / "model.weights.npy.gz").write_bytes(gzip.compress(GOOD * 2))

    assert [w.tolist() for w in tc.read(path).flat_weights] == [[1.0, 1.0]] * 2


@pytest.mark.parametrize("name", ["pkl", "weights.npy", "opt_slots0.npy"])
@pytest.mark.parametrize(
    "tail", [b"\0", b"\n", b"garbage" * 100_000, gzip.compress(b"more")], ids=len
)
def test_bytes_after_the_end_are_refused(name, tail, tmp_path):
    """A gzip file of Trax's is one stream and nothing else."""
    path = trax_files.write_today(tmp_path)
    with open(tmp_path / f"model.{name}.gz", "ab") as f:
        f.write(tail)

    error = refused_at_once(path)

    assert isinstance(error, tc.UnsafeCheckpointError)
    assert "bytes follow the end of the gzip stream" in str(error)


@pytest.mark.parametrize("name", ["pkl", "weights.npy", "opt_slots0.npy"])
def test_a_file_cut_at_any_length_is_refused(name, tmp_path):
    """Not one byte may be missing."""
    for file in BN.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    cut = tmp_path / f"model.{name}.gz"
    whole = cut.read_bytes()
    for length in [*range(0, len(whole), 3), len(whole) - 2, len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(tc.CheckpointError, match=f"model.{name}.gz cannot be read"):
            tc.read(tmp_path / "model")

    cut.write_bytes(whole)
    assert tc.read(tmp_path / "model").step == 2


# What is no file.


def fifo(path):
    os.mkfifo(path)


def folder(path):
    path.mkdir()


def device(path):
    path.symlink_to("/dev/zero")


def listener(path):
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(path.relative_to(os.getcwd())))


@pytest.mark.parametrize("name", ["pkl", "weights.npy", "opt_slots0.npy"])
@pytest.mark.parametrize("make", [fifo, folder, device, listener])
def test_what_is_no_file_is_refused(make, name, tmp_path):
    """A FIFO, a folder, a device or a socket in a file's place neither hangs nor fills memory."""
    path = trax_files.write_today(tmp_path)
    place = tmp_path / f"model.{name}.gz"
    place.unlink()
    make(place)

    error = refused_at_once(path)

    assert "where a file is needed" in str(error)


def test_links_to_files_are_followed(tmp_path):
    """A checkpoint's files may be symbolic links."""
    (tmp_path / "there").mkdir()
    trax_files.write_today(tmp_path / "there")
    for file in (tmp_path / "there").iterdir():
        (tmp_path / file.name).symlink_to(file)

    assert len(tc.read(tmp_path / "model").flat_weights) == 2


# All of it, with little memory.

CHILD = """
import json, resource, sys, time
from trax_torch.interop import trax_checkpoint as tc

pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 400 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in json.load(sys.stdin):
    start = time.process_time()
    try:
        tc.read(path)
        outcome = "loaded"
    except Exception as error:
        outcome = "refused" if isinstance(error, tc.CheckpointError) else repr(error)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps([path, outcome, time.process_time() - start, grown]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and limits the address space")
def test_refusing_takes_little_time_and_memory(tmp_path):
    """The whole corpus, and gzip bombs of 100 MB, pass in seconds each, with 400 MB."""
    corpus = {**PICKLES, **ARRAYS}
    files = {name: gzip.compress(data, 6) for name, data in corpus.items()} | gzip_bombs()
    paths = []
    for i, data in enumerate(files.values()):
        paths.append(tmp_path / f"{i}.pkl.gz")
        paths[-1].write_bytes(data)
    for name, data in [*ARRAYS.items(), ("zeros", None)]:
        (tmp_path / name).mkdir()
        paths.append(trax_files.write_today(tmp_path / name))
        packed = files["zeros"] if data is None else gzip.compress(data)
        (tmp_path / name / "model.weights.npy.gz").write_bytes(packed)

    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps([str(path) for path in paths]),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )

    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(paths), done.stderr
    assert [r for r in results if r[1] != "refused"] == []
    assert [r for r in results if r[2] > 10] == []
    assert max(grown for *_, grown in results) < 300 * 1024  # in KB


# Chance.


def mutated(data, draw):
    """Returns `data` with some bytes changed, cut out, put in, or doubled."""
    data = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        at, length = draw.randrange(len(data) + 1), draw.choice([1, 1, 2, 4, 16])
        kind = draw.choice(["flip", "set", "cut", "insert", "double", "end"])
        if kind == "flip" and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif kind == "set":
            data[at : at + length] = draw.randbytes(len(data[at : at + length]))
        elif kind == "cut":
            del data[at : at + length]
        elif kind == "insert":
            data[at:at] = draw.randbytes(length)
        elif kind == "double":
            data[at:at] = data[at : at + length]
        elif kind == "end" and draw.random() < 0.2:
            del data[at:]
    return bytes(data)


@pytest.mark.parametrize("layer", ["packed", "unpacked"])
@pytest.mark.parametrize("name", ["older", "model.pkl.gz", "model.weights.npy.gz"])
def test_a_damaged_file_loads_alike_or_is_refused(name, layer, tmp_path):
    """1002 random mutations of good files end in a load of equal shapes, or a CheckpointError."""
    if name == "older":
        good = trax_files.write_older(tmp_path / "model.pkl.gz", 4)
        file = good
    else:
        for item in BN.iterdir():
            (tmp_path / item.name).write_bytes(item.read_bytes())
        good, file = tmp_path / "model.pkl.gz", tmp_path / name
    data = file.read_bytes()
    data = gzip.decompress(data) if layer == "unpacked" else data
    wanted = [w.shape for w in tc.read(good).flat_weights]
    draw = random.Random(0)
    n_loaded = 0
    for _ in range(167):
        changed = mutated(data, draw)
        file.write_bytes(gzip.compress(changed, 1) if layer == "unpacked" else changed)
        try:
            checkpoint = tc.read(good)
        except tc.CheckpointError:
            continue
        n_loaded += 1
        assert [w.shape for w in checkpoint.flat_weights] == wanted

    assert n_loaded < 167 if layer == "unpacked" else n_loaded < 40
