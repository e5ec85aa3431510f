"""Methods that all ranks must call, called by some: an error on all that says so, at once."""

import functools
import time

import patience
import pytest
import ranks
import torch
from toys import line_loop

from trax_torch.supervised.callbacks import TrainingStepCallback

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

CALLS = {
    "save_checkpoint('mine')": lambda loop: loop.save_checkpoint("mine"),
    "load_checkpoint()": lambda loop: loop.load_checkpoint(),
    "run_evals()": lambda loop: loop.run_evals(),
    "run()": lambda loop: loop.run(2),
    "nothing": lambda loop: None,
}


class Alone(TrainingStepCallback):
    """Has the chief call something in a hook, at step 2."""

    def __init__(self, loop, hook, call):
        super().__init__(loop)
        setattr(self, hook, functools.partial(self._do, call))

    def _do(self, call, step):
        if step == 2 and self._loop.is_chief:
            CALLS[call](self._loop)


def error_of(do):
    """Returns what was raised, and how many seconds it took."""
    start = time.monotonic()
    with pytest.raises(Exception) as raised:  # noqa: PT011  whatever it is, the test looks at it
        do()
    return type(raised.value).__name__, str(raised.value), time.monotonic() - start


def in_script(rank, folder, on_chief, on_others):
    """Several rounds, one after another: after the error all ranks are where they were."""
    loop = line_loop(folder, timeout=300.0, device="cpu")
    loop.run(2)
    call = CALLS[on_chief if loop.is_chief else on_others]
    if call is CALLS["nothing"]:
        return None
    return error_of(lambda: call(loop))


def in_hook(rank, folder, hook, call):
    callbacks = [functools.partial(Alone, hook=hook, call=call)]
    loop = line_loop(
        folder,
        timeout=300.0,
        device="cpu",
        callbacks=callbacks,
        eval_at=lambda step: step == 2,
    )
    return error_of(lambda: loop.run(2 if hook == "on_run_end" else 4))


def assert_says_so(found, *told):
    for name, text, seconds in found:
        assert name == "CallError"
        assert text.startswith("All ranks must call the same methods of Loop, in the same order; ")
        assert [each for each in told if each not in text] == []
        assert "not under `if loop.is_chief:`" in text
        assert seconds < patience.SOON  # ranks are given up after 300


@pytest.mark.parametrize(
    ("on_chief", "on_others"),
    [
        ("save_checkpoint('mine')", "run()"),
        ("load_checkpoint()", "run()"),
        ("run_evals()", "run()"),
        ("run()", "run_evals()"),
        ("run_evals()", "save_checkpoint('mine')"),
    ],
)
def test_the_chief_alone_calls_between_runs(on_chief, on_others, tmp_path):
    run = functools.partial(in_script, folder=str(tmp_path / "run"))
    run = functools.partial(run, on_chief=on_chief, on_others=on_others)
    found = ranks.values(tmp_path, 2, run)

    assert_says_so(found, f"{on_chief} on rank 0", f"{on_others} on rank 1")


@pytest.mark.parametrize(
    ("hook", "call", "others"),
    [
        ("on_step_begin", "save_checkpoint('mine')", "run()"),
        ("on_step_end", "save_checkpoint('mine')", "run()"),
        ("on_step_end", "run_evals()", "run()"),
        ("on_evals_begin", "save_checkpoint('mine')", "run()"),
        ("on_evals_end", "save_checkpoint('mine')", "run()"),
        ("on_run_end", "save_checkpoint('mine')", "run()"),
    ],
)
def test_the_chief_alone_calls_in_a_hook(hook, call, others, tmp_path):
    """Wherever the others are by then; on three ranks all of them are told apart."""
    run = functools.partial(in_hook, folder=str(tmp_path / "run"), hook=hook, call=call)
    found = ranks.values(tmp_path, 3, run)

    assert_says_so(found, f"{call} on rank 0", f"{others} on rank 1, 2")


@pytest.mark.parametrize("call", ["save_checkpoint('mine')", "run_evals()", "load_checkpoint()"])
def test_the_chief_alone_calls_when_the_others_have_ended(call, tmp_path):
    """Nobody is left to be told; the chief is, at once, and no process aborts."""
    run = functools.partial(in_script, folder=str(tmp_path / "run"))
    run = functools.partial(run, on_chief=call, on_others="nothing")
    (name, text, seconds), other = ranks.values(tmp_path, 2, run)

    assert other is None
    assert name == "RankError"
    assert f"This was in {call}, which all ranks must call" in text
    assert seconds < patience.SOON  # ranks are given up after 300
