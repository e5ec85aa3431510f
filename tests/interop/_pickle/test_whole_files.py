"""A file is written whole or not at all, and only a whole one is read."""

import builtins
import errno
import gzip
import os
import pickle
import stat

import numpy as np
import pytest
import torch
from pickled import read, there_and_back

from trax_torch import layers as tl
from trax_torch.interop import trax_checkpoint as tc
from trax_torch.supervised import training
from trax_torch.supervised.training import pickle_to_file, unpickle_from_file


def test_the_address_is_that_of_trax():
    assert training.pickle_to_file.__name__ in training.__all__
    assert training.unpickle_from_file.__name__ in training.__all__


# Reading.


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


# Writing.


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
