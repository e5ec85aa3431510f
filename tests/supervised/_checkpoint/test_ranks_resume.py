"""A run on several ranks resumes bit for bit, and on another number of ranks as far as it can."""

import functools
import os
import signal

import numpy as np
import pytest
import ranks
import torch
from torch import nn
from toys import line_loop, state_of

import trax_torch
from trax_torch import _distributed, optimizers
from trax_torch import layers as tl
from trax_torch._errors import CheckpointError
from trax_torch.data._streams import BatchStream
from trax_torch.supervised import EvalTask, TrainTask, share_of, training
from trax_torch.supervised._checkpoint import storage
from trax_torch.supervised.callbacks import TrainingStepCallback

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)


def global_batches(seed=0, n=12):
    i = 0
    while True:
        rng = np.random.default_rng([seed, i])
        x = rng.normal(size=(n, 6)).astype(np.float32)
        yield x, np.tanh(x[:, :1] * x[:, 1:2]), rng.random((n, 1)).astype(np.float32)
        i += 1


def own_batches(seed, rank, size):
    """Data that knows nothing of other ranks' places."""
    for batch in global_batches(seed):
        yield tuple(np.array_split(item, size)[rank] for item in batch)


def model():
    """Enough tensors for DDP to have something to order, with dropout and running statistics."""
    torch.manual_seed(0)
    layers = [nn.Linear(6, 64), nn.BatchNorm1d(64), nn.Tanh(), nn.Dropout(0.2)]
    for _ in range(3):
        layers += [nn.Linear(64, 64), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(64, 1))


class DieAt(TrainingStepCallback):
    """Ends the process in the middle of a run, as nobody can see coming."""

    def __init__(self, loop, step):
        super().__init__(loop)
        self.last = step

    def on_step_begin(self, step):
        if step == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


class AskBefore(TrainingStepCallback):
    """Asks for a checkpoint before a step, as all ranks do."""

    def __init__(self, loop, step):
        super().__init__(loop)
        self.last = step

    def on_step_begin(self, step):
        if step == self.last:
            self._loop.save_checkpoint("asked")


def make_loop(rank, size, folder, shared=False, dies_at=None, asks_before=None, **kwargs):
    def data(seed):
        if shared:
            return share_of(global_batches(seed), rank, size)
        return own_batches(seed, rank, size)

    task = TrainTask(data(0), tl.L2Loss(), optimizers.Adam(0.01), n_steps_per_checkpoint=4)
    callbacks = [] if dies_at is None else [functools.partial(DieAt, step=dies_at)]
    if asks_before is not None:
        callbacks.append(functools.partial(AskBefore, step=asks_before))
    return line_loop(
        folder,
        model=model(),
        task=task,
        evals=EvalTask(data(1), tl.L2Loss()),
        callbacks=callbacks,
        device="cpu",
        **kwargs,
    )


def run(rank, size, folder, n_steps, place=None, **kwargs):
    loop = make_loop(rank, size, folder, **kwargs)
    if place is not None:
        loop.load_checkpoint(place)
    loop.run(n_steps - loop.step)
    return loop.step, {k: v.numpy() for k, v in state_of(loop).items()}


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("settings", [{}, {"n_accumulation_steps": 2}], ids=["whole", "parts"])
def test_ranks_that_are_killed_resume_bit_for_bit(size, settings, tmp_path):
    """Weights, slots, buffers, histories, data: the final checkpoints are equal."""
    whole, cut = str(tmp_path / "whole"), str(tmp_path / "cut")
    start = functools.partial(run, size=size, n_steps=16, **settings)
    ranks.values(tmp_path / "a", size, functools.partial(start, folder=whole))
    killed = ranks.outcomes(tmp_path / "b", size, functools.partial(start, folder=cut, dies_at=11))
    assert killed[0] == ("signal", signal.SIGKILL)

    resumed = ranks.values(tmp_path / "c", size, functools.partial(start, folder=cut))

    assert {step for step, _ in resumed} == {16}
    assert training.differences(whole, cut) == []
    assert storage.read(cut, "model")[1]["world_size"] == size


def test_what_callbacks_of_all_ranks_ask_for_in_a_step_is_saved_after_it(tmp_path):
    """A run from there ends like the one that saved it."""
    asking, resumed = str(tmp_path / "asking"), str(tmp_path / "resumed")
    start = functools.partial(run, size=2, n_steps=8)
    ranks.values(tmp_path / "a", 2, functools.partial(start, folder=asking, asks_before=6))
    assert storage.read(asking, "asked")[1]["step"] == 6
    place = os.path.join(asking, "asked")
    ranks.values(tmp_path / "b", 2, functools.partial(start, folder=resumed, place=place))

    assert training.differences(asking, resumed) == []


def refused_on_one(rank, size, folder):
    """Loads where rank 1's data ends before its place; returns what was there before and after."""
    loop = make_loop(rank, size, None)
    if rank == 1:
        loop.tasks[0].stream = BatchStream(iter([]), "The data that is too short")
    before = {k: v.numpy() for k, v in state_of(loop).items()}
    with pytest.raises(CheckpointError, match="data that is too short|rank 1") as caught:
        loop.load_checkpoint(folder)
    return before, {k: v.numpy() for k, v in state_of(loop).items()}, loop.step, str(caught.value)


def test_what_one_rank_cannot_load_no_rank_has_loaded(tmp_path):
    folder = str(tmp_path / "run")
    start = functools.partial(run, size=2, folder=folder, n_steps=4)
    ranks.values(tmp_path / "a", 2, start)
    found = ranks.values(
        tmp_path / "b", 2, functools.partial(refused_on_one, size=2, folder=folder)
    )

    for before, after, step, _ in found:
        assert step == 0
        assert before.keys() == after.keys()
        assert all(np.array_equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("size", [1, 3])
def test_a_run_goes_on_with_another_number_of_ranks(size, tmp_path):
    """Weights, slots, history and step are exact; the shared data goes on where it was."""
    folder = str(tmp_path / "run")
    ranks.values(
        tmp_path / "2", 2, functools.partial(run, size=2, folder=folder, n_steps=8, shared=True)
    )
    before = storage.read(folder, "model")

    found = ranks.values(
        tmp_path / str(size),
        size,
        functools.partial(loaded, size=size, folder=folder),
    )

    for step, state, seen in found:
        assert step == 8
        for name, tensor in before[0]["weights"].items():
            assert np.array_equal(state[name], tensor.numpy())
        assert seen == 9  # the sample, and 8 steps
    assert (
        ranks.values(
            tmp_path / "on",
            size,
            functools.partial(run, size=size, folder=folder, n_steps=12, shared=True),
        )[0][0]
        == 12
    )


def loaded(rank, size, folder):
    loop = make_loop(rank, size, folder, shared=True)
    state = {k: v.numpy() for k, v in state_of(loop).items()}
    return loop.step, state, loop.tasks[0].labeled_data.state_dict()["n_taken"]


def load_what_is_not_there(rank, folder):
    make_loop(rank, 2, None).load_checkpoint(folder, "a_typo")


def test_a_place_without_a_checkpoint_is_an_error_on_every_rank(tmp_path):
    found = ranks.outcomes(tmp_path, 2, functools.partial(load_what_is_not_there, folder="nowhere"))

    for kind, error, text in found:
        assert (kind, error) == ("error", "MissingCheckpointError")
        assert "There is no folder nowhere" in text


def load_into_parts(rank, folder):
    loop = make_loop(rank, 2, None, strategy="fsdp")
    trax_torch.load_weights(loop.model, folder)
    tensors = loop.model.state_dict().items()
    return {name: _distributed.whole(tensor).numpy() for name, tensor in tensors}


def test_weights_are_loaded_into_a_model_of_which_each_rank_has_a_part(tmp_path):
    folder = str(tmp_path / "run")
    make_loop(0, 1, folder).run(4)
    parts = storage.read(folder, "model")[0]

    for found in ranks.values(tmp_path, 2, functools.partial(load_into_parts, folder=folder)):
        for name, tensor in parts["weights"].items():
            assert np.array_equal(found[name], tensor.numpy())


def test_data_of_another_number_of_ranks_is_refused_by_name(tmp_path):
    """Unless it is to begin anew."""
    folder = str(tmp_path / "run")
    ranks.values(tmp_path / "2", 2, functools.partial(run, size=2, folder=folder, n_steps=4))

    with pytest.raises(IndexError, match=r"saved by 2 ranks; there are 1.*resume_data='restart'"):
        make_loop(0, 1, folder)

    assert run(0, 1, folder, n_steps=6, resume_data="restart")[0] == 6


def test_what_ranks_share_is_every_row_once():
    data = list(zip(range(3), global_batches(), strict=False))
    for size in (1, 2, 3, 5):
        shares = [share_of([batch for _, batch in data], rank, size) for rank in range(size)]
        for _, batch in data:
            parts = [next(share) for share in shares]
            for i, item in enumerate(batch):
                assert np.array_equal(np.concatenate([part[i] for part in parts]), item)


def test_shares_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="There is no share 2 of 2"):
        share_of([], 2, 2)
    with pytest.raises(ValueError, match="a row for each of 3 ranks; got \\[2\\] rows"):
        next(share_of([(np.zeros(2),)], 0, 3))
