"""What callbacks are told of a run, when, and what it costs those who are not."""

import functools

import pytest
import ranks
import torch
from toys import history_of, line_loop, nan_loop, state_of

from trax_torch.supervised import TrainingStepCallback
from trax_torch.supervised._loop import habits

AT = {"checkpoint_at": lambda step: step == 2, "eval_at": lambda step: step == 2}
HOOKS = [name for name, x in vars(TrainingStepCallback).items() if getattr(x, "is_hook", False)]


class Notes(TrainingStepCallback):
    """Notes each call."""

    def __init__(self, loop, told):
        super().__init__(loop)
        self.told = told

    def call_at(self, step):
        return step != 3

    def on_log(self, step, values):
        self.told.append(("on_log", step, sorted({name.split("/")[0] for name in values})))

    def training_values(self):
        return {}


def _noting(name):
    def method(self, *args):
        self.told.append((name, *args))

    return method


for _name in set(HOOKS) - {"call_at", "on_log", "training_values"}:
    setattr(Notes, _name, _noting(_name))


def test_hooks_are_told_in_the_order_of_a_run(tmp_path):
    told = []
    loop = line_loop(tmp_path, callbacks=functools.partial(Notes, told=told), log_every=3, **AT)
    loop.run(4)

    assert told == [
        ("on_run_begin", 0),
        *[(f"on_{what}", 1) for what in ("step_begin", "backward_end", "update_end", "step_end")],
        *[(f"on_{what}", 2) for what in ("step_begin", "backward_end", "update_end", "step_end")],
        ("on_save", 2, "model"),
        ("on_evals_begin", 2),
        ("on_evals_end", 2),
        ("on_log", 2, ["eval", "train"]),
        ("on_backward_end", 3),  # call_at is of steps alone
        ("on_update_end", 3),
        ("on_log", 3, ["train"]),
        *[(f"on_{what}", 4) for what in ("step_begin", "backward_end", "update_end", "step_end")],
        ("on_save", 4, "model"),
        ("on_evals_begin", 4),
        ("on_evals_end", 4),
        ("on_log", 4, ["eval", "train"]),
        ("on_run_end", 4),
    ]


def test_the_values_of_on_log_are_those_of_the_history():
    found = {}

    class Log(TrainingStepCallback):
        def on_log(self, step, values):
            for name, value in values.items():
                found.setdefault(name, []).append((step, value))

    loop = line_loop(callbacks=Log, log_every=2)
    loop.run(6)
    loop.run_evals()

    values = loop.history.to_dict()["_values"]
    assert found == {f"{mode}/{k}": v for mode, each in values.items() for k, v in each.items()}


def test_on_load_is_told_of_the_checkpoint_a_loop_begins_with_and_of_later_ones(tmp_path):
    told, kept = [], functools.partial(Notes, told=[])
    line_loop(tmp_path, callbacks=kept, **AT).run(2)
    loop = line_loop(
        tmp_path, callbacks=functools.partial(Notes, told=told), resume_data="restart", **AT
    )
    assert told == [("on_load", 2)]
    loop.run(1)
    told.clear()
    loop.load_checkpoint(str(tmp_path), "model")

    assert told == [("on_load", 3)]
    fresh = []
    line_loop(tmp_path / "new", callbacks=functools.partial(Notes, told=fresh))
    assert fresh == []


def test_on_save_is_told_of_each_name_also_of_what_is_saved_by_hand(tmp_path):
    told = []
    loop = line_loop(tmp_path, callbacks=functools.partial(Notes, told=told))
    loop.save_checkpoint("mine")
    loop.save_checkpoint("later", blocking=False)

    assert told == [("on_save", 0, "mine"), ("on_save", 0, "later")]
    assert list(tmp_path.glob("mine*"))


@pytest.mark.parametrize("more", [{}, {"n_accumulation_steps": 2}, {"precision": "fp16"}])
def test_gradients_are_whole_and_the_weights_old_when_backward_ends(more):
    """And new, with the gradients still there, when the update ends; a loss's scale is undone."""
    seen = []

    class Look(TrainingStepCallback):
        def weights(self):
            return [p.detach().clone() for p in self._loop.model.parameters()]

        def on_step_begin(self, step):
            self.before = self.weights()

        def on_backward_end(self, step):
            self.same = all(map(torch.equal, self.before, self.weights()))
            grads = [p.grad for p in self._loop.model.parameters()]
            self.norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in grads])).item()

        def on_update_end(self, step):
            seen.append((self.same, all(map(torch.equal, self.before, self.weights())), self.norm))

    loop = line_loop(callbacks=Look, eval_at=lambda step: True, **more)
    loop.run(3)

    norms = [norm for _, norm in loop.history.get("train", "training/gradients_l2")]
    assert seen == [(True, False, pytest.approx(norm, rel=1e-5)) for norm in norms]


def test_a_step_that_is_skipped_updates_nothing_and_tells_of_none():
    told = []
    loop = nan_loop(steps=(3,), on_nonfinite="skip", callbacks=functools.partial(Notes, told=told))
    loop.run(4)

    assert [step for name, step, *_ in told if name == "on_backward_end"] == [1, 2, 3, 4]
    assert [step for name, step, *_ in told if name == "on_update_end"] == [1, 2, 4]


@pytest.mark.parametrize("name", ["on_backward_end", "on_update_end", "on_save", "on_log"])
def test_what_a_hook_raises_ends_the_run_at_a_whole_step(tmp_path, name):
    """A step whose gradients are refused is not taken; one that was updated is."""

    def fail(self, step, *args):
        if step == 2:
            raise KeyError(f"no {name}")

    twin = line_loop(dropout=0.5, **AT)
    twin.run(1 if name == "on_backward_end" else 2)
    loop = line_loop(
        tmp_path, dropout=0.5, callbacks=type("Fail", (TrainingStepCallback,), {name: fail}), **AT
    )
    with pytest.raises(KeyError, match=f"no {name}"):
        loop.run(4)

    assert loop.step == twin.step
    assert all(torch.equal(x, state_of(twin)[key]) for key, x in state_of(loop).items())
    if name != "on_backward_end":  # whose batch is gone
        loop.callbacks.clear()
        loop.run(until=6)
        twin.run(until=6)
        assert all(torch.equal(x, state_of(twin)[key]) for key, x in state_of(loop).items())


def test_a_run_that_cannot_begin_is_told_to_all_that_it_ends():
    told = []

    class Refuse(Notes):
        def on_run_begin(self, step):
            raise KeyError("not now")

    loop = line_loop(callbacks=functools.partial(Refuse, told=told))
    with pytest.raises(KeyError, match="not now"):
        loop.run(2)

    assert told == [("on_run_end", 0)]
    assert loop.step == 0


def test_who_overrides_nothing_is_called_for_nothing(monkeypatch):
    """Which methods count is looked at when a run begins."""
    called = []

    def watched(name, is_hook):
        def method(self, *args):
            called.append(name)
            return {} if name == "training_values" else True

        method.is_hook = is_hook
        return method

    for name in HOOKS:
        monkeypatch.setattr(TrainingStepCallback, name, watched(name, is_hook=True))

    class Idle(TrainingStepCallback):
        pass

    loop, twin = line_loop(callbacks=[Idle, Idle]), line_loop()
    loop.run(10)
    twin.run(10)

    assert called == []
    assert loop._callbacks.of_steps == []
    assert loop._callbacks.backward_ended is None
    assert loop._callbacks.updated is None
    assert history_of(loop) == history_of(twin)


def test_a_method_that_is_set_between_runs_counts_from_the_next():
    told = []
    loop = line_loop(callbacks=TrainingStepCallback)
    loop.run(1)
    loop.callbacks[0].on_step_end = told.append
    loop.run(2)

    assert told == [2, 3]


def test_classes_of_ones_own_need_no_more_than_they_did():
    class Own:
        def __init__(self, loop):
            self.told = []

        def call_at(self, step):
            return step > 1

        def on_step_begin(self, step):
            pass

        def on_step_end(self, step):
            self.told.append(step)

        def on_evals_begin(self, step):
            pass

        def on_evals_end(self, step):
            pass

        def on_run_end(self, step):
            self.told.append("end")

        def training_values(self):
            return {"mine": 0.5}

    loop = line_loop(callbacks=Own)
    loop.run(3)

    assert loop.callbacks[0].told == [2, 3, "end"]
    assert loop.history.get("train", "training/mine")[0] == (1, 0.5)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("on_train_begin", "on_run_begin(step)"),
        ("on_train_batch_end", "on_step_end(step)"),
        ("on_after_backward", "on_backward_end(step)"),
        ("on_save_checkpoint", "on_save(step, name)"),
    ],
)
def test_names_of_other_libraries_are_answered_with_ours(name, ours):
    mine = type("Mine", (TrainingStepCallback,), {name: lambda self, *args: None})

    with pytest.warns(UserWarning, match="is never called") as said:
        line_loop(callbacks=mine)
    assert [str(each.message) for each in said] == [
        f"Mine.{name} is never called. Loop calls {ours}."
    ]


def test_names_that_are_answered_with_ours_are_hooks():
    for name, ours in habits.OF_CALLBACKS.items():
        assert name not in HOOKS
        assert ours.split("(")[0] in HOOKS


def test_gradients_of_all_weights_at_once_are_not_had_block_by_block():
    class Look(TrainingStepCallback):
        def on_backward_end(self, step):
            pass

    with pytest.raises(ValueError, match="on_backward_end is called when all gradients are there"):
        line_loop(callbacks=Look, use_memory_efficient_trainer=True)


def test_updates_block_by_block_are_told_of():
    told = []

    class Look(TrainingStepCallback):
        def on_update_end(self, step):
            told.append(step)

    line_loop(callbacks=Look, use_memory_efficient_trainer=True).run(3)
    assert told == [1, 2, 3]


# Ranks.


def hooked(rank, folder, name):
    """Trains with a callback on rank 1 alone, whose method raises at step 2."""

    def fail(self, step, *args):
        if step == 2:
            raise KeyError("mine")

    maker = type("Fail", (TrainingStepCallback,), {name: fail} if rank else {})
    loop = line_loop(folder, callbacks=maker, **AT)
    if name == "on_run_begin":
        loop.run(2)
    try:
        loop.run(4)
    except Exception as error:
        return type(error).__name__, str(error), loop.step, state_of(loop)
    return None


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("on_backward_end", 1),
        ("on_update_end", 2),
        ("on_save", 2),
        ("on_log", 2),
        ("on_run_begin", 2),
    ],
)
def test_what_a_hook_raises_on_one_rank_ends_the_run_on_all(tmp_path, name, step):
    (chief, told, at, ours), (other, own, same, theirs) = ranks.values(
        tmp_path, 2, hooked, str(tmp_path), name
    )

    assert (chief, other) == ("RankError", "KeyError")
    assert "mine" in own
    assert "rank" in told.lower()
    assert (at, same) == (step, step)
    assert all(torch.equal(x, theirs[key]) for key, x in ours.items())
