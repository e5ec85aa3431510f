"""Models with weights of 8 bits: decoding goes by all its laws, and the original stays."""

import shutil

import pytest
import ties
import torch
from rounded import VOCAB, prompts, sample, search

from trax_torch import layers as tl
from trax_torch import models
from trax_torch.supervised import decoding
from trax_torch.supervised._generation import int8

NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
MAKERS = {
    "attention": lambda: models.TransformerLM(VOCAB, 16, 32, 1, 2, 160, dropout=0.0),
    "encoder-decoder": lambda: models.Transformer(VOCAB, None, 16, 32, 1, 1, 2, 160, dropout=0.0),
    "GRU": lambda: tl.Serial(
        tl.ShiftRight(), tl.Embedding(VOCAB, 16), tl.GRU(16), tl.Dense(16), tl.Dense(VOCAB)
    ),
}


def lively(name, dtype=torch.float64):
    """A model whose rows differ, though nobody trained it."""
    model = MAKERS[name]()
    one = torch.ones(1, 2, dtype=torch.int64)
    model.init(one if model.n_in == 1 else (one, one), rng=4)
    for p in model.parameters():
        p.data *= 2
    return model.to(dtype)


def int8_layers(model):
    return [m for m in model.modules() if isinstance(m, int8.Int8Dense)]


@pytest.mark.parametrize("name", MAKERS)
def test_the_copy_says_nearly_what_the_model_says(name):
    model = lively(name).eval()
    tokens = prompts(30)
    small = decoding.quantize(model)

    with torch.no_grad():
        (found, *_), (want, *_) = (
            (m((tokens, tokens)) if model.n_in > 1 else (m(tokens),)) for m in (small, model)
        )

    assert len(int8_layers(small)) == sum(type(m) is tl.Dense for m in model.modules())
    assert not any(type(m) is tl.Dense for m in small.modules())
    assert 0 < (found - want).abs().max() < 0.15 * want.std()


@pytest.mark.parametrize("name", MAKERS)
def test_the_model_stays_as_it_is(name):
    """Nothing of the copy is the model's own, either."""
    model = lively(name)
    before = {key: t.clone() for key, t in model.state_dict().items()}
    want = sample(model, prompts())

    small = decoding.quantize(model)
    for t in (*small.parameters(), *small.buffers()):
        t.data.zero_()

    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())
    assert torch.equal(sample(model, prompts()), want)


@pytest.mark.parametrize("name", MAKERS)
def test_compiled_steps_give_the_tokens_of_uncompiled_ones(name):
    small = decoding.quantize(lively(name))

    assert torch.equal(
        sample(tl.Accelerate(small, backend="eager"), prompts()), sample(small, prompts())
    )


@pytest.mark.parametrize("name", MAKERS)
def test_compiled_steps_of_float32_choose_what_float64_does(name):
    """Sampled, and with beams; with few rows, which are computed as one loop, and with more.

    How many there are is the affair of each Dense alone: more for one kind of model.
    """
    small = decoding.quantize(lively(name, torch.float32))
    fast, wide = tl.Accelerate(small, backend="eager"), ties.in_float64(small)

    tokens, want = (sample(m, prompts()) for m in (fast, wide))
    ties.assert_same_tokens(tokens, want, wide, prompts(), temperature=0.5, seed=3)
    for batch in (2, 4) if name == "attention" else (2,):
        inputs = prompts(batch=batch)
        beams, want = (search(m, inputs) for m in (fast, wide))
        ties.assert_same_beams(beams, want, ties.bound_of_scores(wide, inputs, want[0]))


@pytest.mark.slow
@NEEDS_COMPILER
def test_inductor_gives_the_tokens_of_uncompiled_steps():
    small = decoding.quantize(lively("attention", torch.float32))
    fast, wide = tl.Accelerate(small), ties.in_float64(small)

    tokens, want = (sample(m, prompts()) for m in (fast, wide))
    ties.assert_same_tokens(tokens, want, wide, prompts(), temperature=0.5, seed=3)
    found, want = (search(m, prompts(5, 3)) for m in (fast, wide))
    ties.assert_same_beams(found, want, ties.bound_of_scores(wide, prompts(5, 3), want[0]))


@pytest.mark.parametrize("name", MAKERS)
def test_eval_mode_and_rows_alone_say_the_same(name):
    small = decoding.quantize(lively(name))
    want = sample(small, prompts(), seed=[5, 6])

    assert torch.equal(sample(small, prompts(), seed=[5, 6], eval_mode=True), want)
    for row in (0, 1):
        alone = sample(small, prompts()[row : row + 1], seed=[5 + row])
        assert torch.equal(alone, want[row : row + 1])


def test_a_prompt_goes_through_the_last_layer_with_its_last_position_alone(monkeypatch):
    small = decoding.quantize(lively("attention"))
    product, seen = int8.Int8Dense._product, []
    monkeypatch.setattr(
        int8.Int8Dense,
        "_product",
        lambda layer, x, scale: seen.append((layer, x.shape[1])) or product(layer, x, scale),
    )

    sample(small, prompts(9), max_length=1)

    assert [n for layer, n in seen if layer is small.sublayers[-1]] == [1]
    assert max(n for _, n in seen) == 10


def test_one_layer_in_two_places_stays_one():
    shared = tl.Dense(8)
    model = tl.Serial(tl.Embedding(VOCAB, 8), shared, tl.Relu(), shared)
    model.init(torch.ones(1, 2, dtype=torch.int64), rng=0)

    small = decoding.quantize(model)

    assert small.sublayers[1] is small.sublayers[3]
    assert len(int8_layers(small)) == 1


def test_a_model_built_to_predict_still_predicts():
    model = models.TransformerLM(VOCAB, 16, 32, 1, 2, 20, mode="predict")
    model.init(torch.ones(1, 1, dtype=torch.int64), rng=0)

    small = decoding.quantize(model)

    assert "predict" in {m.mode for m in small.sublayers}
    assert torch.allclose(small(prompts(1)), model(prompts(1)), atol=0.05)
    assert not torch.equal(small(prompts(1)), small(prompts(1)))  # it remembers


def test_layers_that_are_more_than_a_dense_keep_their_weights():
    class Mine(tl.Dense):
        pass

    hooked = tl.Dense(8)
    hooked.register_forward_hook(lambda module, args, output: None)
    model = tl.Serial(tl.Dense(8), Mine(8), hooked, tl.as_layer(torch.nn.Linear(8, 8)))
    model.init(torch.zeros(1, 8), rng=0)

    small = decoding.quantize(model)

    kept = [type(layer) for layer in small.sublayers]
    assert kept == [int8.Int8Dense, Mine, tl.Dense, type(model.sublayers[3])]


def test_a_model_without_dense_layers_is_refused():
    model = tl.Serial(tl.Embedding(VOCAB, 8), tl.as_layer(torch.nn.Linear(8, VOCAB)))
    model.init(torch.ones(1, 2, dtype=torch.int64), rng=0)

    with pytest.raises(ValueError, match="tl.Dense layers themselves, without hooks; Serial has"):
        decoding.quantize(model)
    with pytest.raises(ValueError, match="has no weights yet"):
        decoding.quantize(tl.Serial(tl.Dense(3)))


def test_a_model_saved_whole_is_loaded_into_a_copy_of_its_kind(tmp_path):
    small, other = (decoding.quantize(lively("attention")) for _ in range(2))
    for m in int8_layers(other):
        m.weight.zero_()

    small.save_to_file(tmp_path / "small")
    other.init_from_file(tmp_path / "small")

    assert torch.equal(sample(other, prompts()), sample(small, prompts()))
    small.float()
    n_bytes = sum(t.nbytes for m in int8_layers(small) for t in m.state_dict().values())
    n_floats = sum(m.weight.numel() for m in int8_layers(small))
    assert n_bytes < 1.6 * n_floats  # small matrices: scales and biases count
