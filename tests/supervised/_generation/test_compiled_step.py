"""Compiled steps give the tokens of uncompiled ones, whatever changes around them."""

import concurrent.futures
import copy
import shutil
import sys

import pytest
import ties
import torch
from compiled_decoding import MAKERS, counted, lively, prompts, sample, search

from trax_torch import layers as tl
from trax_torch.supervised import decoding
from trax_torch.supervised._generation import engine

pytestmark = pytest.mark.usefixtures("_compiler_afresh")
NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


@pytest.mark.parametrize("name", MAKERS)
def test_compiled_steps_give_the_tokens_of_uncompiled_ones(name):
    """Also where the cache grows beyond a power of two, and for several lengths of prompts."""
    model = lively(name)
    fast = tl.Accelerate(model, backend="eager")

    for n, max_length in ((4, 40), (9, 30), (6, 100)):
        settings = {"max_length": max_length, "temperature": 0.5, "seed": n}
        found = sample(fast, prompts(n), **settings)

        assert torch.equal(found, sample(model, prompts(n), **settings))


@pytest.mark.parametrize("name", MAKERS)
def test_compiled_beams_are_those_of_uncompiled_steps(name):
    model = lively(name)
    fast = tl.Accelerate(model, backend="eager")

    for n in (3, 7):
        (found, scores), (want, want_scores) = (search(m, prompts(n)) for m in (fast, model))

        assert torch.equal(found, want)
        assert torch.allclose(scores, want_scores, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("name", "batch"), [*((name, 3) for name in MAKERS), ("attention", 1)])
def test_compiled_steps_of_float32_choose_what_float64_does(name, batch):
    """Few rows are multiplied, and attended to, in a way of their own; not 9, of three searches."""
    model = lively(name, dtype=torch.float32)
    fast, wide = tl.Accelerate(model, backend="eager"), ties.in_float64(model)
    inputs, chosen = prompts(4, batch), {"temperature": 0.5, "seed": 6}

    found, want = (sample(m, inputs, **chosen) for m in (fast, wide))
    ties.assert_same_tokens(found, want, wide, inputs, **chosen)

    beams, want = (search(m, inputs) for m in (fast, wide))
    ties.assert_same_beams(beams, want, ties.bound_of_scores(wide, inputs, want[0]))


# An empty cache of the compiler makes each of these take half a minute on two cores.
QUICK = ("attention", "encoder-decoder")


@pytest.mark.slow
@NEEDS_COMPILER
@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in MAKERS
    ],
)
def test_inductor_gives_the_tokens_of_uncompiled_steps(name):
    """It is known to miscompile some writes in place; so every layer with a memory is compared."""
    model = lively(name, dtype=torch.float32)
    fast, wide = tl.Accelerate(model), ties.in_float64(model)

    for n, max_length in ((5, 30), (2, 80))[: 1 if name == "encoder-decoder" else 2]:
        found, want = (sample(m, prompts(n), max_length=max_length) for m in (fast, wide))
        ties.assert_same_tokens(found, want, wide, prompts(n))
    if name == "encoder-decoder":  # its beams and its longer memory compile for another minute
        return
    found, want = (search(m, prompts(5)) for m in (fast, wide))
    ties.assert_same_beams(found, want, ties.bound_of_scores(wide, prompts(5), want[0]))


@pytest.mark.parametrize("name", ["attention", "encoder-decoder"])
def test_steps_of_fixed_sizes_give_the_same_tokens(name, monkeypatch):
    """As CUDA graphs want them: a step attends to the whole cache, under a mask."""
    model, inputs = lively(name), prompts(6)
    want, want_beams = sample(model, inputs), search(model, inputs)
    monkeypatch.setattr(engine, "_cuts_out", lambda device: False)
    graphs, backend = counted()

    fast = tl.Accelerate(model, backend=backend)
    (found, scores), (beams, beam_scores) = search(fast, inputs), want_beams
    assert torch.equal(sample(fast, inputs), want)
    assert torch.equal(found, beams)
    assert torch.allclose(scores, beam_scores, rtol=1e-6, atol=0)
    if model.n_in == 1:
        ragged = {"prompt_lengths": [6, 2], "max_length": 10}
        assert torch.equal(sample(fast, inputs, **ragged), sample(model, inputs, **ragged))
    assert len(graphs) == (3 if model.n_in == 1 else 2)


@pytest.mark.parametrize("name", ["attention", "LSTM"])
def test_a_stream_without_end_is_compiled_where_that_is_wished(name):
    model = lively(name)
    graphs, backend = counted()
    stream = decoding.autoregressive_sample_stream(
        tl.Accelerate(model, backend=backend), prompts(3), 2, temperature=0.0
    )

    taken = [next(stream) for _ in range(20)]

    assert torch.equal(torch.cat(taken, dim=1), sample(model, prompts(3)))
    assert len(graphs) == 1


def test_compiled_steps_see_new_weights():
    model = lively("attention")
    fast = tl.Accelerate(model, backend="eager")
    sample(fast, prompts(3))

    for p in model.parameters():
        p.data = p.data.flip(0)

    assert torch.equal(sample(fast, prompts(3)), sample(model, prompts(3)))
    model.bfloat16()
    assert torch.equal(sample(fast, prompts(3)), sample(model, prompts(3)))


@pytest.mark.parametrize("name", ["attention", "encoder-decoder"])
def test_compiled_steps_are_right_where_torch_is_told_not_to_compile(name):
    """A stance that the user chose holds for the first step; what follows must be right as well."""
    model = lively(name)
    fast = tl.Accelerate(model, backend="eager")

    with torch.compiler.set_stance("force_eager"):
        found = sample(fast, prompts(3))

    assert torch.equal(found, sample(model, prompts(3)))
    assert torch.equal(sample(fast, prompts(6)), sample(model, prompts(6)))


def test_two_streams_of_a_compiled_model_do_not_disturb_each_other():
    model = lively("attention")
    fast = tl.Accelerate(model, backend="eager")
    settings = {"batch_size": 2, "temperature": 0.0, "max_length": 10}
    streams = [decoding.autoregressive_sample_stream(fast, prompts(n), **settings) for n in (2, 5)]
    taken = [[next(stream) for stream in streams] for _ in range(10)]

    for n, tokens in zip((2, 5), zip(*taken, strict=True), strict=True):
        assert torch.equal(torch.cat(tokens, dim=1), sample(model, prompts(n), max_length=10))
    assert model.mode == "train"


def test_what_goes_wrong_in_a_compiled_step_is_told():
    """Beyond the room, the layer that has none says so, as uncompiled."""
    fast = tl.Accelerate(MAKERS["attention"](), backend="eager")
    fast.init(torch.ones(1, 1, dtype=torch.int64), rng=0)
    stream = decoding.autoregressive_sample_stream(
        fast, prompts(158, batch=1), temperature=0.0, max_length=10
    )

    with pytest.raises(tl.LayerError, match="room for 160 positions; 160 are filled and 1 more"):
        for _ in range(10):
            next(stream)


def test_what_torch_compile_made_of_a_model_decodes_as_the_model():
    """It hands on `init_cache` and `reorder_cache`, but is no layer itself."""
    model = lively("attention")
    compiled = torch.compile(model, backend="eager")

    assert torch.equal(sample(compiled, prompts(3)), sample(model, prompts(3)))
    for found, want in zip(search(compiled, prompts(3)), search(model, prompts(3)), strict=True):
        assert torch.equal(found, want)


def test_a_compiled_stream_sees_weights_that_are_put_in_between_tokens():
    model = lively("attention")
    found = []
    for each in (model, tl.Accelerate(copy.deepcopy(model), backend="eager")):
        dense = [m for m in each.modules() if isinstance(m, tl.Dense)][-1]
        stream = decoding.autoregressive_sample_stream(each, prompts(3), 2, temperature=0.0)
        taken = [next(stream) for _ in range(5)]
        dense.weight = torch.nn.Parameter(dense.weight.detach().flip(0))
        taken += [next(stream) for _ in range(5)]
        found.append(torch.cat(taken, dim=1))

    assert torch.equal(*found)
    assert not torch.equal(found[0], sample(model, prompts(3), max_length=10))


@pytest.mark.parametrize("name", ["attention", "GRU"])
def test_compiled_steps_heed_autocast(name):
    model = lively(name, dtype=torch.float32)
    chosen = {"return_log_probs": True, "max_length": 10}
    _, plain_log_probs = sample(model, prompts(3), **chosen)
    with torch.autocast("cpu", torch.bfloat16):
        want, log_probs = sample(model, prompts(3), **chosen)
        found, found_log_probs = sample(tl.Accelerate(model, backend="eager"), prompts(3), **chosen)

    assert torch.equal(found, want)
    assert torch.equal(found_log_probs, log_probs)
    assert not torch.equal(log_probs, plain_log_probs)


def test_inference_mode_makes_no_difference():
    """Nor does a stream mind that it is left, or entered, between two tokens."""
    model = lively("GRU")
    fast = tl.Accelerate(model, backend="eager")
    want = sample(model, prompts(3), max_length=10)
    decoding.warmup(fast, 2, 40)
    with torch.inference_mode(), torch.compiler.set_stance("fail_on_recompile"):
        assert torch.equal(sample(fast, prompts(3), max_length=10), want)

    stream = decoding.autoregressive_sample_stream(model, prompts(3), 2, temperature=0.0)
    taken = []
    for i in range(10):
        with torch.inference_mode(i % 3 == 0):
            taken.append(next(stream))
    assert torch.equal(torch.cat(taken, dim=1), want)


def test_threads_decode_from_models_of_their_own_and_from_one(monkeypatch):
    """On one model too, side by side; nothing that is torch's own is left changed."""
    models_, inputs = [lively("attention", seed) for seed in (1, 2)], prompts(4)
    fast = [tl.Accelerate(model, backend="eager") for model in models_]
    want = [sample(model, inputs, max_length=12) for model in models_]
    calls = [*zip(models_, want, strict=True), *zip(fast, want, strict=True)] * 4
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda call: sample(call[0], inputs, max_length=12), calls))
    finally:
        sys.setswitchinterval(interval)

    for tokens, (_, wanted) in zip(found, calls, strict=True):
        assert torch.equal(tokens, wanted)
    assert not torch._dynamo.eval_frame._stance.skip_guard_eval_unsafe
    assert all(model.mode == "train" for model in models_)
