"""What a newcomer to Trax tries first works with the import changed."""

import numpy as np
import pytest

import trax_torch as trax
from trax_torch import layers as tl
from trax_torch import shapes
from trax_torch.supervised import training


def reviews(seed):
    """Batches of made-up reviews: good ones say 2 to 9, bad ones 10 to 17; 0 pads."""
    rng = np.random.default_rng(seed)
    while True:
        labels = rng.integers(0, 2, 32)
        words = rng.integers(2, 10, (32, 20)) + 8 * labels[:, None]
        words[:, 15:] = 0
        yield words, labels, np.ones(32)


def test_a_sentiment_classifier_is_printed_trained_and_run(tmp_path, capsys):
    """Build, print, train with evals and checkpoints, and ask the model about one review."""
    model = tl.Serial(
        tl.Embedding(vocab_size=32, d_feature=16),
        tl.Mean(axis=1),
        tl.Dense(2),
    )
    print(model)
    assert capsys.readouterr().out == "Serial[\n  Embedding_32_16\n  Mean\n  Dense_2\n]\n"

    train_task = training.TrainTask(
        labeled_data=reviews(0),
        loss_layer=tl.WeightedCategoryCrossEntropy(),
        optimizer=trax.optimizers.Adam(0.01),
        n_steps_per_checkpoint=50,
    )
    eval_task = training.EvalTask(
        labeled_data=reviews(1),
        metrics=[tl.WeightedCategoryCrossEntropy(), tl.WeightedCategoryAccuracy()],
        n_eval_batches=4,
    )
    training_loop = training.Loop(
        model, train_task, eval_tasks=[eval_task], output_dir=str(tmp_path)
    )
    training_loop.run(100)

    assert training_loop.history.get("eval", "metrics/WeightedCategoryAccuracy")[-1] == (100, 1.0)
    example_input = next(reviews(2))[0][0]
    sentiment = model(example_input[None, :])
    assert isinstance(sentiment, np.ndarray)
    assert sentiment.shape == (1, 2)
    assert sentiment.argmax() == int(example_input[0] >= 10)


def test_layers_are_played_with_as_functions():
    """Activations, combinators, layers that need weights, and layers made of functions."""
    x = np.array([[-2, -1, 0, 1, 2], [-20, -10, 0, 10, 20]])
    assert tl.Relu()(x).tolist() == [[0, 0, 0, 1, 2], [0, 0, 0, 10, 20]]
    y = np.arange(10.0).reshape(2, 5)
    assert tl.Concatenate()([x.astype(float), y]).shape == (2, 10)

    norm = tl.LayerNorm()
    norm.init(shapes.signature(x))
    normed = norm(x)
    assert normed[0] == pytest.approx(normed[1], rel=1e-4)

    times_two = tl.Fn("Times_two", lambda x: x * 2)
    serial = tl.Serial(norm, tl.Relu(), times_two)
    serial.init(shapes.signature(x))
    assert str(serial) == "Serial[\n  LayerNorm\n  Relu\n  Times_two\n]"
    assert serial(x) == pytest.approx(2 * np.maximum(norm(x), 0))

    class Shift(tl.Layer):
        """Adds a trained vector."""

        def init_weights_and_state(self, input_signature):
            self.weights = np.ones(input_signature.shape[-1])

        def forward(self, inputs):
            return inputs + self.weights

    shift = Shift()
    shift.init(shapes.signature(y))
    assert shift(y).tolist() == (y + 1).tolist()


def test_a_transformer_takes_weights_from_a_file_and_translates(tmp_path):
    """Built in predict mode, filled from a file, and decoded, as the pretrained one was."""
    sizes = {"d_model": 16, "d_ff": 32, "n_heads": 2, "n_encoder_layers": 1, "n_decoder_layers": 1}
    trained = trax.models.Transformer(input_vocab_size=33, max_len=64, mode="train", **sizes)
    trained.init((shapes.ShapeDtype((1, 5), np.int32),) * 2)
    trained.save_to_file(str(tmp_path / "ende.safetensors"))

    model = trax.models.Transformer(input_vocab_size=33, max_len=64, mode="predict", **sizes)
    model.init_from_file(str(tmp_path / "ende.safetensors"), weights_only=True)
    tokenized = np.array([[5, 6, 7, 8]])
    translation = trax.supervised.decoding.autoregressive_sample(
        model, tokenized, temperature=0.0, max_length=6
    )

    assert translation.shape[0] == 1
    assert 1 <= translation.shape[1] <= 6
    again = trax.supervised.decoding.autoregressive_sample(
        trained, tokenized, temperature=0.0, max_length=6
    )
    assert translation.tolist() == again.tolist()
