"""Blocks that are alike are compiled once for all of them, and say what they say uncompiled."""

import logging
import shutil

import pytest
import torch
from compiled_decoding import VOCAB, around, counted, lively, prompts, sample, search

from trax_torch import layers as tl
from trax_torch import models
from trax_torch.layers._predict import blocks
from trax_torch.supervised import decoding
from trax_torch.supervised._generation import compiled_step

pytestmark = [
    pytest.mark.usefixtures("_compiler_afresh"),
    pytest.mark.skipif(
        blocks.compiled_once() is None, reason="this torch traces each of its blocks anew"
    ),
]


def feed_forward(d_ff=16):
    return tl.Residual(tl.LayerNorm(), tl.Dense(d_ff), tl.Relu(), tl.Dense(8))


MAKERS = {
    "attention": lambda: models.TransformerLM(VOCAB, 8, 16, 4, 2, 160),
    "GRU": lambda: around(*(layer for _ in range(3) for layer in (tl.GRU(8), feed_forward()))),
    "encoder-decoder": lambda: models.Transformer(VOCAB, None, 8, 8, 2, 2, 2, max_len=160),
    "blocks of blocks": lambda: around(
        *(tl.Residual(feed_forward(), feed_forward(), tl.CausalAttention(8, 2)) for _ in range(2))
    ),
    "unlike": lambda: around(feed_forward(), tl.CausalAttention(8, 2), feed_forward(12)),
}


def calls_of_blocks(graph):
    """How often a graph runs blocks, and how many different ones it has."""
    calls = [n for n in graph.graph.nodes if "invoke_subgraph" in str(n.target)]
    return len(calls), len({call.args[0].target for call in calls})


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("attention", (4, 1)),
        ("GRU", (3, 1)),
        # Attention to the target, and feed forward.
        pytest.param("encoder-decoder", (4, 2), marks=pytest.mark.slow),
        pytest.param("blocks of blocks", (2, 1), marks=pytest.mark.slow),
        ("unlike", (0, 0)),
    ],
)
def test_blocks_are_compiled_once_and_say_the_same(name, want):
    """One token after another, and in beams, whose caches the blocks write."""
    model = lively(name, makers=MAKERS)
    graphs, backend = counted()
    fast = tl.Accelerate(model, backend=backend)

    assert torch.equal(sample(fast, prompts(3)), sample(model, prompts(3)))
    found, scores = search(fast, prompts(3))
    tokens, want_scores = search(model, prompts(3))

    assert torch.equal(found, tokens)
    assert torch.allclose(scores, want_scores)
    assert [calls_of_blocks(graph) for graph in graphs] == [want, want]


def test_other_prompts_and_lengths_recompile_nothing():
    model = lively("attention", makers=MAKERS)
    graphs, backend = counted()
    fast = tl.Accelerate(model, backend=backend)
    decoding.warmup(fast, 2, 100, inputs=prompts(4))

    with torch.compiler.set_stance("fail_on_recompile"):
        for n in (2, 9):
            chosen = {"max_length": 60, "temperature": 1.0, "seed": n}
            found = sample(fast, prompts(n), **chosen)
            assert torch.equal(found, sample(model, prompts(n), **chosen))

    assert len(graphs) == 1


def test_weights_of_each_block_are_its_own():
    """Changed after a program was made, too."""
    model = lively("attention", makers=MAKERS)
    fast = tl.Accelerate(model, backend="eager")
    sample(fast, prompts(3))

    for i, p in enumerate(model.parameters()):
        p.data += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))

    assert torch.equal(sample(fast, prompts(3)), sample(model, prompts(3)))


def test_where_blocks_cannot_be_compiled_the_whole_is(caplog):
    caplog.set_level(logging.INFO, logger="trax_torch")

    def wholes_alone(graph, inputs):
        if calls_of_blocks(graph)[0]:
            raise NotImplementedError("no blocks")
        return graph.forward

    model = lively("attention", makers=MAKERS)
    fast = tl.Accelerate(model, backend=wholes_alone)

    found = sample(fast, prompts(3))  # a warning would be an error

    assert torch.equal(found, sample(model, prompts(3)))
    assert any("compiled as a whole" in message for message in caplog.messages)
    assert [step.is_made for step in compiled_step.steps_of(model).by_kind.values()] == [True]


def test_where_torch_traces_each_block_there_are_none(monkeypatch):
    blocks.compiled_once.cache_clear()
    try:
        monkeypatch.delattr(torch.compiler, "nested_compile_region")
        assert compiled_step.rows_of_blocks(lively("attention", makers=MAKERS)) == []
    finally:
        monkeypatch.undo()
        blocks.compiled_once.cache_clear()


def test_stretches_are_the_largest_part_of_a_row():
    a, b = (lambda: tl.Dense(3)), tl.LayerNorm
    other = [tl.Add(), tl.Dense(4)]
    row = tl.Serial(tl.Relu(), a(), b(), a(), b(), a(), b(), *other, a(), tl.Relu())
    row.init((torch.zeros(1, 3), torch.zeros(1, 3)), rng=0)

    found = [(i, j) for i, j, run in blocks.stretches(row.sublayers) if run is not None]

    # `Add` takes two, `Dense_4` and `Relu` have no like with weights; what comes last has 4 inputs.
    assert found == [(1, 3), (3, 5), (5, 7)]
    assert [i for i, _, _ in blocks.stretches(row.sublayers)] == [0, 1, 3, 5, 7, 8, 9, 10]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_inductor_compiles_blocks_to_the_same_tokens():
    model = lively("attention", makers=MAKERS)
    fast = tl.Accelerate(model)

    assert torch.equal(sample(fast, prompts(3)), sample(model, prompts(3)))
    assert compiled_step.steps_of(model).by_kind
    assert all(step._rows for step in compiled_step.steps_of(model).by_kind.values())
