"""`model.pkl.gz` stands for the checkpoint 'model' where a run keeps Trax's ways."""

import contextlib
import os
import shutil
import signal

import pytest
import torch
from saboteur import Saboteur
from toys import assert_same_run, eval_task, line_model, train_task

import trax_torch
from trax_torch import _distributed
from trax_torch import layers as tl
from trax_torch._errors import CheckpointError
from trax_torch.supervised import training
from trax_torch.supervised._checkpoint import stand_in, storage
from trax_torch.supervised._checkpoint.saver import Saver
from trax_torch.supervised.history import History

FILE = "model.pkl.gz"


class TraxLoop(training.Loop):
    """A `Loop` with Trax's ways, as `trax_torch.as_trax` has it."""

    def _build(self, config, *given):
        super()._build(config.in_traxs_ways(), *given)


def loop_in(folder, kind=TraxLoop, model=None, **settings):
    model = model or line_model(0.0)
    return kind(
        model,
        train_task(),
        eval_tasks=eval_task(),
        output_dir=str(folder),
        progress=False,
        random_seed=0,
        **settings,
    )


@pytest.fixture
def run(tmp_path):
    """A folder in which 5 steps were taken."""
    loop_in(tmp_path).run(5)
    return tmp_path


def weights_of(model):
    return [p.detach().clone() for p in model.parameters()]


def filled(place):
    model = line_model(0.0)
    trax_torch.load_weights(model, str(place), weights_only=True)
    return weights_of(model)


def same(some, others):
    return all(map(torch.equal, some, others))


def test_programs_find_it_fill_models_from_it_and_go_on(run):
    model = line_model(0.0)
    model.init_from_file(str(run / FILE), weights_only=True)
    loop = loop_in(run)

    assert (run / FILE).stat().st_size < 200
    assert same(weights_of(model), weights_of(loop.model))
    assert loop.step == 5
    assert loop.load_checkpoint(str(run), FILE) is None
    assert loop_in(run, resume_from=FILE).step == 5


@pytest.mark.parametrize("way", [os.remove, os.unlink, lambda path: os.system(f"rm -f '{path}'")])
def test_where_it_was_removed_a_run_begins_afresh(run, way, capsys):
    """As if nothing had been saved; what was saved is kept aside, whole, and words say where."""
    before = filled(run)
    way(run / FILE)

    loop = loop_in(run)
    said = capsys.readouterr().out
    fresh = loop_in(run / "fresh")

    (aside,) = (run / "set_aside").iterdir()
    assert loop.step == 0
    assert f"model.pkl.gz was removed from {run}, so the run begins afresh" in said
    assert str(aside) in said
    assert_same_run(loop, fresh)
    loop.run(3)
    fresh.run(3)
    assert_same_run(loop, fresh)
    for place in (aside, aside / "model", aside / "model.json", aside / FILE):
        assert same(filled(place), before)
    assert loop_in(run).step == 3
    again = loop_in(run, resume_from=str(aside))
    assert (again.step, again.history.get("train", "metrics/L2Loss")[0][0]) == (5, 1)


def test_another_model_may_begin_where_it_was_removed(run):
    """Which is why programs remove it."""
    (run / FILE).unlink()
    loop = loop_in(run, model=tl.Serial(tl.Dense(7), tl.Dense(1)))
    loop.run(2)

    assert loop_in(run, model=tl.Serial(tl.Dense(7), tl.Dense(1))).step == 2


def test_it_may_be_removed_again_and_again(run):
    for n in (1, 2, 3):
        (run / FILE).unlink()
        loop_in(run).run(n)

    assert loop_in(run).step == 3
    assert len(list((run / "set_aside").iterdir())) == 3


def test_other_checkpoints_stay_when_it_is_removed(tmp_path):
    """Permanent ones, and their history, which the one that is put aside has a copy of."""
    loop_in(tmp_path, permanent_checkpoint_at=lambda step: step == 3).run(5)
    (tmp_path / FILE).unlink()
    loop_in(tmp_path).run(1)

    (aside,) = (tmp_path / "set_aside").iterdir()
    assert loop_in(tmp_path, resume_from="model_3").step == 3
    again = loop_in(tmp_path, resume_from=str(aside))
    assert (again.step, again.history.get("train", "metrics/L2Loss")[0][0]) == (5, 1)


def test_removed_in_the_midst_of_a_run_it_comes_back(tmp_path):
    loop = loop_in(tmp_path)
    loop.run(2)
    (tmp_path / FILE).unlink()
    loop.run(2)

    assert (tmp_path / FILE).exists()
    assert loop_in(tmp_path).step == 4


def test_runs_with_other_ways_have_none_and_do_not_miss_it(tmp_path):
    """A run of `trax_torch` makes none; one that goes on from it under `trax` makes one then."""
    loop_in(tmp_path, training.Loop).run(2)
    assert not (tmp_path / FILE).exists()

    loop = loop_in(tmp_path)
    assert loop.step == 2
    loop.run(1)
    assert (tmp_path / FILE).exists()
    (tmp_path / FILE).unlink()
    assert loop_in(tmp_path, training.Loop).step == 3


def test_a_file_of_traxs_own_is_not_written_over(tmp_path):
    """It is the user's; that it is removed means the same."""
    training.pickle_to_file({"of": "Trax"}, tmp_path / FILE, gzip=True)
    content = (tmp_path / FILE).read_bytes()
    with pytest.raises(CheckpointError):
        loop_in(tmp_path)
    (tmp_path / FILE).rename(tmp_path / "away")
    loop = loop_in(tmp_path)
    (tmp_path / "away").rename(tmp_path / FILE)

    loop.run(1)

    assert (tmp_path / FILE).read_bytes() == content
    assert loop_in(tmp_path).step == 1
    (tmp_path / FILE).unlink()
    assert loop_in(tmp_path).step == 0


def test_a_copy_beside_the_checkpoint_leads_to_it_and_one_elsewhere_says_what_to_copy(run):
    shutil.copy(run / FILE, run / "best.pkl.gz")
    (run / "away").mkdir()
    shutil.copy(run / FILE, run / "away" / "best.pkl.gz")

    assert same(filled(run / "best.pkl.gz"), filled(run))
    with pytest.raises(CheckpointError, match=r"no checkpoint 'model' in .*away"):
        filled(run / "away" / "best.pkl.gz")
    trax_torch.export(run / FILE, run / "weights.safetensors")
    assert same(filled(run / "weights.safetensors"), filled(run))


NO_NAMES = ["../model.json", "model", ""]


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[1]", '{"format": "trax_torch.stand_in"}', "x" * 2000),
        *(f'{{"format": "trax_torch.stand_in", "manifest": "{name}"}}' for name in NO_NAMES),
    ],
)
def test_what_is_no_stand_in_leads_nowhere(tmp_path, content):
    (tmp_path / FILE).write_text(content)

    assert stand_in.manifest_of(str(tmp_path / FILE)) is None
    assert stand_in.manifest_of(str(tmp_path)) is None
    assert stand_in.manifest_of(str(tmp_path / "none")) is None


def folder_with(path, step):
    saver = Saver(str(path), _distributed.join(), has_stand_in=True)
    parts = {"weights": {"w": torch.full((2,), float(step))}}
    saver.save(["model"], parts, {"step": step}, History(), blocking=True)


def put_aside(path):
    return stand_in.put_aside_if_removed(str(path), "model")


def step_in(path):
    found = storage.read(str(path), "model")
    if found is None:
        return None
    parts, info = found
    assert parts["weights"]["w"].tolist() == [info["step"]] * 2
    return info["step"]


def broken(n, how, do):
    """Breaks the n-th call of the file system that something makes; tells whether there was one."""
    if how == "death":
        child = os.fork()
        if not child:
            with pytest.MonkeyPatch.context() as patch:
                Saboteur(patch, n, how)
                do()
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with pytest.MonkeyPatch.context() as patch:
        saboteur = Saboteur(patch, n, how)
        with contextlib.suppress(CheckpointError, KeyboardInterrupt):
            do()
    return saboteur.count >= n


HOW = pytest.mark.parametrize("how", [OSError, KeyboardInterrupt, "death"])


@HOW
def test_a_first_save_broken_anywhere_never_reads_as_a_removed_one(tmp_path, how):
    """It is there before the checkpoint is; the next save is whole in any case."""
    n, is_broken, found = 0, True, set()
    while is_broken:
        n += 1
        path = tmp_path / str(n)
        path.mkdir()
        is_broken = broken(n, how, lambda path=path: folder_with(path, 1))

        found.add(step_in(path))
        assert put_aside(path) is None
        folder_with(path, 2)
        assert step_in(path) == 2
        assert (path / FILE).exists()
    assert found == {None, 1}


@HOW
def test_putting_aside_broken_anywhere_leaves_it_here_or_there(tmp_path, how):
    """And is done the next time, once."""
    n, is_broken, outcomes = 0, True, set()
    while is_broken:
        n += 1
        path = tmp_path / str(n)
        folder_with(path, 1)
        (path / FILE).unlink()
        is_broken = broken(n, how, lambda path=path: put_aside(path))

        here = step_in(path)
        outcomes.add(here)
        if here is not None:
            assert here == 1
            put_aside(path)
        (aside,) = (path / "set_aside").iterdir()
        assert step_in(path) is None
        assert step_in(aside) == 1
        folder_with(path, 2)
        assert (step_in(path), step_in(aside)) == (2, 1)
    assert outcomes == {None, 1}


def test_where_there_are_no_links_files_are_copied(run, monkeypatch):
    def no_links(*args):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", no_links)
    before = filled(run)
    (run / FILE).unlink()
    loop_in(run).run(1)

    (aside,) = (run / "set_aside").iterdir()
    assert same(filled(aside), before)


def test_a_training_cell_may_be_run_twice(tmp_path, capsys):
    """The tasks are those of the first time, and their generators do not go back."""
    task, evals = train_task(), eval_task()

    def cell(kind=TraxLoop):
        model = line_model(0.0)
        loop = kind(model, task, eval_tasks=evals, output_dir=str(tmp_path), random_seed=0)
        loop.run(10)
        return loop

    cell()
    again = cell()
    said = capsys.readouterr().out
    assert again.step == 20
    assert "The data of eval 0 has given 4 batches, and 3 when this was saved" in said
    assert cell().step == 30
    with pytest.raises(CheckpointError, match="Build the task with fresh data"):
        cell(training.Loop)


def test_a_cell_that_was_broken_off_may_be_run_again(tmp_path):
    """Its data is further than its last checkpoint."""
    task = train_task()
    for _ in range(5):
        task.next_batch()
    loop_in(tmp_path / "a").run(3)
    shutil.copytree(tmp_path / "a", tmp_path / "b")

    loop = TraxLoop(
        line_model(0.0), task, eval_tasks=eval_task(), output_dir=str(tmp_path / "b"), random_seed=0
    )
    loop.run(2)

    assert loop.step == 5


def test_under_the_alias_programs_begin_afresh(tmp_path):
    """The name `trax.supervised.training.Loop` is a `Loop` with these ways."""
    from trax_torch._as_trax import ways

    assert issubclass(ways.Loop, training.Loop)
    assert ways.of("trax.supervised.training") == {"Loop": ways.Loop}
    loop_in(tmp_path, ways.Loop).run(2)
    (tmp_path / FILE).unlink()

    assert loop_in(tmp_path, ways.Loop).step == 0
    assert len(filled(next((tmp_path / "set_aside").iterdir()))) == 4
