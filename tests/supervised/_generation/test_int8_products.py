"""Dense layers that multiply integers: they compute what rounded weights and activations say."""

import copy
import pickle
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from rounded import dense, noise
from torch.nn import functional as F

from trax_torch import layers as tl
from trax_torch import models, shapes
from trax_torch.supervised import decoding
from trax_torch.supervised._generation import int8_products

VOCAB = 16


def can_multiply():
    try:
        int8_products.check_can_multiply()
    except ValueError:
        return False
    return True


pytestmark = pytest.mark.skipif(not can_multiply(), reason="torch has no fbgemm here")


def by_hand(layer, x):
    """What the docstring says, in float64, of what was rounded in float32."""
    largest = x.float().abs().amax(-1, keepdim=True)
    a = (x.float() / torch.where(largest == 0, 1.0, largest) * 63).round().double()
    weights = layer.weight.double() * layer.scale.double()[:, None]
    y = a @ weights.t() * largest.double() / 63
    return y if layer.bias is None else y + layer.bias.double()


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("shape", [(8,), (1, 8), (2, 3, 8), (0, 8), (40, 8)])
def test_it_computes_what_was_rounded(shape, use_bias):
    layer = int8_products.Int8ProductDense(dense(use_bias=use_bias))
    x = noise(*shape)

    assert layer(x).shape == (*shape[:-1], 6)
    assert torch.allclose(layer(x).double(), by_hand(layer, x), atol=1e-5)


def test_the_largest_sums_are_exact():
    """All of one sign, as large as they get: nothing is cut off on the way."""
    layer = dense(3072, 5)
    layer.weight.data.fill_(1.0)
    layer.weight.data[1] = -1.0
    small = int8_products.Int8ProductDense(layer)
    x = torch.ones(2, 3072)
    x[1] *= -1e-3

    found = small(x) - small.bias

    assert torch.allclose(found, x @ layer.weight.t(), rtol=1e-5)


def test_rows_do_not_depend_on_those_beside_them():
    layer = int8_products.Int8ProductDense(dense(64, 32))
    x = noise(9, 64) * 10.0 ** torch.arange(-4, 5)[:, None]

    alone = torch.cat([layer(row[None]) for row in x])

    assert torch.equal(layer(x), alone)
    error = (layer(x) - x @ (layer.weight * layer.scale[:, None]).t() - layer.bias).abs().amax(-1)
    assert (error < 0.05 * x.abs().amax(-1) * 64**0.5 * layer.scale.max() * 127).all()


def test_rows_of_zeros_are_exact_and_what_is_no_number_stays_none():
    layer = int8_products.Int8ProductDense(dense())
    x = noise(4, 8)
    x[0] = 0
    x[1, 3], x[2, 4] = torch.nan, torch.inf

    found = layer(x)

    assert torch.equal(found[0], layer.bias)
    assert found[1].isnan().all()
    assert not found[2].isfinite().any()
    assert found[3].isfinite().all()


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
def test_types_are_those_of_dense(kind):
    small, x = int8_products.Int8ProductDense(dense().to(kind)), noise(2, 8).to(kind)

    assert small(x).dtype == kind
    assert torch.allclose(small(x).double(), by_hand(small, x), rtol=1e-2, atol=2e-2)
    signature = shapes.ShapeDtype((3, 8))
    assert small.output_signature(signature).shape == (3, 6)


def test_weights_that_are_written_into_count():
    """In place, by loading, and in a copy."""
    layer, other = (int8_products.Int8ProductDense(dense(seed=seed)) for seed in (0, 1))
    twin, x = copy.deepcopy(layer), noise(3, 8)

    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), other(x))
    with torch.no_grad():
        layer.weight.zero_()

    assert torch.equal(layer(x), layer.bias.expand(3, 6))
    assert torch.allclose(twin(x).double(), by_hand(twin, x), atol=1e-5)
    assert not torch.equal(twin(x), other(x))


def test_weights_are_packed_once(monkeypatch):
    layer, x = int8_products.Int8ProductDense(dense()), noise(3, 8)
    n_packed = []
    pack = torch.quantize_per_channel
    monkeypatch.setattr(torch, "quantize_per_channel", lambda *a: n_packed.append(1) or pack(*a))
    engine = torch.backends.quantized.engine
    compiled = torch.compile(layer, backend="eager", fullgraph=True)

    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(compiled(x), layer(x))
    assert n_packed == []
    copy.deepcopy(layer)(x)

    assert n_packed == [1]
    assert torch.backends.quantized.engine == engine


def test_a_layer_multiplies_in_another_process(tmp_path):
    """Where none was made: torch knows of the operation as soon as there is one."""
    layer, x = int8_products.Int8ProductDense(dense()).eval(), noise(3, 8)
    with torch.no_grad():
        (tmp_path / "layer").write_bytes(pickle.dumps((layer, x, layer(x))))

    code = "import pickle, sys, torch; layer, x, y = pickle.load(open(sys.argv[1], 'rb')); "
    code += "assert torch.equal(layer(x), y)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "layer")], check=True)


def test_the_operation_keeps_to_the_rules_of_operations():
    q = torch.randint(-127, 128, (6, 8), dtype=torch.int8)
    int8_products._known_to_torch()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.library.opcheck(
            torch.ops.trax_torch.int8_by_int8,
            (noise(9, 8), q),
            test_utils=("test_schema", "test_faketensor"),
        )


def lively():
    model = models.TransformerLM(VOCAB, 16, 32, 2, 2, 160, dropout=0.0)
    model.init(torch.ones(1, 2, dtype=torch.int64), rng=4)
    for p in model.parameters():
        p.data *= 2
    return model.double().eval()


def sample(model, **kwargs):
    chosen = {"batch_size": 2, "temperature": 0.5, "seed": 3, "eos_id": -1, "max_length": 20}
    inputs = torch.tensor([[1, 2, 3], [4, 5, 6]])
    return decoding.autoregressive_sample(model, inputs, **{**chosen, **kwargs})


def test_a_model_says_nearly_the_same_and_steps_say_what_a_pass_says():
    """In float64, where no last bit decides how an activation is rounded."""
    model = lively()
    small = decoding.quantize(model, activations="int8")
    tokens = torch.arange(30).reshape(2, 15) % VOCAB

    with torch.no_grad():
        found, want = small(tokens), model(tokens)

    assert 0 < (found - want).abs().max() < 0.3 * want.std()
    kinds = [type(m) for m in small.modules() if "Dense" in type(m).__name__]
    assert set(kinds) == {int8_products.Int8ProductDense}
    assert torch.equal(sample(small), sample(small, eval_mode=True))
    assert torch.equal(sample(small), sample(tl.Accelerate(small, backend="eager")))


def test_what_there_is_not_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="activations is 'float' or 'int8'; got 'int4'"):
        decoding.quantize(lively(), activations="int4")
    monkeypatch.setattr(int8_products, "_ENGINE", "none")
    with pytest.raises(ValueError, match="needs a torch with none, .* Take activations='float'"):
        decoding.quantize(lively(), activations="int8")


@pytest.mark.exhaustive
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_inductor_gives_the_tokens_of_uncompiled_steps():
    small = decoding.quantize(lively(), activations="int8")

    assert torch.equal(sample(tl.Accelerate(small)), sample(small))


@pytest.mark.slow
def test_rounding_costs_little_perplexity():
    """Of a model that was trained: sequences in which a token follows from the two before it."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(VOCAB, VOCAB, VOCAB, generator=generator).mul(2).softmax(-1)

    def sequences(n):
        tokens = torch.randint(VOCAB, (n, 24), generator=generator)
        for i in range(2, 24):
            odds = table[tokens[:, i - 2], tokens[:, i - 1]]
            tokens[:, i] = torch.multinomial(odds, 1, generator=generator)[:, 0]
        return tokens

    def loss(model, tokens):
        return F.cross_entropy(model(tokens)[:, 2:].flatten(0, 1), tokens[:, 2:].flatten())

    model = models.TransformerLM(VOCAB, 64, 128, 2, 2, 32, dropout=0.0)
    model.init(torch.ones(1, 2, dtype=torch.int64), rng=0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    first = float(loss(model, sequences(256)).detach())
    for _ in range(200):
        optimizer.zero_grad()
        loss(model, sequences(64)).backward()
        optimizer.step()

    model.eval()
    held_out = sequences(512)
    with torch.no_grad():
        want = loss(model, held_out)
        found = [
            loss(decoding.quantize(model, activations=kind), held_out) for kind in ("float", "int8")
        ]
        of_4_bits = [
            loss(decoding.quantize(model, bits=4, group_size=size), held_out) for size in (32, 64)
        ]

    assert want < first - 0.3
    assert all((x - want).abs() < 0.01 for x in found)  # 1% of perplexity
    assert all((x - want).abs() < 0.03 for x in of_4_bits)
