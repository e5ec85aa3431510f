"""Checkpoints are whole or absent."""

import contextlib
import json
import os
import re
import resource
import struct
import subprocess
import sys
import time

import pytest
import torch
from toys import let_others_in, line_loop

from trax_torch._errors import CheckpointError
from trax_torch.supervised._checkpoint import files, packing, storage

PARTS = {
    "weights": {"w": torch.arange(6.0).view(2, 3), "half": torch.ones(2, dtype=torch.bfloat16)},
    "state": {"n": torch.tensor(3)},
    "opt_slots0": {},
}


def parts_with(number):
    return {**PARTS, "state": {"n": torch.tensor(number)}}


def folder_with(path, number=1):
    folder = storage.Folder(str(path))
    folder.save("model", parts_with(number), {"step": number})
    return folder


def loaded(path, name="model"):
    parts, info = storage.read(str(path), name)
    assert parts["state"]["n"].item() == info["step"]
    assert torch.equal(parts["weights"]["w"], PARTS["weights"]["w"])
    return info["step"]


def test_what_is_saved_is_read(tmp_path):
    folder_with(tmp_path, 7)

    parts, info = storage.read(str(tmp_path), "model")

    assert info == {"step": 7, "history": {"_values": {}}}
    assert parts["weights"]["half"].dtype == torch.bfloat16
    assert parts["opt_slots0"] == {}
    assert storage.read(str(tmp_path), "other") is None


def test_a_name_is_replaced_and_others_stay(tmp_path):
    folder = folder_with(tmp_path, 1)
    folder.save("model_1", parts_with(1), {"step": 1})
    for step in (2, 3):
        folder.save("model", parts_with(step), {"step": step})

    assert loaded(tmp_path) == 3
    assert loaded(tmp_path, "model_1") == 1
    assert len(list(tmp_path.iterdir())) == 2 * (1 + len(PARTS))


def test_tensors_that_share_memory_are_saved_each(tmp_path):
    w = torch.arange(4.0)
    parts = {**PARTS, "weights": {"w": w, "tied": w, "part": w[1:3], "turned": w.view(2, 2).t()}}
    storage.Folder(str(tmp_path)).save("model", parts, {})

    read = storage.read(str(tmp_path), "model")[0]["weights"]
    assert all(torch.equal(read[k], v) for k, v in parts["weights"].items())


def assert_refused(folder, name):
    """Asserts that a checkpoint is refused at once, with a file's name."""
    started = time.process_time()
    with pytest.raises(CheckpointError, match=re.escape(name)):
        storage.read(str(folder), "model")
    assert time.process_time() - started < 10


def test_a_file_cut_anywhere_is_refused_by_name(tmp_path):
    """Every length of every file; nothing is believed of what is left."""
    folder_with(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        data = path.read_bytes()
        for length in range(len(data)):
            path.write_bytes(data[:length])
            assert_refused(tmp_path, path.name)
        path.write_bytes(data)

    assert loaded(tmp_path) == 1


def test_a_flipped_bit_anywhere_is_refused_by_name(tmp_path):
    folder_with(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for path in sorted(tmp_path.iterdir()):
        good = path.read_bytes()
        for _ in range(100):
            bit = int(torch.randint(8 * len(good), (), generator=generator))
            bad = bytearray(good)
            bad[bit // 8] ^= 1 << (bit % 8)
            path.write_bytes(bad)
            assert_refused(tmp_path, path.name)
        path.write_bytes(good)

    assert loaded(tmp_path) == 1


def weights_file(header, data=b"\0" * 24, length=None):
    """A safetensors file with any header."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


BOMBS = {
    "a header of 2^63 bytes": weights_file({}, length=2**63),
    "a header of 4 GB": weights_file({}, length=2**32),
    "no header": b"",
    "a header that is no JSON": weights_file(b"{" * 24),
    "a deep header": weights_file(b"[" * 10**6),
    "tensors that overlap": weights_file({"a": entry([6], 0, 24), "b": entry([6], 0, 24)}),
    "a hole": weights_file({"a": entry([1], 0, 4), "b": entry([1], 20, 24)}),
    "a tensor beyond the end": weights_file({"a": entry([6], 0, 24), "b": entry([9], 24, 60)}),
    "a shape of 2^64 and more": weights_file({"a": entry([2**40, 2**40], 0, 24)}),
    "a negative place": weights_file({"a": entry([6], -24, 0)}),
    "bytes of nothing": weights_file({}),
    "a type that torch has not": weights_file({"a": entry([32], 0, 24, "F6_E2M3")}),
    "a type that nobody has": weights_file({"a": entry([6], 0, 24, "OBJECT")}),
    "a name twice": weights_file(
        b'{"a":%b,"a":%b}'
        % (json.dumps(entry([3], 0, 12)).encode(), json.dumps(entry([3], 12, 24)).encode())
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_hostile_part_is_refused_though_its_hash_is_right(tmp_path, bomb):
    """Within a second, and in no more memory than the file itself takes."""
    folder_with(tmp_path)
    (part,) = tmp_path.glob("*.weights.safetensors")
    part.write_bytes(BOMBS[bomb])
    assert_refused(tmp_path, part.name)
    manifest = tmp_path / "model.json"
    claims = {"size": len(BOMBS[bomb]), "sha256": files.hash_of(BOMBS[bomb])}
    rewrite(manifest, lambda m: m["files"]["weights"].update(claims))

    with limited_memory(100 * 2**20):
        assert_refused(tmp_path, part.name)


@contextlib.contextmanager
def limited_memory(n_bytes):
    """Lets the process take so much more memory, and no more."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as f:
        taken = int(f.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


CLAIMS = {
    "no files": lambda m: m.pop("files"),
    "files in a list": lambda m: m.update(files=[]),
    "a file without a size": lambda m: m["files"]["state"].pop("size"),
    "a size that is text": lambda m: m["files"]["state"].update(size="9"),
    "a size below 0": lambda m: m["files"]["state"].update(size=-2),
    "a size of 2^70": lambda m: m["files"]["state"].update(size=2**70),
    "a name that is a number": lambda m: m["files"]["state"].update(name=7),
    "a hash that is none": lambda m: m["files"]["state"].update(sha256=None),
    "an entry that is none": lambda m: m["files"].update(state=None),
    "no info": lambda m: m.pop("info"),
    "info in a list": lambda m: m.update(info=[]),
    "no generation": lambda m: m.pop("generation"),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_hostile_manifest_is_refused_though_its_hash_is_right(tmp_path, claim):
    folder_with(tmp_path)
    rewrite(tmp_path / "model.json", CLAIMS[claim])

    assert_refused(tmp_path, "model")


def test_a_manifest_is_believed_only_as_it_was_written(tmp_path):
    """Keys twice or other spaces are refused, whatever the hash says of the values."""
    folder_with(tmp_path)
    manifest = tmp_path / "model.json"
    good = manifest.read_bytes()
    twice = good.replace(b'"format":', b'"format":"another","format":', 1)
    for bad in (twice, good + b" ", good.replace(b":", b": ", 1), b"[" * 10**6, b"9" * 10**6):
        manifest.write_bytes(bad)
        assert_refused(tmp_path, "model.json")


def test_a_manifest_without_end_is_refused_in_little_memory(tmp_path):
    """A file of holes costs its maker nothing."""
    with open(tmp_path / "model.json", "wb") as f:
        f.truncate(2**40)

    with limited_memory(500 * 2**20):
        assert_refused(tmp_path, "model.json")


def test_a_missing_part_is_named(tmp_path):
    folder_with(tmp_path)
    (part,) = tmp_path.glob("*.weights.safetensors")
    part.unlink()

    with pytest.raises(CheckpointError, match=f"lists {part.name}, which is not there"):
        storage.read(str(tmp_path), "model")


def test_what_is_no_file_is_refused_at_once(tmp_path):
    """A pipe, a folder or a device in a file's place does not hang the reader."""
    started = time.monotonic()
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(CheckpointError, match=f"{name}.json"):
            storage.read(str(tmp_path), name)
    (tmp_path / "device.json").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="not a plain file"):
        storage.read(str(tmp_path), "device")
    assert time.monotonic() - started < 30  # a pipe would be waited for, a device read, for ever


def rewrite(path, change):
    manifest = json.loads(path.read_text())
    manifest.pop("hash")
    change(manifest)
    manifest["hash"] = files.hash_of(storage._canonical(manifest))
    path.write_bytes(storage._canonical(manifest))


def test_newer_formats_and_foreign_names_are_refused(tmp_path):
    folder_with(tmp_path)
    manifest = tmp_path / "model.json"
    good = manifest.read_bytes()

    rewrite(manifest, lambda m: m.update(version=99))
    with pytest.raises(CheckpointError, match="has format version 99; this library reads up to 3"):
        storage.read(str(tmp_path), "model")
    manifest.write_bytes(good)
    rewrite(manifest, lambda m: m["files"]["state"].update(name="../../etc/passwd"))
    with pytest.raises(CheckpointError, match="lists a file of another name"):
        storage.read(str(tmp_path), "model")
    manifest.write_text("{}")
    with pytest.raises(CheckpointError, match="damaged, or no checkpoint's manifest"):
        storage.read(str(tmp_path), "model")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "-a", "a\n", "x" * 129, "ä", 3])
def test_names_that_are_no_plain_file_names_are_refused_before_anything(tmp_path, name):
    with pytest.raises(ValueError, match="A checkpoint's name has 1 to 128"):
        storage.Folder(str(tmp_path)).save(name, PARTS, {})
    with pytest.raises(ValueError, match="A checkpoint's name has 1 to 128"):
        line_loop(None).load_checkpoint(str(tmp_path), name if name and name != 3 else "..")
    assert not list(tmp_path.iterdir())


def test_sweeping_spares_what_a_damaged_manifest_may_list(tmp_path):
    folder = folder_with(tmp_path)
    folder.save("model_1", parts_with(1), {"step": 1})
    (tmp_path / "model_1.json").write_text("damaged")
    spared = set(tmp_path.glob("model_1.*"))

    folder.save("model", parts_with(2), {"step": 2})

    assert spared <= set(tmp_path.iterdir())
    assert loaded(tmp_path) == 2


def test_a_foreign_json_file_is_left_alone(tmp_path):
    (tmp_path / "config.json").write_text('{"lr": 1}')
    folder_with(tmp_path).save("model", parts_with(2), {"step": 2})

    assert (tmp_path / "config.json").read_text() == '{"lr": 1}'


def test_two_processes_cannot_write_to_one_folder(tmp_path):
    """The second is told at once, and by the time the first is done it may."""
    code = (
        "import sys\n"
        "from trax_torch.supervised._checkpoint.lock import FolderLock\n"
        "with FolderLock(sys.argv[1]).held():\n"
        "    print('locked', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "locked\n"
    with pytest.raises(CheckpointError, match="Another process is training into"):
        line_loop(tmp_path)
    other.communicate("")

    line_loop(tmp_path).run(1)


def test_a_state_of_unknown_things_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="A object cannot be saved in data0"):
        packing.pack({"a": [object()]}, "data0", {})


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_a_folder_of_somebody_else_is_refused(tmp_path):
    """In a child that is not root."""
    let_others_in(tmp_path)
    (tmp_path / "theirs").mkdir(mode=0o755)
    child = os.fork()
    if not child:
        os.setuid(12345)
        try:
            storage.Folder(str(tmp_path / "theirs"))
        except CheckpointError as error:
            os._exit(0 if "cannot be written to" in str(error) else 3)
        os._exit(4)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_manifest_too_long_to_be_read_is_not_written(tmp_path, monkeypatch):
    folder = folder_with(tmp_path, 1)
    monkeypatch.setattr(storage, "MAX_MANIFEST", 2000)

    with pytest.raises(CheckpointError, match="would have .* bytes, and at most 2000 are read"):
        folder.save("model", parts_with(2), {"step": 2, "history": "x" * 2000})

    assert loaded(tmp_path) == 1
    assert len(list(tmp_path.iterdir())) == 1 + len(PARTS)
