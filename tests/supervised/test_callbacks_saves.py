"""Whichever callback asks for a checkpoint, and where: it is one of the run, in any order."""

import functools

import pytest
import torch
from callback_runs import averaging
from toys import history_of, line_loop, nan_loop, state_of, train_task

from trax_torch import optimizers
from trax_torch.supervised import Loop, TrainingStepCallback
from trax_torch.supervised._checkpoint import Checkpointer, verify
from trax_torch.supervised.callbacks import EarlyStopping, Monitor

# Every method that Loop calls on a callback in a run, and `__init__`.
HOOKS = [
    "__init__",
    "call_at",
    "on_step_begin",
    "on_step_end",
    "on_evals_begin",
    "on_evals_end",
    "training_values",
    "on_run_end",
]
N_FIRST, N_ALL = 5, 9  # a run ends, and another follows
AT = {"checkpoint_at": lambda step: step == 3, "eval_at": lambda step: step % 2 == 0}


class Counting(TrainingStepCallback):
    """Remembers what it was told how often, and draws of the run's random numbers."""

    def __init__(self, loop):
        super().__init__(loop)
        self.counts = {}

    def hear(self, hook):
        self.counts[hook] = self.counts.get(hook, 0) + 1
        torch.rand(1, generator=self._loop.new_rng())

    def call_at(self, step):
        self.hear("call_at")
        return True

    def on_step_begin(self, step):
        self.hear("on_step_begin")

    def on_step_end(self, step):
        self.hear("on_step_end")

    def on_evals_begin(self, step):
        self.hear("on_evals_begin")

    def on_evals_end(self, step):
        self.hear("on_evals_end")

    def on_run_end(self, step):
        self.hear("on_run_end")

    def training_values(self):
        self.hear("training_values")
        return {}

    def state_dict(self):
        return {"counts": dict(self.counts)}

    def load_state_dict(self, state):
        self.counts = dict(state["counts"])


def asking(hook, name="asked", does=None):
    """Returns a callback that asks for a checkpoint once, in one of its methods, in step 4."""

    class Asks(TrainingStepCallback):
        def __init__(self, loop):
            super().__init__(loop)
            self.has_asked = False
            if hook == "__init__":
                self.ask()

        def ask(self):
            if not self.has_asked:
                self.has_asked = True
                (does or (lambda loop: loop.save_checkpoint(name)))(self._loop)

    def method(self, *args):
        known = getattr(TrainingStepCallback, hook)(self, *args)
        if (args or [self._loop.step])[0] >= 4:
            self.ask()
        return known

    if hook != "__init__":
        setattr(Asks, hook, method)
    return Asks


def make_loop(folder, asks=(), order=1, **kwargs):
    """Returns a loop with callbacks of all kinds, in one order or the other."""
    stopping = functools.partial(EarlyStopping, metric="L2Loss", patience=100)
    callbacks = [*asks, averaging(), Counting, stopping, Monitor][::order]
    return line_loop(folder, dropout=0.3, callbacks=callbacks, **AT, **kwargs)


def go_on(loop):
    """Trains by two runs, or what is left of them."""
    for end in (N_FIRST, N_ALL):
        if loop.step < end:
            loop.run(end - loop.step)
    loop.save_checkpoint("end")


def is_saved(folder, name):
    return (folder / f"{name}.json").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run in which nobody asked for anything."""
    folder = tmp_path_factory.mktemp("whole")
    go_on(make_loop(folder))
    return folder


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("hook", HOOKS)
def test_what_a_callback_saves_is_the_run_wherever_and_in_whichever_order(
    tmp_path, whole, hook, background
):
    """Both orders give the same checkpoint; a run from there, and the one that saved, end alike."""
    at = []
    for order in (1, -1):
        folder = tmp_path / str(order)
        go_on(make_loop(folder, [asking(hook)], order, background_saves=background))
        assert verify.differences(str(folder), str(whole), "end") == []
        resumed = make_loop(tmp_path / f"{order} resumed", order=order)
        resumed.load_checkpoint(str(folder), "asked")
        at.append(resumed.step)
        go_on(resumed)
        assert verify.differences(str(tmp_path / f"{order} resumed"), str(whole), "end") == []

    assert verify.differences(str(tmp_path / "1"), str(tmp_path / "-1"), "asked") == []
    assert at == [{"__init__": 0, "on_run_end": 5}.get(hook, 4)] * 2


def test_a_checkpoint_of_half_told_callbacks_would_show(tmp_path, whole, monkeypatch):
    """The comparison can fail."""
    monkeypatch.setattr("trax_torch.supervised._loop.Saves.__enter__", lambda self: None)
    monkeypatch.setattr("trax_torch.supervised._loop.Saves.__exit__", lambda self, *_: None)
    for order in (1, -1):
        go_on(make_loop(tmp_path / str(order), [asking("on_evals_end")], order))

    assert verify.differences(str(tmp_path / "1"), str(tmp_path / "-1"), "asked") != []


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_asked_for_while_a_checkpoint_is_loaded_is_saved_when_it_is(tmp_path, order):
    class Asks(TrainingStepCallback):
        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            self._loop.save_checkpoint("asked")

    make_loop(tmp_path, [Asks], order).run(4)
    assert not is_saved(tmp_path, "asked")
    make_loop(tmp_path, [Asks], order)

    asked, model = (verify.contents(str(tmp_path), name) for name in ("asked", "model"))
    assert asked["step"] == 4
    assert asked.keys() == model.keys()
    assert [k for k in asked if not verify.is_equal(asked[k], model[k])] == []


def test_a_state_that_asks_for_a_checkpoint_of_itself_is_refused(tmp_path):
    class Asks(TrainingStepCallback):
        asks = True

        def state_dict(self):
            if self.asks:
                self._loop.save_checkpoint("asked")
            return {}

        def load_state_dict(self, state):
            pass

    loop = line_loop(tmp_path, callbacks=[Asks])
    with pytest.raises(ValueError, match="asked for a checkpoint 'asked', which would hold that"):
        loop.save_checkpoint("mine")
    loop.callbacks[0].asks = False
    loop.save_checkpoint("mine")

    assert is_saved(tmp_path, "mine")
    assert not is_saved(tmp_path, "asked")


def test_what_a_step_that_fails_keeps_from_being_saved_its_error_says(tmp_path):
    """And no later step saves it."""
    loop = nan_loop(tmp_path, steps=(4,), callbacks=[asking("on_step_begin")])
    with pytest.raises(optimizers.NonFiniteError) as caught:
        loop.run(6)
    loop.run(2)

    assert "Therefore these checkpoints were not saved: asked." in caught.value.__notes__
    assert not is_saved(tmp_path, "asked")


@pytest.mark.parametrize("hook", HOOKS)
def test_no_hook_loads_a_checkpoint_under_the_others(tmp_path, hook):
    """Its step would be another's; the run goes on where it was, when that is caught."""

    def load(loop):
        with pytest.raises(ValueError, match="load_checkpoint was called while callbacks are told"):
            loop.load_checkpoint()
        seen.append(loop.step)

    seen = []
    loop, twin = make_loop(tmp_path, [asking(hook, does=load)]), make_loop(None)
    loop.run(N_ALL)
    twin.run(N_ALL)

    assert len(seen) == 1
    assert history_of(loop) == history_of(twin)


# Averages


@pytest.mark.parametrize("order", [1, -1])
def test_a_checkpoint_holds_the_weights_in_training_while_averages_are_applied(tmp_path, order):
    """Applied once or twice, by a script or in a hook: it is saved when the weights are back."""

    def save_averaged(loop):
        ema = next(c for c in loop.callbacks if hasattr(c, "applied"))
        with ema.applied():
            loop.save_checkpoint("hook")

    loop = make_loop(tmp_path, [asking("on_step_end", does=save_averaged)], order)
    loop.run(4)
    training = state_of(loop)
    ema = next(c for c in loop.callbacks if hasattr(c, "applied"))
    with ema.applied(), ema.applied():
        loop.run_evals()
        loop.save_checkpoint("script")
        assert not is_saved(tmp_path, "script")

    for name in ("hook", "script"):
        found = make_loop(None)
        found.load_checkpoint(str(tmp_path), name)
        assert found.step == 4
        assert all(torch.equal(v, training[k]) for k, v in state_of(found).items())


def test_what_is_asked_for_in_a_block_that_fails_is_not_saved_later(tmp_path):
    loop = make_loop(tmp_path)
    with pytest.raises(KeyError) as caught, loop.saves_later():
        loop.save_checkpoint("asked")
        raise KeyError
    loop.run(4)

    assert caught.value.__notes__ == ["Therefore these checkpoints were not saved: asked."]
    assert not is_saved(tmp_path, "asked")


# Loop's own methods, made anew


def test_a_run_saves_measures_and_logs_by_what_a_subclass_makes_of_it(tmp_path):
    """With Trax's own signature of save_checkpoint; what was saved is there when it returns."""
    asked = []

    class Mine(Loop):
        def save_checkpoint(self, basename):
            super().save_checkpoint(basename)
            asked.append(("save", self.step, basename))
            assert verify.contents(self.output_dir, basename)["step"] == self.step

        def run_evals(self, *args, **kwargs):
            asked.append(("evals", self.step))
            return super().run_evals(*args, **kwargs)

        def log_summary(self, values, *args, **kwargs):
            asked.append(("log", self.step, *values))
            super().log_summary(values, *args, **kwargs)

        def load_checkpoint(self, *args, **kwargs):
            super().load_checkpoint(*args, **kwargs)
            asked.append(("load", self.step))

    def loop():
        asked.clear()
        return Mine(
            line_loop().model,
            train_task(),
            eval_tasks=line_loop().eval_tasks,
            output_dir=str(tmp_path),
            checkpoint_at=lambda step: step == 2,
            permanent_checkpoint_at=lambda step: step == 2,
            checkpoint_low_metric="L2Loss",
            random_seed=0,
        )

    loop().run(2)
    assert [each for each in asked if each[0] != "log"] == [
        ("load", 0),
        ("save", 2, "model"),
        ("save", 2, "model_2"),
        ("evals", 2),
        ("save", 2, "lowest_L2Loss"),
    ]
    logged = {name for each in asked if each[0] == "log" for name in each[2:]}
    assert {"L2Loss", "learning_rate", "gradients_l2"} <= logged
    loop()
    assert asked == [("load", 2)]


def test_what_is_due_at_a_step_is_saved_behind_the_run_in_one_go(tmp_path, monkeypatch):
    """The run waits for none; an override that does has its checkpoint when it is back."""
    saved = []
    save = Checkpointer.save

    def spy(self, names, blocking):
        saved.extend([(names, blocking)] if names else [])
        save(self, names, blocking)

    class Waits(Loop):
        def save_checkpoint(self, basename, **kwargs):
            super().save_checkpoint(basename, blocking=True)
            assert verify.contents(self.output_dir, basename)["step"] == self.step

    monkeypatch.setattr(Checkpointer, "save", spy)
    for kind in (Loop, Waits):
        loop = kind(
            line_loop().model,
            train_task(),
            output_dir=str(tmp_path / kind.__name__),
            checkpoint_at=lambda step: step == 2,
            permanent_checkpoint_at=lambda step: step == 2,
            background_saves=True,
        )
        loop.run(2)

    in_one, *one_by_one = saved
    assert in_one == (["model", "model_2"], False)
    assert one_by_one == [(["model"], True), (["model_2"], True)]
