"""Compiled decoding: the same tokens, by one program, and only where it pays."""

import concurrent.futures
import copy
import logging
import pickle
import shutil
import sys
import warnings

import pytest
import ties
import torch

from trax_torch import layers as tl
from trax_torch import models
from trax_torch.layers._predict import kv_cache
from trax_torch.supervised import decoding
from trax_torch.supervised._generation import compiled_step, engine

VOCAB = 7
NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


@pytest.fixture(autouse=True)
def _afresh():
    torch.compiler.reset()
    yield
    torch.compiler.set_stance("default")


def around(*layers):
    return tl.Serial(tl.ShiftRight(), tl.Embedding(VOCAB, 8), *layers, tl.Dense(VOCAB))


MAKERS = {
    "attention": lambda: around(tl.PositionalEncoding(160), tl.CausalAttention(8, n_heads=2)),
    "GRU": lambda: around(tl.GRU(8)),
    "LSTM": lambda: around(tl.LSTM(8)),
    "SRU": lambda: around(tl.SRU(8)),
    "encoder-decoder": lambda: models.Transformer(VOCAB, None, 8, 8, 1, 1, 2, max_len=160),
}


def lively(name, seed=4, dtype=torch.float64):
    """A model whose rows differ, though nobody trained it."""
    model = MAKERS[name]()
    one = torch.ones(1, 2, dtype=torch.int64)
    model.init(one if model.n_in == 1 else (one, one), rng=seed)
    for p in model.parameters():
        p.data *= 3
    return model.to(dtype)


def prompts(n, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCAB, (batch, n), generator=generator)


def counted():
    """Returns a backend that runs a graph as it is, and the list of graphs that it was given."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    return graphs, backend


def sample(model, inputs, **kwargs):
    settings = {"batch_size": len(inputs), "temperature": 0.0, "eos_id": -1, "max_length": 20}
    return decoding.autoregressive_sample(model, inputs, **{**settings, **kwargs})


def search(model, inputs, **kwargs):
    settings = {"batch_size": len(inputs), "n_beams": 3, "max_length": 12, "return_scores": True}
    return decoding.beam_search(model, inputs, **{**settings, **kwargs})


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


@pytest.mark.parametrize("name", MAKERS)
def test_other_prompts_recompile_nothing(name):
    """Three runs of 100 tokens with differing prompts: one graph."""
    model = lively(name)
    graphs, backend = counted()
    fast = tl.Accelerate(model, backend=backend)
    decoding.warmup(fast, 2, 120, inputs=prompts(4))
    n_graphs = len(graphs)

    with torch.compiler.set_stance("fail_on_recompile"):
        for n in (2, 5, 17):
            chosen = {"max_length": 100, "temperature": 1.0, "seed": n}
            found = sample(fast, prompts(n, seed=n), **chosen)
            assert torch.equal(found, sample(model, prompts(n, seed=n), **chosen))

    assert n_graphs == 1
    assert len(graphs) == 1


def test_ragged_prompts_have_a_program_of_their_own():
    model = lively("attention")
    graphs, backend = counted()
    fast = tl.Accelerate(model, backend=backend)
    decoding.warmup(fast, 3, 40, inputs=prompts(6, 3), prompt_lengths=[1, 6, 3])

    with torch.compiler.set_stance("fail_on_recompile"):
        found = sample(fast, prompts(9, 3), max_length=40, prompt_lengths=[4, 9, 2])

    assert len(graphs) == 1
    assert torch.equal(found, sample(model, prompts(9, 3), max_length=40, prompt_lengths=[4, 9, 2]))


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


def test_programs_live_on_the_model_one_for_a_kind():
    """A second wrapper, a stream and a plain call share them; another batch size has its own."""
    model = lively("attention")
    graphs, backend = counted()
    sample(tl.Accelerate(model, backend=backend), prompts(3))
    sample(tl.Accelerate(model, backend=backend), prompts(5))
    stream = decoding.autoregressive_sample_stream(
        tl.Accelerate(model, backend=backend), prompts(3), 2, max_length=20
    )
    for _ in range(5):
        next(stream)

    assert len(graphs) == 1
    sample(tl.Accelerate(model, backend=backend), prompts(3, batch=3))
    assert len(graphs) == 2


def test_a_warmup_serves_all_calls_that_are_no_longer(caplog):
    """With a prompt and without, sampled and searched; a longer call is another kind."""
    caplog.set_level(logging.INFO, logger="trax_torch")
    model = lively("attention")
    graphs, backend = counted()
    fast = tl.Accelerate(model, backend=backend)
    decoding.warmup(fast, 2, 90)
    decoding.warmup(fast, 2, 40, n_beams=3)

    with torch.compiler.set_stance("fail_on_recompile"):
        for n, max_length in ((0, 90), (40, 50), (3, 5), (0, 20)):
            sample(fast, prompts(n), max_length=max_length)
            assert "compiled (known)" in caplog.messages[-1]
        for n, max_length in ((0, 40), (20, 20), (3, 5)):
            search(fast, prompts(n), max_length=max_length)
            assert "compiled (known)" in caplog.messages[-1]
    assert len(graphs) == 2
    found = sample(fast, prompts(40), max_length=100)
    assert torch.equal(found, sample(model, prompts(40), max_length=100))
    assert len(graphs) == 3


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


def test_models_do_not_share_programs():
    """Many models can be compiled, though torch keeps few programs for a function."""
    graphs, backend = counted()
    with torch._dynamo.config.patch(recompile_limit=1):
        for seed in range(3):
            model = lively("GRU", seed)
            found = sample(tl.Accelerate(model, backend=backend), prompts(2), max_length=4)

            assert torch.equal(found, sample(model, prompts(2), max_length=4))
    assert len(graphs) == 3


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


def test_copies_and_files_of_a_compiled_model_have_no_programs():
    model = lively("GRU")
    sample(tl.Accelerate(model, backend="eager"), prompts(3))

    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert compiled_step.steps_of(twin).by_kind == {}
        assert torch.equal(sample(twin, prompts(3)), sample(model, prompts(3)))


def test_a_plain_call_compiles_where_it_pays_alone(caplog, monkeypatch):
    """Uncompiled for few tokens; compiled where the model was before; and the log says which."""
    caplog.set_level(logging.INFO, logger="trax_torch")
    model = lively("GRU")
    graphs, backend = counted()
    monkeypatch.setattr(decoding, "_BACKEND", backend)

    sample(model, prompts(3))
    assert "uncompiled: 0 steps before do not repay it" in caplog.messages[-1]
    sample(model, prompts(3), accelerate=False)
    assert "uncompiled: accelerate=False" in caplog.messages[-1]
    assert graphs == []

    decoding.warmup(model, 2, 20, inputs=prompts(3))
    sample(model, prompts(3))
    assert "decodes compiled (known)" in caplog.messages[-1]
    assert len(graphs) == 1

    monkeypatch.setitem(compiled_step.N_STEPS_THAT_PAY, "cpu", 19)
    sample(model, prompts(3, batch=3))  # steps of this kind are taken for the first time
    assert "uncompiled: 0 steps before do not repay it" in caplog.messages[-1]
    sample(model, prompts(3, batch=3))
    assert "decodes compiled (new)" in caplog.messages[-1]
    assert len(graphs) == 2


def test_where_nothing_compiles_the_model_decodes_uncompiled_after_one_warning():
    def broken(graph, inputs):
        raise OSError("no compiler here")

    model = lively("attention")
    fast = tl.Accelerate(model, backend=broken)

    with pytest.warns(UserWarning, match="decodes uncompiled"):
        found = sample(fast, prompts(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = sample(fast, prompts(3))
    assert torch.equal(found, sample(model, prompts(3)))
    assert torch.equal(again, found)


def test_a_warmup_of_what_cannot_be_compiled_is_refused():
    class Counter(torch.nn.Module):
        seen = 0

        def init_cache(self, batch_size, max_length):
            self.seen = 0

        def reset_cache(self):
            self.seen = 0

        def forward(self, tokens):
            self.seen += tokens.shape[1]
            return torch.zeros(*tokens.shape, VOCAB)

    with pytest.raises(ValueError, match="steps of Counter cannot be compiled: it keeps a cache"):
        decoding.warmup(Counter())
    with pytest.raises(ValueError, match="first token needs no compiled step: give more; got 1"):
        decoding.warmup(lively("GRU"), max_length=1)


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


def test_a_model_with_hooks_decodes_uncompiled(caplog):
    """A program would not see them."""
    caplog.set_level(logging.INFO, logger="trax_torch")
    model = lively("attention")
    fast = tl.Accelerate(model, backend="eager")
    decoding.warmup(fast, 2, 20, inputs=prompts(3))
    hook = model.sublayers[-1].register_forward_hook(lambda m, x, y: 0 * y + torch.arange(VOCAB))

    found = sample(fast, prompts(3))
    hook.remove()

    assert found.unique().tolist() == [VOCAB - 1]
    assert "uncompiled: it has forward hooks" in caplog.messages[-1]
    sample(fast, prompts(3))
    assert "compiled (known)" in caplog.messages[-1]


def test_a_warmup_of_a_plain_module_is_found_again(monkeypatch):
    """Each call wraps such a module afresh."""

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = lively("GRU")

        def forward(self, tokens):
            return self.model(tokens)

    graphs, backend = counted()
    monkeypatch.setattr(decoding, "_BACKEND", backend)
    plain = Plain()
    for _ in range(3):
        decoding.warmup(plain, 2, 20)
        sample(plain, prompts(3), max_length=10)

    assert len(plain._compiled_steps.by_kind) == 1
    assert len(graphs) == 1


def test_a_generous_max_length_is_no_reason_to_compile(monkeypatch):
    """Where a sequence ends after a few tokens, compiling would take longer than all of them."""
    model = lively("GRU")
    graphs, backend = counted()
    monkeypatch.setattr(decoding, "_BACKEND", backend)
    eos = int(sample(model, prompts(3, 1))[0, 2])

    for _ in range(2):
        assert sample(model, prompts(3, 1), max_length=100_000, eos_id=eos).shape[1] <= 3

    assert graphs == []


def test_caches_are_no_longer_than_the_model_is(monkeypatch):
    lengths = []
    monkeypatch.setattr(kv_cache.KVCache, "reserve", lambda cache, n: lengths.append(n))
    model = lively("attention")

    with pytest.raises(tl.LayerError):  # of the caches, which are as they were
        search(model, prompts(3), max_length=10_000)

    assert set(lengths) == {4 + 3 * 156}


def test_equal_prompt_lengths_are_of_the_kind_of_unequal_ones():
    model = lively("attention")
    graphs, backend = counted()
    fast = tl.Accelerate(model, backend=backend)
    decoding.warmup(fast, 2, 20, inputs=prompts(6), prompt_lengths=[6, 6])

    with torch.compiler.set_stance("fail_on_recompile"):
        for lengths in ([6, 2], [4, 4]):
            sample(fast, prompts(6), prompt_lengths=lengths)

    assert len(graphs) == 1


def test_a_program_that_was_made_too_often_is_made_anew_in_the_next_run():
    """torch makes few programs of a function; a run that would need one more goes on without."""
    model = lively("GRU")
    graphs, backend = counted()
    fast = tl.Accelerate(model, backend=backend)
    want = sample(model, prompts(3))
    n_threads = torch.get_num_threads()
    try:
        with torch._dynamo.config.patch(recompile_limit=1):
            sample(fast, prompts(3))
            torch.set_num_threads(n_threads + 1)  # a reason to compile again
            with pytest.warns(UserWarning, match="decodes uncompiled"):
                assert torch.equal(sample(fast, prompts(3)), want)
            assert torch.equal(sample(fast, prompts(3)), want)
    finally:
        torch.set_num_threads(n_threads)

    assert len(graphs) == 2


def test_a_warmup_tries_again_where_nothing_could_be_compiled(monkeypatch):
    def broken(graph, inputs):
        raise OSError("no compiler here")

    model = lively("GRU")
    with pytest.warns(UserWarning, match="decodes uncompiled"):
        decoding.warmup(tl.Accelerate(model, backend=broken), 2, 20)
    graphs, backend = counted()
    decoding.warmup(tl.Accelerate(model, backend=backend), 2, 20)

    assert len(graphs) == 1


def test_most_steps_go_by_the_program_alone(monkeypatch):
    """After two by torch's front door, which a stream takes always: its caller may do anything."""
    by_the_door = []
    model = lively("attention")
    fast = tl.Accelerate(model, backend="eager")
    note = compiled_step.Calls.note
    monkeypatch.setattr(
        compiled_step.Calls, "note", lambda self, x: (by_the_door.append(1), note(self, x))
    )
    sample(fast, prompts(3), max_length=20)
    assert len(by_the_door) == 2
    search(fast, prompts(3))
    assert len(by_the_door) == 4

    stream = decoding.autoregressive_sample_stream(fast, prompts(3), 2, max_length=20)
    assert len(list(stream)) == 20
    assert len(by_the_door) == 4 + 19


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


def test_a_source_may_be_as_long_as_any_other_axis():
    """As wide as the vectors are, say: no other program is made for it."""
    model = lively("encoder-decoder")
    graphs, backend = counted()
    fast = tl.Accelerate(model, backend=backend)
    decoding.warmup(fast, 2, 12, inputs=prompts(5))

    for n in (2, 4, 8, 9):
        found = sample(fast, prompts(n), max_length=12)
        assert torch.equal(found, sample(model, prompts(n), max_length=12))
    assert len(graphs) == 1


def test_threads_decode_from_models_of_their_own_and_from_one(monkeypatch):
    """On one model they take turns; nothing that is torch's own is left changed."""
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


def test_a_model_that_was_decoded_from_can_be_copied_and_kept():
    """Whose turn it is with it, is neither copied nor kept."""
    model = lively("GRU")
    want = sample(model, prompts(3))

    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(sample(twin, prompts(3)), want)
