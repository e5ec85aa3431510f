"""The compiled twin of a layer."""

import copy
import pickle
import shutil

import pytest
import torch

from trax_torch import layers as tl
from trax_torch import models


def small_model():
    model = tl.Serial(tl.Dense(8), tl.Tanh(), tl.LayerNorm(), tl.Dense(2))
    model.init(torch.zeros(1, 3), rng=0)
    return model


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch.compiler.reset()


def test_an_accelerated_layer_computes_the_same_with_the_same_weights():
    """Outputs and gradients; the weights are shared, and a change of one is a change of both."""
    model = small_model()
    fast = tl.Accelerate(model, backend="aot_eager")
    x = torch.randn(4, 3)

    assert torch.allclose(fast(x), model(x), atol=1e-6)
    fast(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert fast.sublayer is model
    assert len(fast.state_dict()) == len(model.state_dict())
    doubled = tuple(tuple(2 * w.detach() for w in ws) for ws in model.weights)
    fast.replicate_weights(doubled)
    fast.replicate_state(model.state)
    assert torch.allclose(fast(x), model(x), atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
def test_inductor_computes_the_same():
    model = small_model()
    x = torch.randn(4, 3)

    assert torch.allclose(tl.Accelerate(model)(x), model(x), atol=1e-5)


def test_copies_and_pickles_compile_anew():
    fast = tl.Accelerate(small_model(), backend="eager")
    x = torch.randn(2, 3)
    fast(x)

    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.allclose(twin(x), fast(x))
        assert twin.sublayer is not fast.sublayer


def test_a_layer_without_weights_is_initialized_through_its_twin():
    fast = tl.Accelerate(tl.Dense(2), backend="eager")
    fast.init(torch.zeros(1, 3), rng=0)

    assert fast(torch.ones(1, 3)).shape == (1, 2)


def test_in_predict_mode_the_layer_runs_as_it_is():
    model = models.TransformerLM(9, 8, 8, 1, 2, max_len=8, dropout=0.0)
    model.init(torch.zeros(1, 1, dtype=torch.int64), rng=0)
    model.double()
    fast = tl.Accelerate(model, backend="eager")
    tokens = torch.tensor([[1, 2, 3]])

    with torch.no_grad(), fast.predict(1, 8):
        steps = [fast(tokens[:, i : i + 1]) for i in range(3)]
    with torch.no_grad(), model.predict(1, 8):
        assert torch.allclose(torch.cat(steps, dim=1), model(tokens), rtol=0, atol=1e-13)


def test_where_nothing_compiles_the_layer_runs_after_one_warning():
    def broken(graph, inputs):
        raise OSError("no compiler here")

    fast = tl.Accelerate(small_model(), backend=broken)
    x = torch.randn(2, 3)

    with pytest.warns(UserWarning, match="runs uncompiled"):
        y = fast(x)
    assert torch.equal(y, fast(x))
    assert torch.equal(y, fast.sublayer(x))


def test_more_devices_than_one_are_refused():
    with pytest.raises(ValueError, match="n_devices=2. To train on several, start the script with"):
        tl.Accelerate(tl.Relu(), n_devices=2)
