"""Types out as types in: what every call answers for arrays, and what for tensors."""

import numpy as np
import pytest
import torch
from torch import nn

from trax_torch import data, fastmath, models, optimizers, shapes
from trax_torch import layers as tl
from trax_torch.fastmath import numpy as jnp
from trax_torch.supervised import decoding, lr_schedules, training

X = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
IDS = np.array([[1, 2, 3], [4, 5, 6]])
KINDS = {"arrays": (np.asarray, np.ndarray), "tensors": (torch.as_tensor, torch.Tensor)}


def built(layer, *inputs):
    layer.init(shapes.signature(inputs if len(inputs) > 1 else inputs[0]), rng=0)
    return layer


def language_model(mode="eval"):
    return built(
        models.TransformerLM(8, d_model=8, d_ff=8, n_layers=1, n_heads=2, max_len=16, mode=mode),
        IDS,
    )


def gradient(kind):
    layer = built(tl.Dense(2), X)
    w, b = layer.weights
    weights = (kind(np.asarray(w)), kind(np.asarray(b)))
    return fastmath.grad(lambda w: jnp.mean(layer(kind(X), weights=w)))(weights)


# Each with `kind`, which makes an array or a tensor.
CALLS = {
    "a layer": lambda kind: built(tl.Dense(2), X)(kind(X)),
    "a layer of several inputs": lambda kind: tl.Add()((kind(X), kind(X))),
    "a layer of several outputs": lambda kind: tl.Dup()(kind(X)),
    "a combinator": lambda kind: built(tl.Serial(tl.Dense(4), tl.LayerNorm()), X)(kind(X)),
    "a branch": lambda kind: tl.Branch(tl.Relu(), tl.Tanh())(kind(X)),
    "integers": lambda kind: built(tl.Embedding(8, 4), IDS)(kind(IDS)),
    "a function": lambda kind: tl.Fn("Double", lambda x: 2 * x)(kind(X)),
    "a function of jnp": lambda kind: tl.Fn(
        "Norm", lambda x: jnp.sum(x * jnp.tril(jnp.ones((3, 4))), axis=-1, keepdims=True)
    )(kind(X)),
    "a module of torch": lambda kind: tl.as_layer(nn.Linear(4, 3))(kind(X)),
    "a model": lambda kind: language_model()(kind(IDS)),
    "a model with other weights": lambda kind: (
        lambda m: m(kind(IDS), weights=m.weights, state=m.state)
    )(language_model()),
    "pure_fn": lambda kind: (lambda m: m.pure_fn(kind(IDS), m.weights, m.state)[0])(
        language_model()
    ),
    "a model in predict mode": lambda kind: language_model("predict")(kind(IDS)),
    "a loss": lambda kind: tl.L2Loss()((kind(X), kind(X), kind(np.ones_like(X)))),
    "a metric": lambda kind: tl.WeightedCategoryAccuracy()(
        (kind(X), kind(IDS % 4), kind(np.ones((2, 3), np.float32)))
    ),
    "one_hot": lambda kind: tl.one_hot(kind(IDS), 8),
    "logsoftmax_sample": lambda kind: tl.logsoftmax_sample(kind(X), temperature=0.0),
    "sampling": lambda kind: decoding.autoregressive_sample(
        language_model(), kind(IDS), batch_size=2, max_length=3
    ),
    "sampling with probabilities": lambda kind: decoding.autoregressive_sample(
        language_model(), kind(IDS), batch_size=2, max_length=3, return_log_probs=True
    ),
    "a stream of symbols": lambda kind: next(
        decoding.autoregressive_sample_stream(language_model(), kind(IDS), batch_size=2)
    ),
    "beams": lambda kind: decoding.beam_search(
        language_model(), kind(IDS), batch_size=2, max_length=3, return_scores=True
    ),
    "in eval mode": lambda kind: decoding.autoregressive_sample(
        language_model(), kind(IDS), batch_size=2, max_length=3, eval_mode=True
    ),
    "a function of numpy": lambda kind: jnp.concatenate([kind(X), kind(X)], axis=1),
    "logsumexp": lambda kind: fastmath.logsumexp(kind(X), axis=-1),
    "index_update": lambda kind: fastmath.index_update(kind(X), jnp.index_exp[0], 1.0),
    "a gradient": lambda kind: fastmath.grad(lambda x: jnp.sum(x * x))(kind(X)),
    "a gradient by weights": gradient,
    "vmap": lambda kind: fastmath.vmap(jnp.sum)(kind(X)),
    "scan": lambda kind: fastmath.scan(lambda c, x: (c + x, c), kind(X[0]), kind(X)),
    "nested_map": lambda kind: fastmath.nested_map(lambda x: x, (kind(X), {"a": kind(X)})),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_call_answers_arrays_for_arrays_and_tensors_for_tensors(name, kind):
    """Every array or tensor in what it returns."""
    make, answer = KINDS[kind]

    leaves = fastmath.tree_leaves(CALLS[name](make))

    assert leaves
    for leaf in leaves:
        assert isinstance(leaf, (answer, np.generic) if answer is np.ndarray else answer)


def batches(kind):
    while True:
        yield kind(X[:, 0]), kind(X[:, 0, :1]), kind(np.ones((2, 1), np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_its_values_are_the_same_for_arrays_and_tensors(kind):
    """Batches of either; evals, losses and schedules are Python's numbers."""
    make = KINDS[kind][0]
    task = training.TrainTask(
        batches(make),
        tl.L2Loss(),
        optimizers.SGD(0.1),
        lr_schedule=lr_schedules.warmup(2, 0.1),
    )
    model = tl.Serial(tl.Dense(1))
    evals = training.EvalTask(batches(make), [tl.L2Loss()], metric_names=["loss"])
    loop = training.Loop(model, task, eval_tasks=evals, random_seed=0)
    loop.run(3)

    values = loop.run_evals()

    assert all(type(v) is float for v in values.values())
    assert type(lr_schedules.warmup(2, 0.1)(1)) is float
    assert type(loop.model(make(X[:, 0]))) is KINDS[kind][1]
    assert type(loop.eval_model(make(X[:, 0]))) is KINDS[kind][1]


def test_streams_of_data_are_arrays():
    """As a program reads them: pipelines, and losses' weights."""
    stream = data.Serial(data.Batch(2), data.AddLossWeights())(
        (x[0], 1) for x in np.repeat(X, 4, axis=0)
    )

    batch = next(iter(stream))

    assert [type(x) for x in batch] == [np.ndarray] * 3


def test_weights_and_state_are_arrays_to_numpy_and_tensors_to_torch():
    model = language_model()
    weights, state = tl.flatten_weights_and_state(model.weights, model.state)

    for leaf in (*weights, *state):
        assert isinstance(leaf, torch.Tensor)
        assert type(np.asarray(leaf)) is np.ndarray
