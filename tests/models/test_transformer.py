"""Transformers: what they may see, what they remember, and whose weights fit them."""

import copy
import pickle

import figures
import numpy as np
import pytest
import torch

from trax_torch import layers as tl
from trax_torch import models, shapes

SIZES = {"d_model": 16, "d_ff": 24, "n_heads": 2, "max_len": 32}
SOURCE = np.array([[5, 3, 9, 2, 7, 0, 0], [1, 8, 4, 4, 0, 0, 0]])
TARGET = np.array([[2, 6, 1, 9, 3], [7, 7, 5, 2, 10]])


def transformer(mode="eval", **kwargs):
    model = models.Transformer(
        11, n_encoder_layers=2, n_decoder_layers=2, mode=mode, **SIZES, **kwargs
    )
    model.init(shapes.signature((SOURCE, TARGET)), rng=1)
    return model


def golden_transformer(mode):
    """The model whose weights the figures hold."""
    model = models.Transformer(**{**figures.case("model_Transformer")["kwargs"], "mode": mode})
    model.init(shapes.signature((SOURCE, TARGET)), rng=0)
    figures.set_flat_weights(model, figures.parts("model_Transformer", "w"))
    return model


def greedily(model, source, n):
    """Returns n symbols, each the likeliest after those before, from the start symbol 0 on."""
    symbol, found = np.zeros((len(source), 1), dtype=np.int32), []
    for _ in range(n):
        logits, _ = model((source, symbol))
        symbol = logits[:, -1:].argmax(axis=-1)
        found.append(symbol)
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize("how", ["built to predict", "predicting for a while"])
def test_transformer_decodes_the_tokens_of_trax(how):
    """Greedy decoding, step by step, chooses Trax's tokens."""
    source = figures.part("decode_Transformer", "inputs")
    want = figures.part("decode_Transformer", "greedy")

    if how == "built to predict":
        found = greedily(golden_transformer("predict"), source, want.shape[1])
    else:
        with golden_transformer("train").predict(1, want.shape[1]) as model:
            found = greedily(model, source, want.shape[1])

    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("lengths", [[1, 1, 1, 1, 1], [3, 1, 1], [2, 3], [5]])
@pytest.mark.parametrize("how", ["built to predict", "predicting for a while"])
def test_transformer_predicts_what_it_computes_in_eval_mode(how, lengths):
    """Eval equals predict, in calls of any lengths, for a source longer than the memory."""
    model = transformer()
    want, _ = model((SOURCE, TARGET))
    shifted = np.pad(TARGET, ((0, 0), (1, 0)))[:, :-1]
    ends = np.cumsum(lengths)
    calls = [shifted[:, end - n : end] for n, end in zip(lengths, ends, strict=True)]

    if how == "built to predict":
        model = transformer("predict")
        model.weights = transformer().weights
        found = [model((SOURCE, call))[0] for call in calls]
    else:
        with model.predict(batch_size=2, max_length=5):
            found = [model((SOURCE, call))[0] for call in calls]

    np.testing.assert_allclose(np.concatenate(found, axis=1), want, rtol=1e-4, atol=1e-5)


def test_transformer_reads_the_source_once_while_it_predicts():
    model = transformer()
    calls = []
    embedding = next(m for m in model.modules() if isinstance(m, tl.Embedding))
    embedding.register_forward_hook(lambda layer, x, y: calls.append(x[0].shape[1]))

    with model.predict(2, 5):
        greedily(model, SOURCE, 3)

    assert calls == [7, 1, 1, 1]  # the shared embedding: the source, then a token a step


def test_transformer_starts_afresh_when_its_cache_is_reset():
    model = transformer("predict")
    other = SOURCE[::-1].copy()
    first = greedily(model, SOURCE, 4)
    for layer in model.modules():
        if isinstance(layer, tl.Layer):
            layer.reset_cache()

    greedily(model, other, 4)
    for layer in model.modules():
        if isinstance(layer, tl.Layer):
            layer.reset_cache()

    np.testing.assert_array_equal(greedily(model, SOURCE, 4), first)


def test_transformer_shows_each_row_its_own_beam_when_the_cache_is_reordered():
    """Reordering by parents equals having decoded those rows all along."""
    model = transformer()
    tokens = [np.array([[2], [6]]), np.array([[5], [1]]), np.array([[4], [4]])]
    with model.predict(2, 3):
        for symbol in tokens[:2]:
            model((SOURCE, symbol))
        for layer in model.modules():
            if isinstance(layer, tl.Layer):
                layer.reorder_cache(torch.tensor([1, 1]))
        found, _ = model((SOURCE[[1, 1]], tokens[2]))

    with model.predict(2, 3):
        for symbol in tokens[:2]:
            model((SOURCE[[1, 1]], symbol[[1, 1]]))
        want, _ = model((SOURCE[[1, 1]], tokens[2]))

    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["train", "eval", "predict"])
def test_transformer_has_the_flat_weights_of_trax_in_every_mode(mode):
    model = golden_transformer(mode)

    want = figures.parts("model_Transformer", "w")
    got = figures.flat_weights(model)
    assert [w.shape for w in got] == [w.shape for w in want]
    assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))


def test_transformer_shares_one_embedding_unless_the_target_has_a_vocabulary():
    shared, apart = transformer(), transformer(output_vocab_size=13)

    assert sum(isinstance(m, tl.Embedding) for m in shared.modules()) == 1
    assert sum(isinstance(m, tl.Embedding) for m in apart.modules()) == 2
    assert apart((SOURCE, TARGET))[0].shape == (2, 5, 13)


def test_transformer_gives_the_target_back_for_the_loss():
    logits, targets = transformer()((SOURCE, TARGET))

    assert logits.shape == (2, 5, 11)
    np.testing.assert_array_equal(targets, TARGET)


def test_transformer_does_not_see_the_padding_of_the_source():
    model = transformer()
    longer = np.pad(SOURCE, ((0, 0), (0, 3)))

    np.testing.assert_allclose(
        model((longer, TARGET))[0], model((SOURCE, TARGET))[0], rtol=1e-4, atol=1e-5
    )


def test_transformer_does_not_see_the_target_from_a_position_on():
    model = transformer()
    other = TARGET.copy()
    other[:, 2:] = 1

    np.testing.assert_allclose(
        model((SOURCE, other))[0][:, :3], model((SOURCE, TARGET))[0][:, :3], rtol=1e-5, atol=1e-6
    )


def test_transformer_takes_a_source_that_is_all_padding():
    logits, _ = transformer()((np.zeros_like(SOURCE), TARGET))

    assert np.isfinite(logits).all()


def test_transformer_drops_values_in_train_mode_alone():
    model = transformer("train", dropout=0.5)
    first, _ = model((SOURCE, TARGET), rng=1)

    assert not np.array_equal(first, model((SOURCE, TARGET), rng=2)[0])
    model.eval()
    assert np.array_equal(model((SOURCE, TARGET))[0], model((SOURCE, TARGET))[0])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_transformer_copies_and_pickles_with_its_shared_embedding(copied):
    model = transformer()
    twin = copied(model)

    assert sum(isinstance(m, tl.Embedding) for m in twin.modules()) == 1
    np.testing.assert_array_equal(twin((SOURCE, TARGET))[0], model((SOURCE, TARGET))[0])


def test_transformer_compiles_without_a_break_and_every_weight_gets_a_gradient():
    torch.compiler.reset()  # counts no recompilation of other tests
    model = transformer("train", dropout=0.0)
    inputs = torch.from_numpy(SOURCE), torch.from_numpy(TARGET)

    logits, _ = torch.compile(model, backend="eager", fullgraph=True)(inputs)
    logits.square().sum().backward()

    np.testing.assert_allclose(logits.detach(), model(inputs)[0].detach(), rtol=1e-5, atol=1e-6)
    assert all(p.grad is not None for p in model.parameters())


def test_encoder_gives_each_class_an_activation():
    model = models.TransformerEncoder(11, n_classes=5, n_layers=2, mode="eval", **SIZES)
    model.init(shapes.signature(SOURCE), rng=1)

    assert model(SOURCE).shape == (2, 5)


def test_encoder_reads_each_sequence_from_its_start_also_in_predict_mode():
    """Predict mode is eval mode: nothing is remembered, and no length is filled."""
    model = models.TransformerEncoder(11, n_layers=1, mode="train", **SIZES)
    model.init(shapes.signature(SOURCE), rng=1)
    with model.predict(2, 5):
        first, second = model(SOURCE), model(SOURCE)

    model.eval()
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, model(SOURCE))


@pytest.mark.parametrize("vocab_size", [11, None])
def test_decoder_predicts_what_it_computes_in_eval_mode(vocab_size):
    """Positions go on from call to call, which they do not in Trax."""
    x = TARGET if vocab_size else np.random.default_rng(0).normal(size=(2, 5, 3)).astype("float32")
    model = models.TransformerDecoder(vocab_size, n_layers=2, mode="eval", **SIZES)
    model.init(shapes.signature(x), rng=1)
    want = model(x)

    with model.predict(2, 5):
        found = [model(x[:, :2]), model(x[:, 2:3]), model(x[:, 3:])]

    assert want.shape == (2, 5, 16)
    np.testing.assert_allclose(np.concatenate(found, axis=1), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "maker", [models.TransformerEncoder, models.TransformerDecoder, models.Transformer]
)
def test_transformers_refuse_heads_that_do_not_divide_the_vectors(maker):
    with pytest.raises(ValueError, match="d_feature=16 and n_heads=3"):
        maker(11, d_model=16, n_heads=3)


@pytest.mark.parametrize(
    "maker", [models.TransformerEncoder, models.TransformerDecoder, models.Transformer]
)
def test_transformers_refuse_a_mode_that_is_none(maker):
    with pytest.raises(ValueError, match="got 'test'"):
        maker(11, d_model=16, n_heads=2, mode="test")
