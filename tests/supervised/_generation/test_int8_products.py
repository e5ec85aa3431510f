"""Dense layers that multiply integers: they compute what rounded weights and activations say."""

import copy
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from rounded import dense, noise
from torch.nn import functional as F

from trax_torch import layers as tl
from trax_torch import models, shapes
from trax_torch.supervised import decoding
from trax_torch.supervised._generation import groups, int8_products, native

VOCAB = 16
NEEDS_COMPILER = pytest.mark.skipif(bool(native.why_not()), reason=native.why_not())
KINDS = ["8 bits", "4 bits", "4 bits, 128"]


def rounded(kind, layer):
    if kind == "8 bits":
        return int8_products.Int8ProductDense(layer)
    return int8_products.Int4ProductDense(layer, 128 if "128" in kind else 64)


@pytest.fixture(params=["native", "floats"])
def way(request, monkeypatch):
    """With a compiler, and as without."""
    if request.param == "floats":
        monkeypatch.setattr(native, "why_not", lambda: "asked for")
    elif native.why_not():
        pytest.skip(native.why_not())
    return request.param


def by_hand(layer, x):
    """What the docstring says, in float64, of what was rounded in float32."""
    largest = x.float().abs().amax(-1, keepdim=True)
    a = (x.float() / torch.where(largest == 0, 1.0, largest) * 63).round().double()
    if isinstance(layer, int8_products.Int4ProductDense):
        weights = groups.floats(layer.weight, layer.scale, torch.float64)
    else:
        weights = layer.weight.double() * layer.scale.double()[:, None]
    y = a @ weights.t() * largest.double() / 63
    return y if layer.bias is None else y + layer.bias.double()


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (0,), (4,), (5,), (40,)])
@pytest.mark.parametrize(
    ("kind", "d_in"),
    [("8 bits", n) for n in (1, 8, 31, 32, 33, 96)] + [("4 bits", 64), ("4 bits", 192)]
    + [("4 bits, 128", 256)],
)  # fmt: skip
def test_it_computes_what_was_rounded(way, kind, d_in, shape, use_bias):
    layer = rounded(kind, dense(d_in, 37, use_bias=use_bias))
    x = noise(*shape, d_in)

    assert layer._is_native == (way == "native")
    assert layer(x).shape == (*shape, 37)
    assert torch.allclose(layer(x).double(), by_hand(layer, x), atol=1e-5 * d_in**0.5)


@NEEDS_COMPILER
@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_otherwise_in_memory_is_the_same(kind):
    layer, x = rounded(kind, dense(128, 8)), noise(5, 128)

    assert torch.equal(layer(x.t().contiguous().t()), layer(x))
    assert torch.equal(layer(torch.stack([x, x], 1)[:, 1]), layer(x))


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_sums_are_exact(way, kind, sign):
    """All of one sign, as large as they get: nothing is cut off on the way."""
    layer = dense(3072, 5)
    layer.weight.data.fill_(sign)
    small = rounded(kind, layer)
    x = torch.ones(6, 3072)
    x[1] *= -1e-3

    found = small(x) - small.bias

    assert torch.allclose(found, x @ layer.weight.t(), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_depend_on_those_beside_them(kind, way):
    layer = rounded(kind, dense(128, 32))
    x = noise(9, 128) * 10.0 ** torch.arange(-4, 5)[:, None]

    alone = torch.cat([layer(row[None]) for row in x])

    assert way == "floats" or torch.equal(layer(x), alone)
    error = (layer(x).double() - by_hand(layer, x)).abs().amax(-1)
    assert (error <= 1e-4 * x.abs().amax(-1) + 1e-6).all()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_zeros_are_exact_and_what_is_no_number_stays_none(way, kind):
    layer = rounded(kind, dense(128))
    x = noise(4, 128)
    x[0] = 0
    x[1, 3], x[2, 4] = torch.nan, -torch.inf

    found = layer(x)

    assert torch.equal(found[0], layer.bias)
    assert found[1].isnan().all()
    assert not found[2].isfinite().any()
    assert found[3].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_types_are_those_of_dense(way, kind, dtype):
    small, x = rounded(kind, dense(128).to(dtype)), noise(2, 128).to(dtype)

    assert small(x).dtype == dtype
    assert torch.allclose(small(x).double(), by_hand(small, x), rtol=1e-2, atol=5e-2)
    signature = shapes.ShapeDtype((3, 128))
    assert small.output_signature(signature).shape == (3, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_written_into_count(way, kind):
    """In place, by loading, and in a copy."""
    layer, other = (rounded(kind, dense(128, seed=seed)) for seed in (0, 1))
    twin, x = copy.deepcopy(layer), noise(3, 128)

    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), other(x))
    with torch.no_grad():
        layer.scale.zero_()

    assert torch.equal(layer(x), layer.bias.expand(3, 6))
    assert torch.allclose(twin(x).double(), by_hand(twin, x), atol=1e-4)
    assert not torch.equal(twin(x), other(x))


THREADS = """
import torch
from trax_torch.supervised._generation import native

def made(n_threads):
    torch.set_num_threads(n_threads)
    return torch.ops.trax_torch.int8_linear(x, q, torch.ones(1001))

assert not native.why_not()
x, q = torch.randn(3, 1024), torch.randint(-127, 128, (1001, 1024), dtype=torch.int8)
assert torch.equal(made(2), made(1))
"""


@NEEDS_COMPILER
def test_threads_share_the_outputs():
    """In a process that forks no others, which would wait for its threads."""
    subprocess.run([sys.executable, "-c", THREADS], check=True)


@NEEDS_COMPILER
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_multiplies_in_another_process(tmp_path, kind):
    """Where none was made: torch knows of the operation as soon as there is one."""
    layer, x = rounded(kind, dense(128)).eval(), noise(3, 128)
    with torch.no_grad():
        (tmp_path / "layer").write_bytes(pickle.dumps((layer, x, layer(x))))

    code = "import pickle, sys, torch; layer, x, y = pickle.load(open(sys.argv[1], 'rb')); "
    code += "assert torch.equal(layer(x), y)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "layer")], check=True)


@NEEDS_COMPILER
def test_the_operations_keep_to_the_rules_of_operations():
    q = torch.randint(-127, 128, (6, 64), dtype=torch.int8)
    q4, scale = groups.rounded(noise(6, 64), 64)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for op, args in (
            (torch.ops.trax_torch.int8_linear, (q, torch.rand(6))),
            (torch.ops.trax_torch.int4_linear, (q4, scale)),
        ):
            tests = ("test_schema", "test_faketensor")
            torch.library.opcheck(op, (noise(9, 64), *args), test_utils=tests)


@NEEDS_COMPILER
def test_what_the_compiler_makes_is_kept(tmp_path, monkeypatch):
    """Or made for a process alone, where it cannot be; made anew for another source."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "products.cpp"
    source.write_text("int first() { return 1; }")
    monkeypatch.setattr(native, "_SOURCE", source)

    made = Path(native._made_by("c++"))
    when = made.stat().st_mtime_ns
    assert native._made_by("c++") == str(made)
    assert made.stat().st_mtime_ns == when
    assert list((tmp_path / "trax_torch").iterdir()) == [made]

    source.write_text("int second() { return 2; }")
    assert native._made_by("c++") != str(made)
    monkeypatch.setenv("XDG_CACHE_HOME", str(source))
    assert not Path(native._made_by("c++")).is_relative_to(tmp_path)


def test_it_is_said_why_the_compiler_makes_nothing(tmp_path, monkeypatch):
    source = tmp_path / "products.cpp"
    source.write_text("this is no C++")
    monkeypatch.setattr(native, "_SOURCE", source)
    monkeypatch.setenv("CXX", "no-such-compiler")
    if shutil.which("c++"):
        with pytest.raises(subprocess.CalledProcessError):
            native._made_by("c++")

    monkeypatch.setattr(shutil, "which", lambda name: None)
    why = native._look.__wrapped__()

    assert why == "there is no C++ compiler: install g++, or name one by CXX"


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
    monkeypatch.setattr(native, "why_not", lambda: "there is none")
    with pytest.raises(ValueError, match="needs a C.. compiler, .*; there is none. Or take"):
        decoding.quantize(lively(), activations="int8")


@pytest.mark.slow
@NEEDS_COMPILER
def test_inductor_gives_the_tokens_of_uncompiled_steps():
    """Of layers with 8 bits and with 4."""
    model = models.TransformerLM(VOCAB, 64, 96, 1, 2, 160, dropout=0.0)
    model.init(torch.ones(1, 2, dtype=torch.int64), rng=4)
    for p in model.parameters():
        p.data *= 2
    small = decoding.quantize(model.double().eval(), bits=4, activations="int8")
    kinds = {type(m) for m in small.modules() if "Dense" in type(m).__name__}

    assert kinds == {int8_products.Int4ProductDense, int8_products.Int8ProductDense}
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
            loss(decoding.quantize(model, bits=4, group_size=size, activations=kind), held_out)
            for size, kind in ((32, "float"), (64, "float"), (64, "int8"))
        ]

    assert want < first - 0.3
    assert all((x - want).abs() < 0.01 for x in found)  # 1% of perplexity
    assert all((x - want).abs() < 0.03 for x in of_4_bits)
