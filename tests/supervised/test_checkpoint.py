"""Checkpoints are whole or absent."""

import builtins
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from toys import line_loop

from trax_torch._errors import CheckpointError
from trax_torch.supervised import _checkpoint

PARTS = {
    "weights": {"w": torch.arange(6.0).view(2, 3), "half": torch.ones(2, dtype=torch.bfloat16)},
    "state": {"n": torch.tensor(3)},
    "opt_slots0": {},
}


def parts_with(number):
    return {**PARTS, "state": {"n": torch.tensor(number)}}


def folder_with(path, number=1):
    folder = _checkpoint.Folder(str(path))
    folder.save("model", parts_with(number), {"step": number})
    return folder


def loaded(path, name="model"):
    parts, info = _checkpoint.read(str(path), name)
    assert parts["state"]["n"].item() == info["step"]
    assert torch.equal(parts["weights"]["w"], PARTS["weights"]["w"])
    return info["step"]


def test_what_is_saved_is_read(tmp_path):
    folder_with(tmp_path, 7)

    parts, info = _checkpoint.read(str(tmp_path), "model")

    assert info == {"step": 7}
    assert parts["weights"]["half"].dtype == torch.bfloat16
    assert parts["opt_slots0"] == {}
    assert _checkpoint.read(str(tmp_path), "other") is None


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
    _checkpoint.Folder(str(tmp_path)).save("model", parts, {})

    read = _checkpoint.read(str(tmp_path), "model")[0]["weights"]
    assert all(torch.equal(read[k], v) for k, v in parts["weights"].items())


CALLS = ["mkdir", "rename", "replace", "fsync", "open", "unlink", "listdir", "write"]


class Saboteur:
    """Breaks the n-th file-system call of a save."""

    def __init__(self, monkeypatch, n, how):
        self.n, self.how, self.count = n, how, 0
        for name in CALLS:
            owner = builtins if name == "write" else os
            if name == "write":
                monkeypatch.setattr(_checkpoint, "_write", self.wrap(_checkpoint._write))
            else:
                monkeypatch.setattr(owner, name, self.wrap(getattr(os, name)))

    def wrap(self, call):
        def wrapped(*args, **kwargs):
            self.count += 1
            if self.count == self.n:
                if self.how == "death":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise self.how("sabotage")
            return call(*args, **kwargs)

        return wrapped


@pytest.mark.parametrize("how", [OSError, KeyboardInterrupt])
def test_a_save_that_fails_anywhere_leaves_the_old_or_the_new(tmp_path, how):
    """Every file-system call of a save is made to fail in turn; the next save cleans up."""
    n, outcomes = 0, set()
    while True:
        n += 1
        path = tmp_path / str(n)
        folder = folder_with(path, 1)
        with pytest.MonkeyPatch.context() as patch:
            saboteur = Saboteur(patch, n, how)
            try:
                folder.save("model", parts_with(2), {"step": 2})
                failed = False
            except (CheckpointError, KeyboardInterrupt):
                failed = True
        if saboteur.count < n:
            break
        outcomes.add((failed, loaded(path)))
        folder.save("model", parts_with(3), {"step": 3})
        assert loaded(path) == 3
        assert len(list(path.iterdir())) == 1 + len(PARTS)

    assert n > 15
    assert outcomes >= {(True, 1), (True, 2)}
    assert not outcomes & {(False, 1)}


@pytest.mark.slow
def test_a_process_that_dies_anywhere_in_a_save_leaves_the_old_or_the_new(tmp_path):
    """Death at every file-system call, in a child each; what was acknowledged is never lost."""
    n, steps = 0, set()
    while True:
        n += 1
        path = tmp_path / str(n)
        folder = folder_with(path, 1)
        child = os.fork()
        if not child:
            with pytest.MonkeyPatch.context() as patch:
                Saboteur(patch, n, "death")
                folder.save("model", parts_with(2), {"step": 2})
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        step = loaded(path)
        if os.WIFEXITED(status):
            assert step == 2
            break
        steps.add(step)
        folder.save("model", parts_with(3), {"step": 3})
        assert len(list(path.iterdir())) == 1 + len(PARTS)

    assert steps == {1, 2}


def test_a_file_cut_anywhere_is_refused_by_name(tmp_path):
    """Every length of the manifest, and many of each part; nothing is believed of what is left."""
    folder_with(tmp_path / "good")
    for name in sorted(os.listdir(tmp_path / "good")):
        data = (tmp_path / "good" / name).read_bytes()
        lengths = range(len(data)) if name.endswith("json") else range(0, len(data), 7)
        for length in lengths:
            path = tmp_path / "cut"
            shutil.copytree(tmp_path / "good", path, dirs_exist_ok=True)
            (path / name).write_bytes(data[:length])
            with pytest.raises(CheckpointError) as caught:
                _checkpoint.read(str(path), "model")
            assert name in str(caught.value)


def test_a_flipped_bit_anywhere_is_refused(tmp_path):
    folder_with(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for name in os.listdir(tmp_path):
        path = tmp_path / name
        good = path.read_bytes()
        for _ in range(60):
            bit = int(torch.randint(8 * len(good), (), generator=generator))
            bad = bytearray(good)
            bad[bit // 8] ^= 1 << (bit % 8)
            path.write_bytes(bad)
            with pytest.raises(CheckpointError):
                _checkpoint.read(str(tmp_path), "model")
        path.write_bytes(good)
    assert loaded(tmp_path) == 1


def test_a_missing_part_is_named(tmp_path):
    folder_with(tmp_path)
    (part,) = tmp_path.glob("*.weights.safetensors")
    part.unlink()

    with pytest.raises(CheckpointError, match=f"lists {part.name}, which is not there"):
        _checkpoint.read(str(tmp_path), "model")


def test_what_is_no_file_is_refused_at_once(tmp_path):
    """A pipe, a folder or a device in a file's place does not hang the reader."""
    started = time.monotonic()
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(CheckpointError, match=f"{name}.json"):
            _checkpoint.read(str(tmp_path), name)
    (tmp_path / "device.json").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="not a plain file"):
        _checkpoint.read(str(tmp_path), "device")
    assert time.monotonic() - started < 1


def rewrite(path, change):
    manifest = json.loads(path.read_text())
    manifest.pop("hash")
    change(manifest)
    manifest["hash"] = _checkpoint._hash(_checkpoint._canonical(manifest))
    path.write_bytes(_checkpoint._canonical(manifest))


def test_newer_formats_and_foreign_names_are_refused(tmp_path):
    folder_with(tmp_path)
    manifest = tmp_path / "model.json"
    good = manifest.read_bytes()

    rewrite(manifest, lambda m: m.update(version=99))
    with pytest.raises(CheckpointError, match="has format version 99; this library reads up to 1"):
        _checkpoint.read(str(tmp_path), "model")
    manifest.write_bytes(good)
    rewrite(manifest, lambda m: m["files"]["state"].update(name="../../etc/passwd"))
    with pytest.raises(CheckpointError, match="lists a file of another name"):
        _checkpoint.read(str(tmp_path), "model")
    manifest.write_text("{}")
    with pytest.raises(CheckpointError, match="damaged, or no checkpoint's manifest"):
        _checkpoint.read(str(tmp_path), "model")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "-a", "a\n", "x" * 129, "ä", 3])
def test_names_that_are_no_plain_file_names_are_refused_before_anything(tmp_path, name):
    with pytest.raises(ValueError, match="A checkpoint's name has 1 to 128"):
        _checkpoint.Folder(str(tmp_path)).save(name, PARTS, {})
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
        "from trax_torch.supervised._checkpoint import Folder\n"
        "with Folder(sys.argv[1]).lock():\n"
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
        _checkpoint.pack({"a": [object()]}, "data0", {})


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_a_folder_of_somebody_else_is_refused(tmp_path):
    """In a child that is not root."""
    tmp_path.chmod(0o755)
    (tmp_path / "theirs").mkdir(mode=0o755)
    for parent in tmp_path.parents:
        if parent.name.startswith("pytest"):
            parent.chmod(0o755)
    child = os.fork()
    if not child:
        os.setuid(12345)
        try:
            _checkpoint.Folder(str(tmp_path / "theirs"))
        except CheckpointError as error:
            os._exit(0 if "cannot be written to" in str(error) else 3)
        os._exit(4)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
