"""Weights are made for shapes alone, and nobody notices: what wants numbers is run on zeros."""

import contextlib

import numpy as np
import pytest
import torch
from torch import nn

from trax_torch import layers as tl
from trax_torch import optimizers, shapes
from trax_torch.supervised import training

X = np.ones((4, 3), np.float32)
CONSTANT = torch.tensor([1.0, 2.0, 3.0])

# Functions of a tensor (4, 3) that keep its shape, and cannot be run on a shape alone.
WANT_NUMBERS = {
    "makes a tensor": lambda x: x + torch.tril(torch.ones(4, 3)),
    "makes a range": lambda x: x + torch.arange(3),
    "holds a tensor": lambda x: x * CONSTANT,
    "gives a tensor of its own": lambda x: torch.ones(4, 3),
    "looks at a value": lambda x: x if x.max() > 0 else -x,
    "reads a value": lambda x: x * float(x.detach().mean()),
    "reads values": lambda x: x + sum(x.detach().flatten().tolist()),
    "asks numpy": lambda x: x + torch.from_numpy(np.tanh(x.detach().numpy())),
    "counts": lambda x: x + len(torch.nonzero(x)),
    "finds the different": lambda x: x + len(torch.unique(x)),
    "picks": lambda x: x + x[x > 0].sum(),
    "draws": lambda x: x + torch.rand(4, 3),
}


class Module(nn.Module):
    """A plain module around a function, with statistics of what it saw."""

    def __init__(self, f):
        super().__init__()
        self.f, self.norm = f, nn.BatchNorm1d(3)

    def forward(self, x):
        return self.f(self.norm(x))


class Inside(tl.Layer):
    """A layer in PyTorch's tongue: its sublayers wait for shapes, and it wants numbers itself."""

    def __init__(self, f):
        super().__init__()
        self.before, self.f, self.after = (
            tl.Dense(3),
            f,
            tl.Serial(tl.Dense(3), tl.BatchNorm(axis=0)),
        )

    def forward(self, x):
        return self.after(self.f(self.before(x)))


PLACES = {
    "a layer of a function": lambda f: tl.Fn("F", f),
    "a layer of packed inputs": lambda f: tl.PureLayer(f),
    "a module": lambda f: Module(f),
    "a branch": lambda f: tl.Residual(tl.Dense(3), tl.Fn("F", f)),
    "a layer with layers": Inside,
    "deep inside": lambda f: tl.Serial(tl.Serial(tl.Residual(Inside(f), tl.Serial(Module(f))))),
}


@pytest.mark.parametrize("f", WANT_NUMBERS.values(), ids=WANT_NUMBERS)
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_layers_that_want_numbers_stand_among_those_without_weights(place, f):
    """First, in the midst and last; the weights are there, and the layer computes."""
    model = tl.Serial(place(f), tl.Dense(3), place(f), tl.Dense(3), place(f))

    model.init(shapes.signature(X), rng=1)

    assert model.is_initialized
    assert not any(t.is_meta for t in model.state_dict().values())
    assert model(X).shape == (4, 3)


@pytest.mark.parametrize("f", WANT_NUMBERS.values(), ids=WANT_NUMBERS)
def test_weights_are_those_of_a_model_without_what_wants_numbers(f):
    """Each layer draws once, when the shapes reach it, however the layers around it are run."""
    model, plain = tl.Serial(Inside(f), tl.Dense(2)), tl.Serial(Inside(torch.tanh), tl.Dense(2))
    model.init(shapes.signature(X), rng=1)
    plain.init(shapes.signature(X), rng=1)

    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_zeros_leave_no_trace():
    """Statistics, the mode and what a layer remembers are as before."""
    model = tl.Serial(tl.Dense(3), Module(WANT_NUMBERS["draws"]), Inside(WANT_NUMBERS["draws"]))
    model.init(shapes.signature(X), rng=1)

    assert not any("forward" in vars(m) for m in model.modules())
    assert all(m.training for m in model.modules())
    assert model.sublayers[1].module.norm.num_batches_tracked == 0
    assert torch.equal(model.sublayers[1].module.norm.running_mean, torch.zeros(3))
    mean, variance, n_batches = model.sublayers[2].after.state[1]
    assert (mean.any(), variance.all(), n_batches) == (False, True, 0)


def test_ids_are_looked_at_when_numbers_come_and_not_before():
    """Zeros that an embedding is run on are no ids of anybody's."""

    class Picky(tl.Layer):
        def __init__(self):
            super().__init__()
            self.embed = tl.Embedding(5, 3)

        def forward(self, x):
            return self.embed(x + torch.zeros(4, 3, dtype=torch.int64))

    model = Picky()
    model.init(shapes.ShapeDtype((4, 3), np.int64), rng=1)

    with pytest.warns(UserWarning, match="ids from 7 to 7 came"):
        model(torch.full((4, 3), 7))


@pytest.mark.parametrize("f", WANT_NUMBERS.values(), ids=WANT_NUMBERS)
def test_signatures_of_what_wants_numbers_are_found(f):
    model = tl.Serial(tl.Fn("F", f), tl.Dense(2))

    weights, _ = model.weights_and_state_signature(shapes.signature(X))

    assert weights == ((), (shapes.ShapeDtype((3, 2)), shapes.ShapeDtype((2,))))
    assert tl.Fn("F", f).output_signature(shapes.signature(X)).shape == (4, 3)


def test_losses_that_want_numbers_train_a_model_without_weights():
    """A function, a layer of two inputs, and a module, after a model that `Loop` initializes."""

    class Loss(nn.Module):
        def forward(self, output, targets, weights):
            return ((output - targets) ** 2 * torch.ones(3)).mean()

    def difference(output, targets, weights):
        return ((output - targets) ** 2 * CONSTANT).mean() + 0 * float(weights.sum())

    def data():
        while True:
            yield X, 2 * X, X

    for loss in (Loss(), tl.Fn("Difference", difference)):
        task = training.TrainTask(data(), loss, optimizers.SGD(0.01))
        loop = training.Loop(
            tl.Serial(tl.Dense(3), tl.Fn("F", WANT_NUMBERS["holds a tensor"])), task
        )
        loop.run(1)
        first = loop.loss
        loop.run(100)

        assert loop.loss < 0.1 * first


def test_what_fails_on_shapes_and_on_zeros_fails_once_and_says_why():
    """A layer is tried twice at most, however deep it lies; the error is that of numbers."""
    calls = []

    def broken(x):
        calls.append(x.device.type)
        return x @ torch.ones(5, 5)

    model = tl.Serial(tl.Serial(tl.Dense(3), tl.Residual(tl.Serial(tl.Fn("Broken", broken)))))
    with pytest.raises(tl.LayerError, match=r"Broken(.|\n)*\(4x3 and 5x5\)"):
        model.init(shapes.signature(X))

    assert calls == ["meta", "cpu"]
    assert not any(p.is_meta for p in model.parameters())
    assert "forward" not in vars(model)


def test_what_runs_on_shapes_is_run_once_and_on_shapes():
    """Whoever asks for nothing but shapes costs nothing."""
    calls = []

    def f(x):
        calls.append(x.device.type)
        return x

    tl.Serial(tl.Dense(3), tl.Fn("F", f), tl.Dense(3)).init(shapes.signature(X))

    assert calls == ["meta"]


def test_init_of_one_layer_does_not_run_it():
    """As in Trax it is asked for its weights alone, so it may look at values as it likes."""

    class Picky(tl.Layer):
        def init_weights_and_state(self, input_signature):
            self.weights = torch.full(input_signature.shape[-1:], 2.0)

        def forward(self, x):
            assert float(x.sum()) > 0, "a sum of zeros"
            return x * self.weights

    layer = Picky()
    weights, state = layer.init(shapes.signature(X))

    assert weights.tolist() == [2, 2, 2]
    assert state == ()
    assert layer(X)[0].tolist() == [2, 2, 2]
    assert tl.Layer().init(shapes.signature(X)) == ((), ())
    assert tl.Relu().init(shapes.signature(X)) == ((), ())


def test_an_error_of_a_layer_that_makes_its_weights_names_the_layer():
    class Broken(tl.Layer):
        def init_weights_and_state(self, input_signature):
            self.weights = torch.zeros(input_signature.shape[7])

    with pytest.raises(tl.LayerError, match=r"layer Broken(.|\n)*IndexError"):
        Broken().init(shapes.signature(X))


def test_a_forward_of_ones_own_is_kept():
    """A function put in the place of a layer's forward is run, and is there afterwards."""
    layer = tl.Dense(3)
    layer.forward = lambda x: x + torch.ones(3)
    own = layer.forward

    tl.Serial(layer, tl.Dense(2)).init(shapes.signature(X))

    assert layer.forward is own
    assert layer(X).tolist() == [[2, 2, 2]] * 4


def under_a_context():
    return torch.device("meta")


@contextlib.contextmanager
def under_a_default():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("on_meta", [under_a_context, under_a_default])
def test_weights_are_where_torch_makes_parameters(on_meta):
    """On its default device, from layers of all ways; from there, values that come stay."""

    def model():
        return tl.Serial(
            tl.Dense(4),
            tl.Fn("Z", lambda x: x + torch.zeros(4)),
            tl.BatchNorm(axis=0),
            nn.Linear(4, 2),
        )

    source, signature = model(), shapes.signature(X)
    source.init(signature, rng=0)
    with on_meta():
        target = model()
        target.init(signature)
        output = target.output_signature(signature)

    assert output.shape == (4, 2)
    assert all(t.is_meta for t in (*target.parameters(), *target.buffers()))
    target.weights, target.state = source.weights, source.state
    target.train(False), source.train(False)
    assert np.array_equal(target(X), source(X))


def test_the_default_device_does_not_change_what_is_drawn():
    """Numbers come from the CPU; the seed that is drawn, too."""
    layer, other = tl.Dense(4), tl.Dense(4)
    torch.manual_seed(3)
    layer.init(shapes.signature(X))
    torch.manual_seed(3)
    with torch.device("meta"):
        other.init(shapes.signature(X))
        after = torch.default_generator.get_state()
        drawn = tl.GlorotUniformInitializer()((3, 4), 0)

    assert other.weights[0].is_meta
    assert torch.equal(drawn, tl.GlorotUniformInitializer()((3, 4), 0))
    torch.manual_seed(3)
    tl.Dense(4).init(shapes.signature(X))
    assert torch.equal(after, torch.default_generator.get_state())
