"""The newest checkpoint is damaged, or gone: what is said, and how the run goes on."""

import pytest
from toys import assert_same_run, line_loop, train_task

from trax_torch._errors import CheckpointError

AT = {"keep_last": 3, "dropout": 0.3, "checkpoint_low_metric": "L2Loss"}


def make(folder, **more):
    task = train_task(n_steps_per_checkpoint=5, n_steps_per_permanent_checkpoint=5)
    return line_loop(folder, task=task, **AT | more)


@pytest.fixture
def folder(tmp_path):
    """With checkpoints of steps 5, 10, 15, 20 and, 'model', 20."""
    path = tmp_path / "run"
    make(path, save_at_end=False).run(22)
    return path


def damage(folder, name, part="weights"):
    (path,) = folder.glob(f"{name}.*.{part}.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def contents(folder, *names):
    return {p.name: p.read_bytes() for n in names for p in folder.glob(f"{n}.*")}


def test_damage_names_what_is_whole_and_the_line_that_starts_from_it(folder):
    damage(folder, "model")
    damage(folder, "model_20", "state")
    damage(folder, "lowest_L2Loss", "opt_slots0")
    wanted = r"weights.safetensors is damaged.* newest first: model_15, .*resume_from='model_15'"
    with pytest.raises(CheckpointError, match=wanted):
        make(folder)
    loop = make(folder, resume_from="model_15")
    assert loop.step == 15
    loop.run(until=28)

    twin = make(None)
    twin.run(28)
    assert_same_run(loop, twin)
    assert make(folder).step == 28


def test_damage_is_plain_where_nothing_else_is_whole(tmp_path):
    line_loop(tmp_path).run(1)
    damage(tmp_path, "model")

    with pytest.raises(CheckpointError, match="No other checkpoint in .* is whole"):
        line_loop(tmp_path)


def test_a_history_that_is_gone_is_damage_too(folder):
    for path in folder.glob("history.*"):
        path.unlink()

    with pytest.raises(CheckpointError, match=r"history\.\w+\.jsonl.* is not there"):
        make(folder)


def test_a_run_that_starts_afresh_beside_others_says_so_and_keeps_them(folder, capsys):
    (folder / "model.json").unlink()
    kept = contents(folder, "model_10", "model_15", "model_20")
    assert len(kept) == 3 * 4
    capsys.readouterr()
    loop = make(folder, permanent_checkpoint_at=lambda step: step % 2 == 1)
    said = capsys.readouterr().out
    loop.run(9)

    assert loop.step == 9
    (line,) = [line for line in said.splitlines() if "WARNING" in line]
    assert "nothing is resumed" in line
    assert "the newest first: model_20, " in line
    assert "resume_from='model_20'" in line
    assert contents(folder, "model_10", "model_15", "model_20") == kept
    assert not (folder / "model_3.json").exists()
    assert make(folder, resume_from="model_20").step == 20


def test_nothing_is_said_where_nothing_is(tmp_path, capsys):
    (tmp_path / "settings.json").write_text("{}")
    line_loop(tmp_path)

    assert "WARNING" not in capsys.readouterr().out


def test_a_run_starts_from_where_it_is_told_each_time(folder, tmp_path):
    """From a name in its folder, or a path; and is then the run of that place."""
    assert make(folder, resume_from="model_10").step == 10
    assert make(folder).step == 20
    elsewhere = make(tmp_path / "other", resume_from=str(folder / "model_15"))
    assert elsewhere.step == 15
    assert make(None, resume_from=str(folder)).step == 20
    with pytest.raises(CheckpointError, match="There is no checkpoint 'model_7'"):
        make(folder, resume_from="model_7")


def test_what_was_copied_from_a_run_is_not_deleted_by_another(folder, tmp_path):
    """It is another's run, also where this one began from it."""
    other = tmp_path / "other"
    other.mkdir()
    copied = contents(folder, "model_10", "model_15", "history")
    for name, data in copied.items():
        (other / name).write_bytes(data)
    make(other, resume_from=str(folder / "model_20"), keep_last=1).run(15)

    assert contents(other, "model_10", "model_15", "history").items() >= copied.items()
    assert not (other / "model_25.json").exists()
