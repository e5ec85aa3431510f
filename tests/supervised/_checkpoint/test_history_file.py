"""The history lies in a file that grows, and each checkpoint keeps the part that was its own."""

import json
import os

import pytest
import torch
from toys import assert_same_run, line_loop, train_task

from trax_torch import _distributed
from trax_torch._errors import CheckpointError
from trax_torch.supervised._checkpoint import files, saver, storage
from trax_torch.supervised.history import History

PARTS = {"weights": {"w": torch.zeros(2)}, "state": {}, "opt_slots0": {}}


def with_values(*values):
    history = History()
    for step, value in enumerate(values, 1):
        history.append("train", "loss", step, value)
    return history


def save(to, name, history):
    step = len(history.get("train", "loss"))
    to.save([name], PARTS, {"step": step}, history, blocking=True)


def new_saver(path, name=None):
    """A saver, of a new run or of one that has gone on from a checkpoint."""
    made = saver.Saver(str(path), _distributed.join())
    if name is not None:
        manifest = storage.read_manifest(str(path), name)
        made.goes_on_from(name, manifest, read(path, name))
    return made


def read(path, name):
    return History.from_dict(storage.read(str(path), name)[1]["history"])


def losses(path, name):
    return [value for _, value in read(path, name).get("train", "loss")]


def histories(path):
    return sorted(p.name for p in path.glob("history.*"))


def rewrite(path, change):
    manifest = json.loads(path.read_text())
    manifest.pop("hash")
    change(manifest)
    manifest["hash"] = files.hash_of(storage._canonical(manifest))
    path.write_bytes(storage._canonical(manifest))


def test_each_checkpoint_has_its_own_part_of_one_file(tmp_path):
    one = new_saver(tmp_path)
    save(one, "none", History())
    for n in (1, 2, 3):
        save(one, f"at_{n}", with_values(*range(n)))
    (name,) = histories(tmp_path)

    assert [losses(tmp_path, n) for n in ("none", "at_1", "at_2", "at_3")] == [
        [], [0], [0, 1], [0, 1, 2],
    ]  # fmt: skip
    lines = (tmp_path / name).read_text().splitlines()
    assert json.loads(lines[1]) == {"train": {"loss": [[2, 1]]}}
    again = new_saver(tmp_path, "at_3")
    save(again, "at_4", with_values(*range(4)))
    assert histories(tmp_path) == [name]


def test_what_is_no_number_in_json_comes_back_too(tmp_path):
    values = (float("inf"), float("-inf"), 1e-300, 2**60, None)
    save(new_saver(tmp_path), "model", with_values(*values, float("nan")))

    *rest, last = losses(tmp_path, "model")
    assert tuple(rest) == values
    assert last != last


def test_a_run_that_went_back_takes_nothing_from_later_checkpoints(tmp_path):
    one = new_saver(tmp_path)
    save(one, "early", with_values(0, 1))
    save(one, "late", with_values(0, 1, 2, 3))
    back = new_saver(tmp_path, "early")
    save(back, "other", with_values(0, 1, 7))

    assert losses(tmp_path, "late") == [0, 1, 2, 3]
    assert losses(tmp_path, "other") == [0, 1, 7]
    assert len(histories(tmp_path)) == 2
    save(back, "late", with_values(0, 1, 7, 8))  # the last that lists what is early's alone, now
    save(back, "early", with_values(0, 1, 7, 8))
    assert len(histories(tmp_path)) == 1


def test_what_a_broken_off_save_left_is_cut(tmp_path):
    save(new_saver(tmp_path), "model", with_values(0, 1))
    (name,) = histories(tmp_path)
    with open(tmp_path / name, "ab") as f:
        f.write(b'{"train":{"loss":[[3,99')
    assert losses(tmp_path, "model") == [0, 1]
    save(new_saver(tmp_path, "model"), "model", with_values(0, 1, 2))

    assert losses(tmp_path, "model") == [0, 1, 2]
    assert histories(tmp_path) == [name]


@pytest.mark.parametrize("harm", ["gone", "another's", "shorter"])
def test_a_file_that_is_not_as_it_was_left_is_written_anew(tmp_path, harm):
    """In the midst of a run: from memory, where all of it is."""
    one = new_saver(tmp_path)
    save(one, "model", with_values(0, 1))
    path = tmp_path / histories(tmp_path)[0]
    if harm == "gone":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data[:-3] if harm == "shorter" else data.replace(b"[1,0]", b"[1,5]"))
    with pytest.raises(CheckpointError, match=path.name):
        storage.read(str(tmp_path), "model")
    save(one, "model", with_values(0, 1, 2))

    assert losses(tmp_path, "model") == [0, 1, 2]
    assert histories(tmp_path) not in ([], [path.name])


def test_two_runs_that_took_turns_do_not_write_into_each_others_part(tmp_path):
    """The second went on from what the first had saved, and the first saves again."""
    first = new_saver(tmp_path)
    save(first, "model", with_values(0))
    save(new_saver(tmp_path, "model"), "second", with_values(0, 5))
    save(first, "first", with_values(0, 6))

    assert losses(tmp_path, "second") == [0, 5]
    assert losses(tmp_path, "first") == [0, 6]


def test_what_a_damaged_manifest_lists_is_spared(tmp_path):
    one = new_saver(tmp_path)
    save(one, "model_3", with_values(0, 1, 2))
    before = histories(tmp_path)
    manifest = tmp_path / "model_3.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"step":3', b'"step":4'))
    save(new_saver(tmp_path), "model", with_values(4))

    assert set(before) < set(histories(tmp_path))


def test_hostile_lines_are_refused_though_their_hash_is_right(tmp_path):
    save(new_saver(tmp_path), "model", with_values(0, 1))
    path = tmp_path / histories(tmp_path)[0]
    for data in (
        b"[]", b"{", b'{"a":1}', b'{"a":{"b":1}}', b'{"a":{"b":[1]}}', b'{"a":{"b":[[1,2,3]]}}',
        b'{"a":{"b":[["x",2]]}}', b'{"a":{"b":[[Infinity,2]]}}', b"[" * 10**5, b"\xff",
    ):  # fmt: skip
        path.write_bytes(data)
        claims = {"size": len(data), "sha256": files.hash_of(data)}
        rewrite(tmp_path / "model.json", lambda m, claims=claims: m["history"].update(claims))
        with pytest.raises(CheckpointError, match=path.name):
            storage.read(str(tmp_path), "model")


@pytest.mark.parametrize("name", ["../history.0123456789abcdef.jsonl", "model.json", 7, None])
def test_a_history_of_another_name_is_refused(tmp_path, name):
    save(new_saver(tmp_path), "model", with_values(0))
    rewrite(tmp_path / "model.json", lambda m: m["history"].update(name=name))

    with pytest.raises(CheckpointError, match=r"model\.json is damaged"):
        storage.read(str(tmp_path), "model")


def test_what_json_cannot_hold_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="history cannot be saved: .*object"):
        save(new_saver(tmp_path), "model", with_values(object()))


def bytes_written(folder, monkeypatch, loop):
    """How many bytes a save writes to files of checkpoints."""
    count, write, pwrite = [0], storage._write, os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr(storage, "_write", lambda p, d: count.append(len(d)) or write(p, d))
        patch.setattr(os, "pwrite", lambda f, d, at: count.append(len(d)) or pwrite(f, d, at))
        loop.save_checkpoint("model")
    parts = sum(p.stat().st_size for p in folder.glob("model.*.safetensors"))
    return sum(count) + parts


def test_a_save_writes_what_is_new(tmp_path, monkeypatch):
    """As many bytes after 100,000 evals as after 10."""
    written = []
    for n in (10, 100_000):
        folder = tmp_path / str(n)
        loop = line_loop(folder, checkpoint_at=lambda step: False)
        for step in range(n):
            loop.history.append("eval", "metrics/L2Loss", step, 0.123456789)
        loop.save_checkpoint("model")
        loop.history.append("eval", "metrics/L2Loss", 123_456, 0.5)
        written.append(bytes_written(folder, monkeypatch, loop))

    assert written[0] > 1000
    assert written[1] < written[0] + 20  # a size of more digits


def test_a_background_save_has_the_history_of_its_step(tmp_path, monkeypatch):
    loop = line_loop(tmp_path, checkpoint_at=lambda step: False)
    loop.history.append("eval", "x", 1, 0.5)
    append = saver.HistoryFile.append

    def meanwhile(self, history, lengths):
        history.append("eval", "x", 2, 0.75)
        history.append("eval", "y", 2, 0.75)
        return append(self, history, lengths)

    with monkeypatch.context() as patch:
        patch.setattr(saver.HistoryFile, "append", meanwhile)
        loop.save_checkpoint("model", blocking=False)
        loop._saver.wait()
    assert read(tmp_path, "model").to_dict() == {"_values": {"eval": {"x": [(1, 0.5)]}}}
    loop.save_checkpoint("model")

    assert read(tmp_path, "model").to_dict() == loop.history.to_dict()


def test_a_resumed_run_goes_on_in_the_file(tmp_path):
    """Also from checkpoints with the same history, loaded from another folder."""
    at = {"task": None, "dropout": 0.3}
    twin = line_loop(**at)
    twin.run(15)
    for _ in range(3):
        loop = line_loop(tmp_path / "run", **at | {"task": train_task()})
        loop.run(5)
    assert len(histories(tmp_path / "run")) == 1
    assert_same_run(loop, twin)
    other = line_loop(tmp_path / "other", **at | {"task": train_task()})
    other.load_checkpoint(str(tmp_path / "run"))
    other.save_checkpoint("model")

    saved = read(tmp_path / "other", "model").to_dict()
    assert saved == other.history.to_dict() == read(tmp_path / "run", "model").to_dict()
    assert len(histories(tmp_path / "other")) == 1
