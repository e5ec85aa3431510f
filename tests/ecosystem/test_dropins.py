"""What other libraries make trains in the loop as it is; docs/ecosystem.md lists it."""

import os
import signal
import traceback
from pathlib import Path

import pytest
import torch
from dropins import ROWS

from trax_torch.supervised import Loop, TrainTask

N_STEPS, SAVED, KILLED = 9, 4, 7  # an epoch is 6 steps
PAGE = Path(__file__).parents[2] / "docs" / "ecosystem.md"
EACH = [pytest.param(row, member, id=member) for row in ROWS for member in row.members]
pytestmark = [
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),  # torchdata's
    pytest.mark.filterwarnings("ignore:Secure RNG turned off:UserWarning"),  # Opacus': a test
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),  # Opacus'
    # peft 0.21 asks transformers 5.24 by an older name
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
PARTS = pytest.mark.parametrize(("row", "member"), EACH)


def setup_of(row, member, dropout=0.0):
    pytest.importorskip(row.module)
    return row.setup(member, dropout)


def loop_of(setup, folder=None, **settings):
    task = TrainTask(setup.data, setup.loss, setup.optimizer, setup.lr_schedule)
    return Loop(
        setup.model,
        task,
        output_dir=None if folder is None else str(folder),
        checkpoint_at=lambda step: step == SAVED,
        random_seed=0,
        progress=False,
        **settings,
    )


def by_hand(setup, n_steps):
    """Trains as a loop written by hand does; the first batch of all tells shapes alone."""
    model, optimizer = setup.model, setup.optimizer
    scheduler = None if setup.lr_schedule is None else setup.lr_schedule(optimizer)
    model.train()
    step = -1
    while True:
        for batch in setup.data:
            step += 1
            if step == 0:
                continue
            optimizer.zero_grad()
            setup.loss_by_hand(model, batch).backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            if step == n_steps:
                return


def assert_same(model, other):
    mine, theirs = model.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name


def leaves(tree, path=""):
    """Yields what a state_dict holds, with where."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        if isinstance(value, (dict, list, tuple)):
            yield from leaves(value, f"{path}.{key}")
        else:
            yield f"{path}.{key}", value


@PARTS
def test_it_trains_as_in_a_loop_written_by_hand(row, member):
    """To the last bit, past the end of an epoch."""
    loop, hand = loop_of(mine := setup_of(row, member)), setup_of(row, member)
    before = {name: x.clone() for name, x in mine.model.state_dict().items()}

    loop.run(N_STEPS)
    by_hand(hand, N_STEPS)

    assert_same(mine.model, hand.model)
    assert any(not torch.equal(x, mine.model.state_dict()[name]) for name, x in before.items())


@PARTS
def test_it_goes_on_after_a_kill_as_if_nothing_had_been(row, member, tmp_path):
    """With dropout; weights, statistics, the optimizer and losses are those of one run."""
    whole = loop_of(setup_of(row, member, 0.1))
    whole.run(N_STEPS)
    child = os.fork()
    if not child:
        try:
            loop = loop_of(setup_of(row, member, 0.1), tmp_path / "run", save_at_end=False)
            loop.run(until=KILLED)
            os.kill(os.getpid(), signal.SIGKILL)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    again = loop_of(setup_of(row, member, 0.1), tmp_path / "run")
    assert again.step == SAVED
    again.run(until=N_STEPS)

    assert_same(again.model, whole.model)
    mine, theirs = (dict(leaves(loop.optimizers[0].state_dict())) for loop in (again, whole))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        same = value == theirs[name]
        assert same.all() if isinstance(same, torch.Tensor) else same, name
    losses = [loop.history.get("train", "training/loss") for loop in (again, whole)]
    assert losses[0] == losses[1]


def test_the_page_has_the_rows_that_are_tested_and_no_others():
    """With their members, word for word."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    tested = [line for line in lines if "test_dropins.py::" in line]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in tested]

    shown = [(package.strip("`"), what) for package, _, what, *_ in cells]
    assert shown == [(row.package, f"{row.what}: {', '.join(row.members)}") for row in ROWS]
    assert all(yes == "yes" for _, _, _, *said, _ in cells for yes in said)
