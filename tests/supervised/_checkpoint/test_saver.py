"""Saves behind the run hold what was there, fail aloud, and are kept as long as was asked."""

import threading

import pytest
import torch
from toys import assert_same_run, line_loop, nan_loop, state_of, train_task

from trax_torch import optimizers
from trax_torch._errors import CheckpointError
from trax_torch.supervised import training
from trax_torch.supervised._checkpoint import storage

# Saves behind the run


def slowed(monkeypatch, gate):
    """Lets saves wait for an event."""
    write = storage._write

    def wait_and_write(path, data):
        assert gate.wait(600)
        write(path, data)

    monkeypatch.setattr(storage, "_write", wait_and_write)


def test_a_save_in_the_background_holds_what_was_there(tmp_path, monkeypatch):
    """Training goes on meanwhile, and the file is of the step at which it was asked for."""
    gate = threading.Event()
    slowed(monkeypatch, gate)
    loop = line_loop(tmp_path, checkpoint_at=lambda step: False, save_at_end=False)
    loop.run(3)
    at_3 = state_of(loop)

    loop.save_checkpoint("model", blocking=False)
    model_alone = {k: v.clone() for k, v in loop.model.state_dict().items()}
    with torch.no_grad():
        for p in loop.model.parameters():
            p.add_(1.0)
    gate.set()
    resumed_from = str(tmp_path)
    loop._saver.wait()

    assert model_alone.keys() == loop.model.state_dict().keys()
    again = line_loop(None)
    again.load_checkpoint(resumed_from)
    assert again.step == 3
    assert all(torch.equal(at_3[k], v) for k, v in state_of(again).items())


def test_a_run_with_background_saves_is_the_same_run(tmp_path):
    """To the last bit, and every file of it; also the copies that are written from, used again."""
    at = {"checkpoint_at": lambda step: True, "checkpoint_low_metric": "L2Loss"}
    runs = []
    for folder, behind in (("front", False), ("behind", True)):
        task = train_task(n_steps_per_permanent_checkpoint=4)
        loop = line_loop(tmp_path / folder, task=task, background_saves=behind, **at)
        loop.run(9)
        runs.append(loop)

    assert_same_run(*runs)
    names = ["model", "model_1", "model_4", "model_8", "lowest_L2Loss"]
    front, behind = str(tmp_path / "front"), str(tmp_path / "behind")
    assert [n for n in names if training.differences(front, behind, n)] == []


def test_a_background_save_that_fails_is_spoken_of(tmp_path, monkeypatch):
    """By the next save, or at the end of the run; what was saved before is intact."""
    loop = line_loop(tmp_path, checkpoint_at=lambda step: step == 2, background_saves=True)
    loop.save_checkpoint("model")

    def broken(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "_write", broken)
        with pytest.raises(CheckpointError, match="No space left on device"):
            loop.run(3)
        assert loop.step == 3
        loop.save_checkpoint("model", blocking=False)
        with pytest.raises(CheckpointError, match="No space left on device"):
            loop.save_checkpoint("model")
    assert storage.read(str(tmp_path), "model")[1]["step"] == 0

    loop.run(1)
    loop.save_checkpoint("model")
    assert storage.read(str(tmp_path), "model")[1]["step"] == 4


def test_an_error_in_a_run_does_not_hide_a_failing_save(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(28, "No space left on device")

    loop = nan_loop(tmp_path, checkpoint_at=lambda step: step == 2, background_saves=True)
    monkeypatch.setattr(storage, "_write", broken)
    with pytest.raises(optimizers.NonFiniteError) as caught:
        loop.run(5)

    assert any("No space left on device" in note for note in caught.value.__notes__)


# What is kept


EACH_STEP = {"permanent_checkpoint_at": lambda step: True, "keep_last": 2}


def permanent_in(folder):
    return {p.stem for p in folder.glob("model_*.json")}


def test_only_the_last_permanent_checkpoints_are_kept(tmp_path):
    """And best ones and other names stay."""
    loop = line_loop(tmp_path, checkpoint_low_metric="L2Loss", **EACH_STEP)
    loop.save_checkpoint("model_of_mine")
    loop.run(6)

    others = ["lowest_L2Loss.json", "model.json"]
    kept = sorted(p.name for p in tmp_path.glob("*.json"))
    assert kept == [*others, "model_5.json", "model_6.json", "model_of_mine.json"]
    assert len(list(tmp_path.glob("model_*.safetensors"))) == 3 * 3


def test_what_a_run_did_not_make_itself_is_not_deleted(tmp_path):
    """A model card; a checkpoint saved by hand, named by a date; those of a run before."""
    (tmp_path / "model_2024.json").write_text('{"about": "a card"}')
    (tmp_path / "model_0.json").write_text("[]")
    first = line_loop(tmp_path, **EACH_STEP)
    first.save_checkpoint("model_20241231")
    first.run(3)
    assert permanent_in(tmp_path) == {
        "model_2024", "model_0", "model_20241231", "model_2", "model_3",
    }  # fmt: skip
    (tmp_path / "model.json").unlink()
    line_loop(tmp_path, **EACH_STEP | {"permanent_checkpoint_at": lambda step: step > 3}).run(7)

    assert permanent_in(tmp_path) == {
        "model_2024", "model_0", "model_20241231", "model_2", "model_3", "model_6", "model_7",
    }  # fmt: skip


def test_a_file_of_somebody_else_is_not_written_over(tmp_path):
    """A card that is called like a checkpoint; one that is damaged makes room, though."""
    card = tmp_path / "model_2.json"
    card.write_text('{"about": "a card"}')
    loop = line_loop(tmp_path, **EACH_STEP)
    with pytest.raises(CheckpointError, match="model_2.json is there and is no checkpoint's"):
        loop.run(2)
    assert card.read_text() == '{"about": "a card"}'

    card.write_text("")
    loop.save_checkpoint("model_2")
    assert "model_2" in permanent_in(tmp_path)


def test_a_run_that_went_back_deletes_none_of_its_later_checkpoints(tmp_path):
    """They are replaced, and counted again, when it comes to their steps."""
    line_loop(tmp_path, **EACH_STEP | {"keep_last": 3}).run(6)
    loop = line_loop(tmp_path, resume_from="model_4", **EACH_STEP)
    loop.run(1)
    assert permanent_in(tmp_path) == {"model_4", "model_5", "model_6"}
    loop.run(2)

    assert permanent_in(tmp_path) == {"model_6", "model_7"}


def test_a_run_that_another_process_overtook_is_told(tmp_path):
    """Nothing is written over what the other one trained."""
    first = line_loop(tmp_path)
    first.run(5)
    line_loop(tmp_path).run(5)

    with pytest.raises(CheckpointError, match="Another process has trained into"):
        first.run(5)
    first.load_checkpoint()
    first.run(5)
    assert line_loop(tmp_path).step == 15
