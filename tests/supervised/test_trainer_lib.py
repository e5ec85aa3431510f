"""Trax's older ways to train: Trainer, train, and seeds for everything."""

import random

import numpy as np
import pytest
import torch

from trax_torch import layers as tl
from trax_torch import optimizers
from trax_torch.supervised import Trainer, lr_schedules, train, trainer_lib


class Lines:
    """Batches in which y = 2 x, of one seed, with weights; or other streams."""

    def __init__(self, seed=0):
        self._seed = seed

    def train_stream(self, n_devices):
        assert n_devices == 1
        rng = np.random.default_rng(self._seed)
        while True:
            x = rng.normal(size=(4, 1)).astype(np.float32)
            yield x, 2 * x, np.ones_like(x)

    eval_stream = train_eval_stream = train_stream


def line(mode):
    assert mode in ("train", "eval")
    return tl.Serial(tl.Dense(1))


def trainer(output_dir=None, **kwargs):
    return Trainer(
        line,
        tl.L2Loss(),
        optimizers.SGD,
        lr_schedules.constant(0.1),
        Lines(),
        output_dir=output_dir,
        random_seed=0,
        **{"metrics": {"l2": tl.L2Loss()}, **kwargs},
    )


def test_one_seed_rules_all_random_numbers():
    """Python's, numpy's, torch's, and so first weights and shuffled data."""

    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert trainer_lib.init_random_number_generators(5).tolist() == [0, 5]
    first = draw()
    trainer_lib.init_random_number_generators(5)
    assert draw() == first
    drawn = trainer_lib.init_random_number_generators()
    assert draw() != first
    again = [(trainer_lib.init_random_number_generators(drawn[1]), draw())[1] for _ in range(2)]
    assert again[0] == again[1]


def test_epochs_train_measure_and_save(tmp_path):
    """Both streams are measured after each epoch; one checkpoint is the newest, others stay."""
    run = trainer(str(tmp_path), checkpoints_at=[3], checkpoint_lowest="l2")

    for _ in range(3):
        run.train_epoch(n_steps=10, n_eval_steps=2)

    for mode in ("train", "eval"):
        values = run.history.get(mode, "metrics/l2")
        assert [step for step, _ in values] == [10, 20, 30]
        assert values[-1][1] < 0.5 * values[0][1]
        assert list((tmp_path / mode).glob("events*"))
    assert {p.name for p in tmp_path.glob("*.json")} == {
        "model.json",
        "model_3.json",
        "lowest_l2.json",
    }
    assert run.model_weights[0][0].item() == pytest.approx(2.0, abs=0.5)


def test_a_trainer_goes_on_from_its_folder(tmp_path):
    """Built again, and reset to it; reset to nothing, it begins with new weights."""
    run = trainer(str(tmp_path))
    run.train_epoch(n_steps=4, n_eval_steps=1)
    weights = run.model_weights

    again = trainer(str(tmp_path))
    assert again.step == 4
    assert torch.equal(again.model_weights[0][0], weights[0][0])
    again.reset(None)
    assert again.step == 0
    assert again.learning_rate == 0.1


def test_measured_values_are_means_over_batches():
    """Of the next batches of each stream."""
    run = trainer()
    run.evaluate(2)

    w, b = (x.detach() for x in run.model_weights[0])
    rng = np.random.default_rng(0)
    values = []
    for _ in range(2):
        x = torch.from_numpy(rng.normal(size=(4, 1)).astype(np.float32))
        values.append(float(((x @ w + b - 2 * x) ** 2).mean()))
    assert run.history.get("eval", "metrics/l2")[0][1] == pytest.approx(np.mean(values), rel=1e-5)


def test_weights_are_set():
    run = trainer()
    run.model_weights = ((np.full((1, 1), 2.0), np.zeros(1)),)
    run.evaluate(1)

    assert run.history.get("eval", "metrics/l2") == [(0, pytest.approx(0.0, abs=1e-9))]


def test_a_best_checkpoint_needs_its_metric():
    with pytest.raises(ValueError, match="got 'loss', and there are l2. Name one of them."):
        trainer(checkpoint_lowest="loss")


@pytest.mark.parametrize("use_loop", [True, False])
def test_train_takes_so_many_steps_in_all(tmp_path, use_loop):
    """By a Loop, or by a Trainer; what was trained before counts."""
    arguments = dict(
        loss_fn=tl.L2Loss(),
        inputs=Lines,
        optimizer=optimizers.SGD,
        lr_schedule_fn=lambda: lr_schedules.constant(0.1),
        eval_frequency=2,
        eval_steps=1,
        metrics={"l2": tl.L2Loss()},
        random_seed=0,
        use_loop=use_loop,
    )

    first = train(str(tmp_path), line, steps=3, **arguments)
    second = train(str(tmp_path), line, steps=5, **arguments)

    assert (first.step, second.step) == (3, 5)
    assert second.history.get("eval", "metrics/l2")[-1][0] == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "train needs inputs"),
        (
            {
                "inputs": Lines,
                "permanent_checkpoint_frequency": 2,
                "permanent_checkpoints_at": [2],
            },
            "Give one of them",
        ),
    ],
)
def test_train_says_what_it_needs(arguments, said):
    with pytest.raises(ValueError, match=said):
        train(None, line, **arguments)
