"""Compiled decoding has one program for a kind of calls, and makes it only where it pays."""

import copy
import logging
import pickle
import warnings

import pytest
import torch
from compiled_decoding import MAKERS, VOCAB, counted, lively, prompts, sample, search

from trax_torch import layers as tl
from trax_torch.layers._predict import kv_cache
from trax_torch.supervised import decoding
from trax_torch.supervised._generation import compiled_step

pytestmark = pytest.mark.usefixtures("_compiler_afresh")


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


def test_models_do_not_share_programs():
    """Many models can be compiled, though torch keeps few programs for a function."""
    graphs, backend = counted()
    with torch._dynamo.config.patch(recompile_limit=1):
        for seed in range(3):
            model = lively("GRU", seed)
            found = sample(tl.Accelerate(model, backend=backend), prompts(2), max_length=4)

            assert torch.equal(found, sample(model, prompts(2), max_length=4))
    assert len(graphs) == 3


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
    """However far a call may go: they grow with it, up to the model's own room."""
    lengths = []
    for name in ("reserve", "grow"):
        do = getattr(kv_cache.KVCache, name)
        monkeypatch.setattr(
            kv_cache.KVCache, name, lambda cache, n, do=do: (lengths.append(n), do(cache, n))
        )
    model = lively("attention")

    with pytest.raises(tl.LayerError, match="has room for 160 positions"):
        search(model, prompts(3), max_length=10_000)

    assert set(lengths) == {256, 4 + 3 * 156}


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


def test_a_model_that_was_decoded_from_can_be_copied_and_kept():
    """Whose turn it is with it, is neither copied nor kept."""
    model = lively("GRU")
    want = sample(model, prompts(3))

    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(sample(twin, prompts(3)), want)
