"""How far into the future a model of series sees: SerializedModelEvaluation."""

import functools
import types

import numpy as np
import pytest

from trax_torch import layers as tl
from trax_torch import optimizers
from trax_torch.supervised import EvalTask, Loop, TrainTask, callbacks

VOCAB = 12


class Digit:
    """A number below 12 as one symbol."""

    representation_length = 1

    def serialize(self, values):
        return values[:, None].astype(np.int64)

    def deserialize(self, symbols):
        return symbols[:, 0]


class Model(tl.Serial):
    """Reads the last action, and tells the next observation: a table is all it learns."""

    observation_serializer = action_serializer = Digit()

    def __init__(self):
        last = tl.Fn(
            "Last",
            lambda obs, act, target, mask: (act[:, :-1], target[:, 1:], mask[:, 1:]),
            n_out=3,
        )
        super().__init__(last, tl.Embedding(VOCAB, VOCAB))

    def make_predict_model(self):
        return tl.Embedding(VOCAB, VOCAB)

    @property
    def seq_model_weights(self):
        return self.weights[1]


def series(seed=0):
    """What is done names what was seen, and what is seen next is 1 more."""
    rng = np.random.default_rng(seed)
    while True:
        seen = rng.integers(0, 4, (8, 1)) + np.arange(7)
        yield seen, seen, seen, np.ones(seen.shape, np.float32)


def measures(**kwargs):
    task = EvalTask(series(), tl.WeightedCategoryCrossEntropy())
    return callbacks.SerializedModelEvaluation(None, Model(), eval_task=task, **kwargs)


def table(step):
    """Weights by which each symbol is followed by the one `step` further, without doubt."""
    return 1e4 * np.eye(VOCAB, dtype=np.float32)[np.minimum(np.arange(VOCAB) + step, VOCAB - 1)]


@pytest.mark.parametrize("step", [1, 2, 3])
def test_errors_are_those_of_what_is_predicted(step):
    """By a table that is known: it is off by step - 1, whatever is shown before, however far."""
    callback = measures(context_lengths=[3, 1], horizon_lengths=(1, 3), n_steps=2)

    errors = callback.evaluate(table(step))

    assert errors.keys() == {f"pred_error/context_{c}/horizon_{h}" for c in (1, 3) for h in (1, 3)}
    assert list(errors.values()) == pytest.approx([(step - 1) ** 2] * 4, rel=1e-4)


def test_a_run_logs_them(tmp_path):
    """At the steps that are due; they fall as the model learns."""
    task = TrainTask(series(), tl.WeightedCategoryCrossEntropy(), optimizers.Adam(0.3))
    loop = Loop(
        Model(),
        task,
        eval_tasks=EvalTask(series(1), tl.WeightedCategoryCrossEntropy()),
        output_dir=str(tmp_path),
        callbacks=functools.partial(
            callbacks.SerializedModelEvaluation, eval_at=20, horizon_lengths=[2]
        ),
        random_seed=0,
    )
    loop.run(41)

    found = loop.history.get("srl_eval", "pred_error/context_1/horizon_2")
    assert [step for step, _ in found] == [1, 21, 41]
    assert found[-1][1] < 0.5 < found[0][1]
    assert list((tmp_path / "srl_eval").glob("events*"))


@pytest.mark.parametrize(
    ("at", "due"),
    [(3, [1, 4, 7]), (1, list(range(1, 9))), ([2, 5], [2, 5]), (lambda s: s > 6, [7, 8])],
)
def test_it_is_due_as_asked(at, due):
    callback = measures(eval_at=at)

    assert [step for step in range(1, 9) if callback.call_at(step)] == due
    assert callback.predict_model.n_in == 1


def test_what_does_not_fit_is_answered():
    with pytest.raises(TypeError, match=r"eval_at is every how many steps .*; got None"):
        measures(eval_at=None)
    with pytest.raises(ValueError, match="need 8 observations; a series has 7"):
        measures(horizon_lengths=[7]).evaluate(table(1))
    loop = types.SimpleNamespace(model=Model(), eval_tasks=[])
    with pytest.raises(ValueError, match="only one is measured on; it has 0"):
        callbacks.SerializedModelEvaluation(loop)
