"""A layer with Trax's `has_backward` and `backward` has the gradient that it gives, everywhere."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
import ranks
import torch

from trax_torch import layers as tl
from trax_torch import optimizers, shapes
from trax_torch.layers import _protocol
from trax_torch.supervised import training

X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


class Clipped(tl.Layer):
    """Passes a tensor on, and its gradient back cut off at 0.1."""

    has_backward = True

    def forward(self, x):
        return x

    def backward(self, inputs, output, grad, weights, state, new_state, rng):
        return torch.clamp(grad, -0.1, 0.1), ()


class Affine(tl.Layer):
    """y = (x + noise) w + b, n_calls counted; its gradients are right but for a factor."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor

    @property
    def has_backward(self):
        return self.factor != 0

    def init_weights_and_state(self, input_signature):
        d = input_signature.shape[-1]
        self.weights = torch.randn(d, 2, generator=self.rng), torch.randn(2, generator=self.rng)
        self.state = torch.zeros(())

    def forward(self, x):
        w, b = self.weights
        self.state = self.state + 1
        return (x + torch.rand(x.shape, generator=self.rng)) @ w + b

    def backward(self, inputs, output, grad, weights, state, new_state, rng):
        w, b = weights
        assert new_state == state + 1
        noisy = inputs + torch.rand(inputs.shape, generator=rng)
        torch.testing.assert_close(noisy @ w + b, output)
        of_weights = noisy.flatten(0, -2).T @ grad.flatten(0, -2), grad.flatten(0, -2).sum(0)
        return self.factor * grad @ w.T, tuple(self.factor * g for g in of_weights)


class TimesTen(tl.Dense):
    """A layer of ours whose gradient is ten times too large; weights come in Trax's order."""

    has_backward = True

    def backward(self, inputs, output, grad, weights, state, new_state, rng):
        w, b = weights
        assert (w.shape, b.shape) == ((inputs.shape[-1], output.shape[-1]), output.shape[-1:])
        return 10 * grad @ w.T, (10 * inputs.T @ grad, 10 * grad.sum(0))


def gradients(layer, x, seed=7):
    """The gradients of a sum of squares: of the input, and of each weight by its name."""
    x = torch.from_numpy(x).requires_grad_()
    layer.zero_grad()
    (layer(x, rng=seed) ** 2).sum().backward()
    return {"x": x.grad, **{k: p.grad for k, p in layer.named_parameters()}}


def same(found, expected, factor=1.0):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], factor * value)


@pytest.fixture
def affine():
    layer = Affine()
    layer.init(shapes.signature(X), rng=1)
    return layer


def test_a_gradient_of_ones_own_stands_in_for_autograds():
    model = tl.Serial(Clipped(), tl.Fn("Times5", lambda x: 5 * x))

    x = torch.ones(2, 3, requires_grad=True)
    model(x).sum().backward()
    assert torch.equal(x.grad, torch.full((2, 3), 0.1))


def test_a_right_gradient_is_autograds(affine):
    """Inputs, weights in Trax's order, state before and after, and random numbers as they were."""
    own = gradients(affine, X)
    affine.factor = 0
    autograds = gradients(affine, X)

    same(own, autograds)


@pytest.mark.parametrize("factor", [3.0, -1.0])
def test_it_is_asked_whether_or_not_autograd_knows_better(affine, factor):
    right = gradients(affine, X)
    affine.factor = factor

    same(gradients(affine, X), right, factor)


def test_layers_of_ours_may_have_one_and_its_weights_are_in_traxs_order():
    layer, plain = TimesTen(2), tl.Dense(2)
    layer.init(shapes.signature(X), rng=1)
    plain.init(shapes.signature(X), rng=1)

    same(gradients(layer, X), gradients(plain, X), factor=10)


class AroundLayers(tl.Serial):
    """A series of layers of which the weights' gradients are all ones, and the input's zeros."""

    has_backward = True

    def backward(self, inputs, output, grad, weights, state, new_state, rng):
        ones = _protocol.map_tree(torch.ones_like, weights)
        return torch.zeros_like(inputs), ones


def test_layers_with_layers_may_have_one_and_shared_weights_count_once():
    shared = tl.Dense(3)
    layer = AroundLayers(shared, tl.Tanh(), shared, tl.Dense(2))
    layer.init(shapes.signature(X), rng=1)

    found = gradients(layer, X)

    assert not found.pop("x").any()
    assert len(found) == 4
    assert all((g == 1).all() for g in found.values())


class Two(tl.Layer):
    """Gives two tensors of three inputs, one of which is an integer."""

    has_backward = True

    def __init__(self):
        super().__init__(n_in=3, n_out=2)

    def forward(self, x):
        a, b, n = x
        return a * b, a + n

    def backward(self, inputs, output, grad, weights, state, new_state, rng):
        _, b, _ = inputs
        product, total = grad
        return (2 * product * b + total, None, None), None


def test_inputs_and_outputs_may_be_several_and_a_gradient_none():
    """An output that nothing depends on has a gradient of zeros."""
    a, b = (torch.full((2,), v, requires_grad=True) for v in (3.0, 5.0))
    n = torch.tensor([1, 2])

    product, total = Two()((a, b, n))
    (product.sum() + total.sum()).backward(retain_graph=True)
    first, a.grad = a.grad, None
    product.sum().backward()

    assert first.tolist() == [11, 11]
    assert a.grad.tolist() == [10, 10]
    assert b.grad is None
    assert total.tolist() == [4, 5]


def test_without_gradients_the_layer_is_as_ever(affine):
    """In eval and decoding, with arrays, and where it says so at run time."""
    with torch.no_grad():
        plain = affine(torch.from_numpy(X), rng=3)

    assert np.array_equal(affine(X, rng=3), plain.numpy())
    assert torch.equal(affine(torch.from_numpy(X), rng=3), plain)
    assert affine.state == 3


def test_the_functional_face_asks_for_it(affine):
    """`pure_fn` and `torch.func.grad` give what `backward` gives; the layer is not changed."""
    x, state = torch.from_numpy(X), affine.state
    expected = gradients(affine, X)
    affine.state = state
    affine.factor = 2.0
    weights = tuple(w.detach() for w in affine.weights)

    def loss(weights, x):
        return (affine.pure_fn(x, weights, state, 7)[0] ** 2).sum()

    (w, b), of_x = torch.func.grad(loss, argnums=(0, 1))(weights, x)

    same({"x": of_x, "w0": w, "w1": b}, expected, factor=2)
    assert affine.state == state


@pytest.mark.parametrize("way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_have_it_too(affine, way):
    affine.factor = 2.0

    same(gradients(way(affine), X), gradients(affine, X))


def test_a_subclass_may_bring_a_forward_or_a_gradient_alone(affine):
    """Each is asked by its own forward, once."""

    class Shifted(Affine):
        def forward(self, x):
            return super().forward(x) + 0.0

    class Silent(Affine):
        has_backward = False

    for kind, factor in ((Shifted, 2.0), (Silent, 1.0)):
        layer = kind(2.0)
        layer.init(shapes.signature(X), rng=1)

        same(gradients(layer, X), gradients(affine, X), factor)


# Torch's compiler says so itself, where it compiles a model in pieces.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compiled_it_is_the_same():
    model = tl.Serial(tl.Dense(3), tl.Tanh(), TimesTen(4), tl.Dense(2))
    model.init(shapes.signature(X), rng=1)
    expected = gradients(model, X)
    x = torch.from_numpy(X).requires_grad_()

    compiled = torch.compile(model, backend="aot_eager")
    model.zero_grad()
    (compiled(x) ** 2).sum().backward()

    same({"x": x.grad, **{k: p.grad for k, p in model.named_parameters()}}, expected)


class TimesTenReversibly(tl.ReversibleLayer):
    """Adds a function of one item to the other; the gradient that it gives is ten times that."""

    has_backward = True

    def __init__(self):
        super().__init__(n_in=2, n_out=2)
        self.inner = tl.Dense(3)

    def forward(self, x):
        a, b = x
        return a + torch.tanh(self.inner(b)), b

    def reverse(self, output, weights=(), state=(), new_state=(), rng=None):
        a, b = output
        return a - torch.tanh(self.inner(b)), b

    def backward(self, inputs, output, grad, weights, state, new_state, rng):
        return tuple(10 * g for g in grad), _protocol.map_tree(torch.ones_like, weights)


def reversible_model():
    half = tl.ReversibleHalfResidual(tl.Serial(tl.Dense(3), Clipped()))
    model = tl.Serial(
        tl.Dup(), TimesTenReversibly(), tl.ReversibleSwap(), half, TimesTenReversibly(), tl.Add()
    )
    model.init(shapes.signature(X), rng=1)
    return model


def test_in_a_run_of_reversible_layers_it_is_asked(monkeypatch):
    """Activations are computed again, and the gradients are those of stored ones."""
    model = reversible_model()
    assert model._runs

    found = gradients(model, X)
    monkeypatch.setattr(model, "_runs", ())

    same(found, gradients(model, X))


@pytest.mark.parametrize("remat", [True, False])
def test_computed_again_in_chunks_it_is_asked(remat):
    model = tl.Serial(tl.Dense(3), Clipped())
    chunked = tl.Chunk(model, 2) if remat else model
    chunked.init(shapes.signature(X), rng=1)

    found = gradients(chunked, 10 * X)

    dense = model.sublayers[0]
    expected = torch.clamp(2 * dense(torch.from_numpy(10 * X)), -0.1, 0.1).sum(0)
    torch.testing.assert_close(dense.bias.grad, expected.detach())
    assert found["x"].any()


def data():
    rng = np.random.default_rng(3)
    while True:
        x = rng.normal(size=(8, 3)).astype(np.float32)
        yield x, x[:, :2] + 1, np.ones((8, 2), np.float32)


def trained(layer, n_steps=5, **settings):
    task = training.TrainTask(data(), tl.L2Loss(), optimizers.SGD(0.1))
    model = tl.Serial(tl.Dense(3), layer, tl.Dense(2))
    loop = training.Loop(model, task, random_seed=1, **settings)
    loop.run(n_steps)
    return {k: p.detach().clone() for k, p in model.named_parameters()}


@pytest.mark.parametrize(
    "settings",
    [
        {"use_memory_efficient_trainer": True},
        {"loss_chunk_size": 4},
        {"clip_grad_norm": 1e9},
    ],
    ids=str,
)
def test_however_a_loop_trains_it_is_asked(settings):
    """And it makes a difference."""
    plain = trained(Clipped())

    same(trained(Clipped(), **settings), plain)
    assert not torch.equal(plain["0.weight"], trained(tl.Serial())["0.weight"])


def rows(rank, size):
    while True:
        x = X[rank::size]
        yield x, x[:, :2] + 1, np.ones((len(x), 2), np.float32)


def trained_on(rank, size):
    model = tl.Serial(tl.Dense(3), tl.Tanh(), TimesTen(2))
    task = training.TrainTask(rows(rank, size), tl.L2Loss(), optimizers.SGD(0.01))
    training.Loop(model, task, random_seed=1).run(3)
    return [p.tolist() for p in model.parameters()]


def test_on_several_ranks_it_is_that_of_the_whole_batch(tmp_path):
    """Gradients are averaged over ranks as ever."""
    found = ranks.values(tmp_path, 2, trained_on, 2)

    for weights in found:
        for ours, theirs in zip(weights, trained_on(0, 1), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)


class Wrong(tl.Layer):
    has_backward = True

    def __init__(self, given):
        super().__init__()
        self.given = given

    def init_weights_and_state(self, input_signature):
        self.weights = torch.ones(3)

    def forward(self, x):
        return x * self.weights

    def backward(self, inputs, output, grad, weights, state, new_state, rng):
        return self.given(grad)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda grad: grad, "got a Tensor"),
        (lambda grad: (grad, grad[0], ()), "got a tuple of 3"),
        (lambda grad: ((grad, grad), grad[0]), "got 2 for 1 inputs"),
        (lambda grad: (grad, ()), "the weights' are none: Wrong wants weights of 1 tensors"),
        (lambda grad: (grad[0], grad[0]), r"got one of shape \(3,\) for \(4, 3\)"),
        (lambda grad: (grad, grad), r"got one of shape \(4, 3\) for \(3,\)"),
    ],
)
def test_gradients_that_do_not_fit_are_refused(given, message):
    layer = Wrong(given)
    layer.init(shapes.signature(X))

    said = r"Wrong.backward gives \(inputs_grad, weights_grad\).*"
    with pytest.raises(ValueError, match=said + message):
        layer(torch.from_numpy(X)).sum().backward()


def test_a_gradient_that_is_promised_and_not_there_is_an_error():
    class Promised(tl.Layer):
        has_backward = True

        def forward(self, x):
            return x

    with pytest.raises(TypeError, match="Promised says has_backward and has no backward"):
        Promised()(torch.ones(1, requires_grad=True)).sum().backward()


def test_activations_are_let_go_of():
    """A graph that nobody holds is freed at once, with what the layer saw and gave."""
    gc.disable()
    try:
        x = torch.ones(3, requires_grad=True)
        y = Clipped()(2 * x)
        gone = weakref.ref(y)
        del y
        assert gone() is None
    finally:
        gc.enable()
