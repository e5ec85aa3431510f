"""Weights of bfloat16 in decoding, where the processor has no product of them."""

import pytest
import torch

from trax_torch import _torch_private, models
from trax_torch import layers as tl
from trax_torch.layers._core import bfloat16
from trax_torch.supervised import decoding


@pytest.fixture(params=[False, True])
def lacks(request, monkeypatch):
    """Whether the processor lacks it, as far as layers know."""
    monkeypatch.setattr(bfloat16, "LACKS_PRODUCTS", request.param)
    return request.param


def dense(d_in=24, n_units=7):
    layer = tl.Dense(n_units, bias_initializer=tl.RandomNormalInitializer(1.0))
    layer.init(torch.zeros(1, d_in), rng=0)
    return layer.bfloat16().eval()


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16()


@pytest.mark.parametrize("n_rows", [1, 4, 20])
@pytest.mark.parametrize("compiles", [False, True])
def test_products_are_of_the_rounded_weights(lacks, n_rows, compiles):
    """In float32 they are within half of a last bit of what comes out."""
    torch.compiler.reset()
    layer, x = dense(), noise(n_rows, 24)
    want = x.double() @ layer.weight.double().t() + layer.bias.double()
    layer.init_cache(1, 1)
    run = torch.compile(layer, backend="eager", fullgraph=True) if compiles else layer

    with torch.no_grad():
        found = run(x)

    assert found.dtype == torch.bfloat16
    half = 2.0**-8 if lacks and (compiles or n_rows >= 4) else 2.0**-5
    assert ((found.double() - want).abs() <= half * want.abs() + 1e-5 + (half > 0.01) * 0.05).all()


def test_layers_that_train_multiply_as_they_are(lacks, monkeypatch):
    """Gradients, evals and autocast are left alone."""
    widened, widen = [], torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda x: widened.append(1) or widen(x))
    layer, x = dense(), noise(20, 24)

    layer(x).sum().backward()
    with torch.no_grad():
        layer(x)
    assert widened == []
    layer.init_cache(1, 1)
    with torch.no_grad():
        layer(x)

    assert bool(widened) == lacks


def test_models_decode(lacks):
    """Tokens are of a distribution that is near float32's, in steps, and compiled."""
    model = models.TransformerLM(12, 16, 32, 2, 2, 64, dropout=0.0)
    model.init(torch.ones(1, 2, dtype=torch.int64), rng=0)
    small = models.TransformerLM(12, 16, 32, 2, 2, 64, dropout=0.0)
    small.init(torch.ones(1, 2, dtype=torch.int64), rng=0)
    small.load_state_dict(model.state_dict())
    small = small.bfloat16()
    inputs = torch.arange(12).reshape(2, 6)
    settings = {"batch_size": 2, "max_length": 8, "eos_id": -1, "temperature": 0.0}

    for fast in (small, tl.Accelerate(small, backend="eager")):
        tokens, found = decoding.autoregressive_sample(
            fast, inputs, **settings, return_log_probs=True
        )
        whole = torch.cat([inputs, tokens], 1)
        with torch.no_grad():
            logits = model.eval()(whole)[:, 6:]
        want = logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0]
        assert torch.allclose(found, want, atol=0.1)


def test_the_log_says_so(lacks, monkeypatch, caplog):
    caplog.set_level("INFO", logger="trax_torch")
    monkeypatch.setattr(_torch_private, "cpu_multiplies_bfloat16", lambda: not lacks)
    model = models.TransformerLM(12, 16, 32, 1, 2, 64)
    model.init(torch.ones(1, 2, dtype=torch.int64), rng=0)

    decoding.autoregressive_sample(model.bfloat16(), max_length=2)

    assert any("multiplies in float32" in message for message in caplog.messages) == lacks
