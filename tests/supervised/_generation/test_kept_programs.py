"""Programs of steps that a folder keeps: later processes load them, and need no compiler."""

import fcntl
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from compiled_decoding import MAKERS, VOCAB, around, counted, lively, prompts, sample
from torch import nn

from trax_torch import _torch_private
from trax_torch import layers as tl
from trax_torch.supervised import decoding
from trax_torch.supervised._generation import compiled_step, kept_programs

pytestmark = pytest.mark.usefixtures("_compiler_afresh")
TESTS = Path(lively.__code__.co_filename).parent


@pytest.fixture
def _as_traced(monkeypatch):
    """Nothing is compiled: a file holds what was traced."""
    monkeypatch.setattr(_torch_private, "compile_ahead", torch.export.save)
    monkeypatch.setattr(_torch_private, "load_ahead", lambda path: torch.export.load(path).module())


@pytest.fixture
def compiled(monkeypatch):
    """The paths of what was compiled."""
    paths, compile_ahead = [], _torch_private.compile_ahead

    def counted(program, path):
        paths.append(path)
        compile_ahead(program, path)

    monkeypatch.setattr(_torch_private, "compile_ahead", counted)
    return paths


ELSEWHERE = {"factor": 1}


class Scaled(nn.Module):
    """A model of a user's, whose settings are no weights."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.scale, self.scales, self.function = 1.0, {"more": [1.0]}, _times(1.0)
        self.one = nn.Parameter(torch.ones(1))
        self.other = self.one

    def forward(self, tokens):
        logits = self.function(self.inner(tokens)) * self.one * self.other
        return logits * self.scale * self.scales["more"][0]


def _times(factor):
    return lambda x: factor * x


def kept_of(model):
    return [step.kept for step in compiled_step.steps_of(model).by_kind.values()]


@pytest.mark.usefixtures("_as_traced")
@pytest.mark.parametrize("name", [name for name in MAKERS if name != "encoder-decoder"])
def test_a_second_model_finds_the_program_of_the_first(name, compiled, tmp_path):
    """Its tokens are its own, in runs with prompts of any length, from the first step on."""
    decoding.warmup(lively(name), 2, 40, folder=tmp_path)
    model = lively(name, seed=5)
    decoding.warmup(model, 2, 40, folder=tmp_path)

    with torch.compiler.set_stance("fail_on_recompile"):
        found = [sample(model, prompts(n, seed=n), temperature=1.0, seed=n) for n in (1, 4, 9)]

    assert len(compiled) == 1
    assert kept_of(model) != [None]
    for n, tokens in zip((1, 4, 9), found, strict=True):
        want = sample(model, prompts(n, seed=n), temperature=1.0, seed=n, accelerate=False)
        assert torch.equal(tokens, want)


@pytest.mark.usefixtures("_as_traced")
def test_kept_programs_see_new_weights(tmp_path):
    model = lively("attention")
    decoding.warmup(model, 2, 40, folder=tmp_path)
    before = sample(model, prompts(3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.flip(0))

    found = sample(model, prompts(3))

    assert kept_of(model) != [None]
    assert torch.equal(found, sample(model, prompts(3), accelerate=False))
    assert not torch.equal(found, before)


@pytest.mark.usefixtures("_as_traced")
def test_weights_that_lie_in_memory_in_another_way_are_not_given_to_a_kept_program(tmp_path):
    model = lively("GRU")
    graphs, backend = counted()
    fast = tl.Accelerate(model, backend=backend)
    decoding.warmup(fast, 2, 40, folder=tmp_path)
    assert not graphs
    weight = model.sublayers[-1].weight
    weight.data = weight.data.t().contiguous().t()

    assert torch.equal(sample(fast, prompts(3)), sample(model, prompts(3), accelerate=False))
    assert len(graphs) == 1


@pytest.mark.usefixtures("_as_traced")
def test_another_model_has_another_program(compiled, tmp_path):
    """Other sizes, other settings, other layers: each is seen before a program is run."""
    for last in (tl.LayerNorm(), tl.LayerNorm(epsilon=0.5), tl.Relu()):
        model = around(tl.GRU(8), last)
        model.init(torch.ones(1, 2, dtype=torch.int64), rng=1)
        decoding.warmup(model, 1, 9, folder=tmp_path)

    assert len(set(map(Path, tmp_path.glob("*.pt2")))) == len(compiled) == 3


@pytest.mark.usefixtures("_as_traced")
def test_a_program_that_gives_other_numbers_is_made_anew(compiled, monkeypatch, tmp_path):
    """What a function goes by that lies elsewhere is not seen from outside."""
    for factor in (1, 2):
        monkeypatch.setitem(ELSEWHERE, "factor", factor)
        model = around(tl.GRU(8), tl.Fn("Times", lambda x: ELSEWHERE["factor"] * x))
        model.init(torch.ones(1, 2, dtype=torch.int64), rng=1)
        decoding.warmup(model, 2, 20, folder=tmp_path)
        assert torch.equal(sample(model, prompts(3)), sample(model, prompts(3), accelerate=False))

    assert len(compiled) == 2
    assert len(list(tmp_path.glob("*.pt2"))) == 1


@pytest.mark.usefixtures("_as_traced")
@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "scale", -1.0),
        lambda model: model.scales["more"].__setitem__(0, -1.0),
        lambda model: setattr(model, "function", _times(-1.0)),
        lambda model: setattr(model, "other", nn.Parameter(-torch.ones(1))),
    ],
    ids=["a number", "a list", "a function", "a weight that was tied"],
)
def test_a_program_does_not_serve_a_model_that_became_another(change, tmp_path):
    model = Scaled(lively("GRU"))
    decoding.warmup(model, 2, 40, folder=tmp_path)
    before = sample(model, prompts(3))
    change(model)

    found = sample(model, prompts(3))

    assert torch.equal(found, sample(model, prompts(3), accelerate=False))
    assert not torch.equal(found, before)


@pytest.mark.usefixtures("_as_traced")
def test_weights_that_are_one_by_chance_are_two(compiled, tmp_path):
    """A program that was given one weight for both would go on with the one."""
    decoding.warmup(Scaled(lively("GRU")), 2, 40, folder=tmp_path)
    model = Scaled(lively("GRU"))
    model.other = nn.Parameter(torch.ones(1))
    decoding.warmup(model, 2, 40, folder=tmp_path)
    with torch.no_grad():
        model.other.fill_(-1.0)

    assert len(compiled) == 2
    assert torch.equal(sample(model, prompts(3)), sample(model, prompts(3), accelerate=False))


@pytest.mark.usefixtures("_as_traced")
def test_a_model_that_was_used_before_finds_its_program(compiled, tmp_path):
    """Whether it trains, and what was asked of it before, has no say in what it computes."""
    decoding.warmup(lively("attention"), 2, 40, folder=tmp_path)
    model = lively("attention", seed=5).eval()
    sample(model, prompts(3))
    decoding.warmup(model, 2, 40, folder=tmp_path)

    assert len(compiled) == 1


class Counting(Scaled):
    n_calls = 0

    def forward(self, tokens):
        if not torch.compiler.is_compiling():
            self.n_calls += 1
        return super().forward(tokens)


@pytest.mark.usefixtures("_as_traced")
def test_a_count_of_calls_is_no_setting(tmp_path):
    graphs, backend = counted()
    fast = tl.Accelerate(Counting(lively("GRU")), backend=backend)
    decoding.warmup(fast, 2, 40, folder=tmp_path)

    assert torch.equal(sample(fast, prompts(3)), sample(fast, prompts(3), accelerate=False))
    assert not graphs


class Masked(nn.Module):
    """A model that never makes a 2."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.register_buffer("mask", torch.zeros(VOCAB, dtype=torch.float64))
        self.mask[2] = -torch.inf

    def forward(self, tokens):
        return self.inner(tokens) + self.mask


@pytest.mark.usefixtures("_as_traced")
def test_programs_are_compared_where_symbols_are_masked(tmp_path):
    model = Masked(lively("GRU"))
    logits = model(prompts(3))

    assert kept_programs._is_close(logits, logits, model)
    assert not kept_programs._is_close(logits + 1.0, logits, model)
    decoding.warmup(model, 2, 40, folder=tmp_path)
    assert kept_of(model) != [None]


def test_logits_that_are_no_numbers_are_refused_before_anything_is_made(tmp_path):
    model = lively("GRU")
    with torch.no_grad():
        model.sublayers[-1].weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="logits for token 1 are not numbers"):
        decoding.warmup(model, 2, folder=tmp_path / "programs")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_made(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(ValueError, match="must be made and written to.*Give another one"):
        decoding.warmup(lively("GRU"), 2, folder=path)
    assert path.read_text() == "mine"


@pytest.mark.usefixtures("_as_traced")
def test_of_two_that_make_a_program_at_once_one_makes_it(monkeypatch, tmp_path):
    """The other waits for it, and takes what it finds."""
    compile_ahead, flock, n_compiled = _torch_private.compile_ahead, fcntl.flock, []
    waits = threading.Event()
    second = threading.Thread(
        target=lambda: decoding.warmup(lively("GRU", seed=5), 2, 20, folder=tmp_path)
    )

    def lock(fd, how):
        if n_compiled:
            waits.set()
        flock(fd, how)

    def compile_one(program, path):
        n_compiled.append(1)
        if len(n_compiled) == 1:
            second.start()
            assert waits.wait(100)
        compile_ahead(program, path)

    monkeypatch.setattr(fcntl, "flock", lock)
    monkeypatch.setattr(_torch_private, "compile_ahead", compile_one)
    decoding.warmup(lively("GRU"), 2, 20, folder=tmp_path)
    second.join(100)

    assert not second.is_alive()
    assert len(n_compiled) == 1


@pytest.mark.usefixtures("_as_traced")
@pytest.mark.parametrize("ending", ["pt2", "json"])
@pytest.mark.parametrize("n_bytes", [0, 100])
def test_files_that_were_cut_are_written_anew(ending, n_bytes, compiled, tmp_path):
    decoding.warmup(lively("GRU"), 2, 20, folder=tmp_path)
    (path,) = tmp_path.glob(f"*.{ending}")
    whole = path.read_bytes()
    path.write_bytes(whole[:n_bytes])
    model = lively("GRU", seed=5)

    decoding.warmup(model, 2, 20, folder=tmp_path)

    assert len(compiled) == 2
    assert torch.equal(sample(model, prompts(3)), sample(model, prompts(3), accelerate=False))


@pytest.mark.usefixtures("_as_traced")
@pytest.mark.parametrize("how", ["bfloat16", "float", "int8"])
def test_weights_of_fewer_bits_are_kept(how, compiled, tmp_path):
    """Of 8 bits with activations as floats, and as integers, too."""

    def made(seed):
        model = lively("attention", seed=seed)
        return model.bfloat16() if how == "bfloat16" else decoding.quantize(model, activations=how)

    decoding.warmup(made(0), 2, 20, folder=tmp_path)
    model = made(5)
    decoding.warmup(model, 2, 20, folder=tmp_path)

    assert len(compiled) == 1
    assert torch.equal(sample(model, prompts(3)), sample(model, prompts(3), accelerate=False))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_program_may_round_as_the_weights_do(dtype):
    model = lively("attention").to(dtype)
    want = torch.tensor([[1.0, -2.0]])

    assert kept_programs._is_close(want * (1 + 1e-4), want, model)
    assert kept_programs._is_close(want * 1.04, want, model) == (dtype == torch.bfloat16)
    assert not kept_programs._is_close(want * 1.4, want, model)


def test_what_cannot_be_kept_is_refused(tmp_path):
    with pytest.raises(ValueError, match="models that take tokens alone"):
        decoding.warmup(lively("encoder-decoder"), 2, inputs=prompts(3), folder=tmp_path)
    with pytest.raises(ValueError, match="without many_prompts and draft"):
        decoding.warmup(lively("GRU"), 2, many_prompts=True, folder=tmp_path)
    with pytest.raises(ValueError, match="without beams and prompt_lengths"):
        decoding.warmup(lively("GRU"), 2, n_beams=2, folder=tmp_path)
    hooked = lively("GRU")
    hooked.register_forward_hook(lambda *args: None)
    with pytest.raises(ValueError, match="no forward hooks"):
        decoding.warmup(hooked, 2, folder=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_as_traced")
def test_nothing_is_left_of_a_program_that_could_not_be_written(monkeypatch, tmp_path):
    def fail(program, path):
        Path(path).write_bytes(b"half")
        raise OSError("full")

    monkeypatch.setattr(_torch_private, "compile_ahead", fail)
    with pytest.raises(OSError, match="full"):
        decoding.warmup(lively("GRU"), 2, folder=tmp_path)
    assert not list(tmp_path.iterdir())


SECOND = """
import sys
import torch
from compiled_decoding import lively, prompts, sample
from trax_torch.supervised import decoding
torch.compile = None
model = lively("attention")
decoding.warmup(model, 2, 40, folder=sys.argv[1])
found = sample(model, prompts(3))
assert "torch._inductor.compile_fx" not in sys.modules, "the compiler was imported"
assert torch.equal(found, sample(model, prompts(3), accelerate=False))
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_second_process_needs_no_compiler(tmp_path):
    model = lively("attention")
    decoding.warmup(model, 2, 40, folder=tmp_path)
    assert torch.equal(sample(model, prompts(3)), sample(model, prompts(3), accelerate=False))

    command = [sys.executable, "-c", SECOND, str(tmp_path)]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*.pt2"))) == 1
