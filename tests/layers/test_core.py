"""Core layers: weights, random numbers, local connections, summaries, and functions of tensors."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch

from trax_torch import layers as tl
from trax_torch import shapes

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 4)).astype(np.float32)


@pytest.fixture(autouse=True)
def _afresh():
    """Draws the same numbers whatever ran before, and counts no recompilation of other tests."""
    torch.manual_seed(0)
    torch.compiler.reset()


# Functions of one tensor.


@pytest.mark.parametrize(
    ("layer", "formula"),
    [
        (tl.Max(), lambda x: x.max(axis=-1)),
        (tl.Max(axis=(0, 1), keepdims=True), lambda x: x.max(axis=(0, 1), keepdims=True)),
        (tl.Max(axis=None), lambda x: x.max()),
        (tl.Min(), lambda x: x.min(axis=-1)),
        (tl.Min(axis=0, keepdims=True), lambda x: x.min(axis=0, keepdims=True)),
        (tl.Min(axis=None), lambda x: x.min()),
        (tl.ArgMax(axis=1), lambda x: x.argmax(axis=1)),
        (tl.ArgMax(axis=None), lambda x: x.argmax()),
        (tl.Negate(), lambda x: -x),
        (tl.StopGradient(), lambda x: x),
        (tl.LogSumExp(), lambda x: np.log(np.exp(x).sum(axis=-1, keepdims=True))),
        (tl.LogSumExp(axis=0), lambda x: np.log(np.exp(x).sum(axis=0, keepdims=True))),
    ],
    ids=lambda case: case.name if isinstance(case, tl.Layer) else "",
)
def test_a_function_layer_follows_its_formula(layer, formula):
    np.testing.assert_allclose(layer(X), formula(X), rtol=1e-5)


def test_max_takes_integers_and_shares_the_gradient_among_equals():
    x = torch.tensor([1.0, 3.0, 3.0], requires_grad=True)

    tl.Max()(x).backward()

    assert tl.Max()(np.array([1, 5, 2])) == 5
    assert x.grad.tolist() == [0, 0.5, 0.5]


def test_stop_gradient_passes_no_gradient_back():
    x = torch.ones(3, requires_grad=True)

    assert not tl.StopGradient()(x).requires_grad


def test_arg_max_takes_the_first_of_equals():
    assert tl.ArgMax()(np.array([0, 2, 2, 1])) == 1


def test_to_float_gives_float32():
    assert tl.ToFloat()(np.array([1, 2])).dtype == np.float32
    assert tl.ToFloat()(torch.ones(2, dtype=torch.float64)).dtype == torch.float32


def test_threshold_to_binary_gives_1_above_the_threshold_alone():
    y = tl.ThresholdToBinary()(np.array([0.3, 0.49, 0.5, 0.51, 0.7]))

    assert y.dtype == np.int32
    assert y.tolist() == [0, 0, 0, 1, 1]


# Layers without inputs.


def test_weights_are_drawn_by_their_initializer_and_trained():
    layer = tl.Weights(tl.RandomNormalInitializer(), (2, 3))
    weights, _ = layer.init(())

    layer().sum().backward()

    assert torch.equal(layer(), weights)
    assert torch.equal(layer.weight.grad, torch.ones(2, 3))
    assert str(layer) == "Weights_(2, 3)_in0"


@pytest.mark.parametrize("signature", [(), None])
def test_weights_need_no_input_signature(signature):
    layer = tl.Weights(lambda shape, rng: np.full(shape, 7, dtype=np.float32), use_bfloat16=True)
    layer.init(signature)

    assert layer().item() == 7
    assert layer().dtype == torch.bfloat16


def test_weights_feed_the_data_stack():
    model = tl.Serial(tl.Weights(tl.RandomNormalInitializer(1.0), (3,)), tl.Add())
    model.init(shapes.ShapeDtype((2, 3)), rng=0)

    np.testing.assert_allclose(model(np.zeros((2, 3))), [model.weights[0].tolist()] * 2)


def test_random_uniform_draws_between_its_bounds_anew_at_each_call():
    layer = tl.RandomUniform(1.0, 3.0, shape=(10_000,))

    x = layer()

    assert 1 <= x.min() < 1.01
    assert 2.99 < x.max() < 3
    assert not torch.equal(x, layer())
    assert torch.equal(layer((), rng=5), layer((), rng=5))
    assert str(layer) == "RandomUniform_in0"


def test_random_uniform_has_no_state_and_follows_the_model_to_a_device():
    layer = tl.RandomUniform(shape=(2,), dtype=np.float16)

    assert layer.state == ()
    assert not layer.state_dict()
    assert layer().dtype == torch.float16
    assert layer.to("meta")().device.type == "meta"


def test_random_uniform_refuses_to_agree_across_devices():
    with pytest.raises(ValueError, match=r"got sync=True. Build it without"):
        tl.RandomUniform(sync=True)


def test_random_uniform_refuses_integers():
    with pytest.raises(TypeError, match="draws floats; got dtype="):
        tl.RandomUniform(dtype=np.int32)


# Local connections.


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("padding", ["VALID", "SAME", "WRAP"])
def test_locally_connected_sums_over_each_window_with_its_own_weights(kernel_size, padding):
    """Position p gives window o its product with w[p, k], k the place in the window Trax counts."""
    x, reach = RNG.normal(size=(2, 6, 3)).astype(np.float32), kernel_size // 2
    layer = tl.LocallyConnected1d(
        4, kernel_size, padding=padding, bias_initializer=tl.RandomNormalInitializer(1.0)
    )
    layer.init(shapes.signature(x), rng=0)
    w, b = (t.detach().numpy() for t in layer.weights)
    want = np.zeros((2, len(b), 4)) + b
    for o in range(len(b)):
        for k in range(kernel_size):
            p = o + kernel_size - 1 - k if padding == "VALID" else o - reach + k
            if padding == "WRAP" or 0 <= p < 6:
                want[:, o] += x[:, p % 6] @ w[p % 6, k]

    np.testing.assert_allclose(layer(x), want, rtol=1e-4, atol=1e-5)
    assert w.shape == (6, kernel_size, 3, 4)
    assert len(b) == (6 - 2 * reach if padding == "VALID" else 6)


def test_locally_connected_takes_integers_and_leaves_out_the_bias():
    layer = tl.LocallyConnected1d(6, 3, use_bias=False)
    x = np.array([[0, 1], [2, 3], [4, 5]])
    weights, _ = layer.init(shapes.signature(x))

    assert weights.shape == (3, 3, 2, 6)
    assert layer(x).shape == (1, 6)


def test_locally_connected_refuses_a_sequence_of_another_length():
    layer = tl.LocallyConnected1d(6, 3)
    layer.init(shapes.ShapeDtype((2, 5, 4)))

    with pytest.raises(tl.LayerError, match="sequences of 5 positions; got 7"):
        layer(np.ones((2, 7, 4)))


def test_locally_connected_refuses_a_window_longer_than_the_sequence():
    with pytest.raises(tl.LayerError, match=r"window of 5 positions does not fit in .* of 3"):
        tl.LocallyConnected1d(6, 5).init(shapes.ShapeDtype((2, 3, 4)))


def test_locally_connected_refuses_an_even_window():
    with pytest.raises(ValueError, match=r"odd number of positions.*kernel_size=2"):
        tl.LocallyConnected1d(6, 2)


def test_locally_connected_refuses_a_padding_that_is_none():
    with pytest.raises(ValueError, match="'VALID', 'SAME' or 'WRAP'; got 'same'"):
        tl.LocallyConnected1d(6, 3, padding="same")


# Looking at what passes.


def test_print_shape_prints_shapes_and_types_and_passes_all_on(capsys):
    layer = tl.PrintShape(n_in=2, msg="here")

    x, y = layer((X, np.array([1])))

    assert capsys.readouterr().out == "PrintShape: here: [(2, 3, 4)[float32], (1,)[int64]]\n"
    np.testing.assert_array_equal(x, X)
    assert y.tolist() == [1]
    assert str(layer) == "PrintShape_2_in2_out2"


def test_print_shape_is_silent_in_compiled_code(capsys):
    compiled = torch.compile(tl.PrintShape(), backend="eager", fullgraph=True)

    compiled(torch.ones(2))

    assert capsys.readouterr().out == ""


def test_summary_scalar_keeps_its_last_value_and_passes_its_input_on():
    layer = tl.SummaryScalar("test")
    x = torch.tensor([[3.0, 5.0], [2.0, 6.0]], requires_grad=True)
    assert layer.last_summary[1] == 0

    y = layer(x)

    assert y is x
    assert layer.last_summary[0] == "summary_test"
    assert layer.last_summary[1] == 4
    assert not layer.last_summary[1].requires_grad
    assert layer.state["summary_test"] == 4
    assert layer(np.array([1, 2])).tolist() == [1, 2]
    assert layer.last_summary[1] == 1.5
    assert str(layer) == "summary_test"


def test_summary_scalar_takes_another_aggregation_and_refuses_one_that_keeps_an_axis():
    layer = tl.SummaryScalar("largest", torch.max)
    layer(torch.tensor([1.0, 7.0]))
    assert layer.last_summary[1] == 7

    with pytest.raises(tl.LayerError, match=r"shows one number.*shape \(2, 3\)"):
        tl.SummaryScalar("rows", lambda x: x.sum(dim=-1))(X)


def test_a_summary_is_state_that_can_be_set_and_no_part_of_a_checkpoint():
    layer = tl.Serial(tl.SummaryScalar("a"), tl.SummaryImage("b", 1))
    layer(torch.ones(2, 3, 3, 1))
    twin = tl.Serial(tl.SummaryScalar("a"), tl.SummaryImage("b", 1))

    twin.state = layer.state

    assert twin.sublayers[0].last_summary[1] == 1
    assert twin.sublayers[1].last_summary[1].shape == (2, 3, 3, 1)
    assert not twin.state_dict()


def test_a_summary_changes_in_a_pure_call_for_its_result_alone():
    layer = tl.SummaryScalar("a")

    _, new_state = layer.pure_fn(torch.tensor([2.0]), layer.weights, layer.state)

    assert new_state["summary_a"] == 2
    assert layer.last_summary[1] == 0


def test_summary_image_keeps_the_first_images_one_below_the_other():
    layer = tl.SummaryImage("test", 2, num_summaries=3, recover_fn=lambda image: image / 2)
    x, y = torch.rand(5, 4, 6, 3), torch.rand(5, 4, 6, 3)
    assert len(layer.last_summary[1]) == 0

    outputs = layer((x, y))

    tag, images = layer.last_summary
    assert outputs[0] is x
    assert outputs[1] is y
    assert tag == "summary_test"
    assert images.shape == (3, 8, 6, 3)
    torch.testing.assert_close(images[2], torch.cat([x[2], y[2]]) / 2)
    assert str(layer) == "summary_test_in2_out2"


def test_summary_image_takes_one_batch():
    layer = tl.SummaryImage("test", 1)

    layer(torch.rand(2, 4, 6, 3))

    assert layer.last_summary[1].shape == (2, 4, 6, 3)


def test_a_summary_follows_compiled_code():
    layer = tl.Serial(tl.SummaryScalar("a"), tl.SummaryImage("b", 1))

    torch.compile(layer, backend="eager", fullgraph=True)(torch.full((2, 3, 3, 1), 5.0))

    assert layer.sublayers[0].last_summary[1] == 5
    assert layer.sublayers[1].last_summary[1].shape == (2, 3, 3, 1)


# Functions of probabilities.


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, np.float16])
def test_one_hot_marks_the_place_of_each_item(dtype):
    y = tl.one_hot(np.array([[2, 0], [1, 7]]), 3, dtype)

    assert y.tolist() == [[[0, 0, 1], [1, 0, 0]], [[0, 1, 0], [0, 0, 0]]]
    assert str(y.dtype) in str(dtype)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: tl.log_softmax(x),
        lambda x: tl.one_hot(x.argmax(-1), 4),
        lambda x: tl.log_gaussian_diag_pdf(x, mu=0 * x, diag_sigma=1 + x * x),
        lambda x: tl.logsoftmax_sample(x, temperature=0.0),
    ],
)
def test_functions_answer_arrays_with_arrays_and_tensors_with_tensors(call):
    array, tensor = call(X), call(torch.from_numpy(X))

    assert isinstance(array, np.ndarray)
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_allclose(array, tensor.numpy(), rtol=1e-6)


def test_gaussian_densities_are_those_of_torch():
    x, mu = torch.randn(2, 5), torch.randn(2, 5)
    variances = torch.rand(2, 5) + 0.5
    full = torch.randn(2, 5, 5)
    full = full @ full.transpose(-1, -2) + torch.eye(5)
    diagonal = torch.distributions.MultivariateNormal(mu, torch.diag_embed(variances))
    general = torch.distributions.MultivariateNormal(mu, full)

    torch.testing.assert_close(tl.log_gaussian_diag_pdf(x, mu, variances), diagonal.log_prob(x))
    torch.testing.assert_close(tl.log_gaussian_pdf(x, mu, full), general.log_prob(x))


def test_multigaussian_loss_is_the_density_of_the_mixture():
    logits, means, deviations = torch.randn(4, 3), torch.randn(4, 3, 2), torch.rand(4, 3, 2) + 0.5
    targets = torch.randn(4, 2)
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=logits),
        torch.distributions.Independent(
            torch.distributions.Normal(means, (deviations**2 + 1e-6).sqrt()), 1
        ),
    )
    preds = torch.cat([logits, means.flatten(1), deviations.flatten(1)], dim=1)

    torch.testing.assert_close(
        tl.multigaussian_loss(preds, targets, ngauss=3), mixture.log_prob(targets)
    )


def test_multigaussian_loss_refuses_predictions_of_another_size():
    with pytest.raises(ValueError, match=r"takes 15 numbers.*got 14.*have 15 units"):
        tl.multigaussian_loss(torch.zeros(4, 14), torch.zeros(4, 2), ngauss=3)


# Draws.


def test_a_draw_at_temperature_0_is_the_argmax_and_draws_nothing():
    before = torch.get_rng_state()

    drawn = tl.logsoftmax_sample(torch.tensor([[1.0, 3.0, 3.0], [5.0, -1.0, 0.0]]), 0.0)

    assert drawn.tolist() == [1, 0]
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_have_the_probabilities_at_that_temperature(temperature):
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    n = 100_000

    generator = torch.Generator().manual_seed(0)
    drawn = tl.logsoftmax_sample(logits.expand(n, 4), temperature, generator=generator)

    shares = drawn.bincount(minlength=4) / n
    want = (logits / temperature).softmax(dim=0)
    assert (shares - want).abs().max() < 4 * math.sqrt(0.25 / n)


@pytest.mark.parametrize("temperature", [1.0, 1e30])
def test_a_masked_category_is_never_drawn(temperature):
    logits = torch.tensor([-math.inf, 0.0, -math.inf, -50.0]).expand(10_000, 4)

    drawn = tl.logsoftmax_sample(logits, temperature)

    assert set(drawn.tolist()) <= {1, 3}


def test_a_generator_decides_the_draws():
    logits = torch.zeros(100, 10)
    one, same, other = (
        tl.logsoftmax_sample(logits, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )

    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_noise_is_float32_for_logits_in_half_precision():
    """Draws from bfloat16 logits are those from the same logits in float32."""
    logits = torch.zeros(1000, 16)
    half, single = (
        tl.logsoftmax_sample(x, generator=torch.Generator().manual_seed(0))
        for x in (logits.bfloat16(), logits)
    )

    assert torch.equal(half, single)


@pytest.mark.parametrize("temperature", [-0.1, math.nan])
def test_a_temperature_below_0_is_refused(temperature):
    with pytest.raises(ValueError, match=f"at least 0 .*; got {temperature}"):
        tl.logsoftmax_sample(torch.zeros(2, 3), temperature)


# What all of them obey.


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (tl.Weights(tl.RandomNormalInitializer(), (2, 3)), ()),
        (tl.LocallyConnected1d(4, 3, padding="SAME"), torch.from_numpy(X)),
        (tl.SummaryImage("a", 1), torch.ones(2, 3, 3, 1)),
        (tl.Max(axis=None), torch.from_numpy(X)),
        (tl.PrintShape(msg="a"), torch.from_numpy(X)),
    ],
    ids=lambda case: case.name if isinstance(case, tl.Layer) else "",
)
def test_a_layer_copies_and_pickles(layer, x):
    layer.init(shapes.signature(x))
    want = layer(x)

    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(twin(x), want)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("sizes", [(6, 8), (8, 6)])
def test_dense_predicts_what_it_gives_in_eval_mode_for_any_number_of_rows(sizes, use_bias):
    """A few rows are multiplied the other way round, and nobody sees it."""
    dense = tl.Dense(sizes[1], use_bias=use_bias)
    dense.init(torch.zeros(1, sizes[0]), rng=0)
    with torch.no_grad(), dense.predict():
        for batch in range(10):
            for n in (1, 2):
                x = torch.randn(batch, n, sizes[0])
                y = dense(x)

                assert y.shape == (batch, n, sizes[1])
                want = torch.nn.functional.linear(x, dense.weight, dense.bias)
                assert torch.allclose(y, want, atol=1e-5)
