"""A model is cut before its last Dense, unless someone would see the cut."""

import functools

import pytest
import torch
from chunks import VOCAB, D, assert_alike, whole_and_chunks
from torch import nn

from trax_torch import layers as tl
from trax_torch.optimizers import split_head

DENSE = functools.partial(nn.Linear, D, 2)
HEADS = {
    "Dense": lambda: tl.Dense(2),
    "Serial": lambda: tl.Serial(tl.Relu(), tl.Serial(tl.Dense(2))),
    "LogSoftmax": lambda: tl.Serial(tl.Dense(2), tl.LogSoftmax()),
    "Linear": lambda: tl.as_layer(DENSE()),
    "Sequential": lambda: tl.as_layer(nn.Sequential(nn.ReLU(), nn.Sequential(DENSE()))),
    "both": lambda: tl.Serial(tl.Relu(), nn.Sequential(nn.ReLU(), DENSE(), nn.LogSoftmax(-1))),
    "around": lambda: tl.Serial(tl.Serial(tl.Relu(), tl.Dense(2)), tl.LogSoftmax()),
    "apart": lambda: tl.Serial(tl.Relu(), DENSE(), nn.LogSoftmax(dim=-1)),
}
BODIES = {
    "Relu": lambda: tl.Serial(tl.Dense(2), tl.Relu()),
    "axis 1": lambda: tl.Serial(tl.Dense(2), tl.LogSoftmax(axis=1)),
    "dim 1": lambda: tl.as_layer(nn.Sequential(DENSE(), nn.LogSoftmax(dim=1))),
    "Residual": lambda: tl.Residual(tl.Dense(D)),
    "empty": lambda: tl.Serial(),
    "softmax": lambda: tl.LogSoftmax(),
    "weight norm": lambda: tl.as_layer(
        nn.Sequential(nn.utils.parametrizations.weight_norm(DENSE()))
    ),
}


@pytest.mark.parametrize("name", [*HEADS, *BODIES])
def test_a_model_is_cut_before_its_last_dense_and_stays_as_it_is(name):
    model = (HEADS | BODIES)[name]()
    x = torch.randn(3, D)
    model.init(x, rng=0)
    names, before = list(model.state_dict()), model(x)

    body, head = split_head(model)

    assert (head is not None) == (name in HEADS)
    series = tl.Serial(*body) if head is None else tl.Serial(*body, head)
    assert torch.equal(series(x), before)
    assert list(model.state_dict()) == names
    params = {id(p) for p in model.parameters()}
    assert {id(p) for p in series.parameters()} == params
    if head is not None:
        assert sum(p.numel() for p in head.parameters()) == 2 * D + 2


def test_a_model_that_waits_for_its_weights_is_not_cut():
    assert split_head(tl.Serial(tl.Relu(), tl.Dense(2)))[1] is None


def test_what_travels_within_a_sequential_is_no_stack():
    """An nn.LSTM gives its output and its state, as one."""

    class First(nn.Module):
        def forward(self, xs):
            return xs[0]

    model = nn.Sequential(nn.LSTM(D, 6, batch_first=True), First(), nn.Linear(6, VOCAB))
    batch = torch.randn(4, 3, D), torch.randint(0, VOCAB, (4, 3))

    assert split_head(tl.as_layer(model))[1] is not None
    assert_alike(*whole_and_chunks(tl.as_layer(model), tl.CategoryCrossEntropy(), batch, 5), 1e-11)


# Who would see the cut


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_a_model_that_someone_listens_to_is_not_cut(is_wrapped):
    """A forward hook of the model as a whole is called as ever."""
    model = nn.Sequential(DENSE()) if is_wrapped else tl.Serial(tl.Dense(2))
    layer = tl.as_layer(model)
    layer.init(torch.ones(1, D))
    model.register_forward_hook(lambda module, args, output: None)

    assert split_head(layer)[1] is None


LISTENERS = {
    "forward": lambda m: m.register_forward_hook(lambda module, args, output: None),
    "before": lambda m: m.register_forward_pre_hook(lambda module, args: None),
    "backward": lambda m: m.register_full_backward_hook(lambda module, grads, above: None),
    "spectral norm": lambda m: nn.utils.spectral_norm(m),
}


@pytest.mark.parametrize("name", LISTENERS)
@pytest.mark.parametrize("make", [lambda: tl.Dense(VOCAB), lambda: nn.Linear(D, VOCAB)])
def test_a_last_layer_that_someone_listens_to_is_not_called_for_each_chunk(make, name):
    """A spectral norm of the old kind is such a hook, and goes on at each call."""
    dense = make()
    model = tl.Serial(tl.Relu(), dense)
    model.init(torch.ones(1, D))
    assert split_head(model)[1] is not None
    LISTENERS[name](dense)

    assert split_head(model)[1] is None


def test_a_log_softmax_that_someone_listens_to_is_not_called_for_each_chunk():
    last = nn.LogSoftmax(dim=-1)
    last.register_forward_hook(lambda module, args, output: None)

    assert split_head(tl.as_layer(nn.Sequential(DENSE(), last)))[1] is None


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_a_model_with_a_forward_of_its_own_is_not_cut(is_wrapped):
    model = tl.as_layer(nn.Sequential(DENSE())) if is_wrapped else tl.Serial(tl.Dense(2))
    model.init(torch.ones(1, D))
    inner = model.module if is_wrapped else model
    inner.forward = functools.partial(lambda forward, x: 2 * forward(x), inner.forward)

    assert split_head(model)[1] is None
