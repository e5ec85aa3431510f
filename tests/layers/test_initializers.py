"""First values of weights: their distributions, and files of them."""

import pickle

import numpy as np
import pytest
import torch

from trax_torch import layers as tl


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


SHAPE = (3, 3, 64, 96)  # a kernel's: window, inputs, outputs


@pytest.mark.parametrize(
    ("make", "variance"),
    [
        (tl.GlorotNormalInitializer, 2 / (9 * (64 + 96))),
        (tl.GlorotUniformInitializer, 2 / (9 * (64 + 96))),
        (tl.LeCunNormalInitializer, 1 / (9 * 64)),
        (tl.LeCunUniformInitializer, 1 / (9 * 64)),
        (tl.KaimingNormalInitializer, 2 / (9 * 64)),
        (tl.KaimingUniformInitializer, 2 / (9 * 64)),
        (lambda: tl.KaimingNormalInitializer(param=3.0), 2 / 10**0.5 / (9 * 64)),
        (lambda: tl.KaimingUniformInitializer(param=3.0), 2 / 10**0.5 / (9 * 64)),
        (lambda: tl.LeCunNormalInitializer(out_dim=-2, in_dim=-1, scale=4.0), 4 / (9 * 96)),
        (lambda: tl.ScaledInitializer(-1, -2, 3.0, "fan_out", "normal"), 3 / (9 * 96)),
        (lambda: tl.ScaledInitializer(-1, -2, 1.0, "fan_in", "truncated_normal"), 1 / (9 * 64)),
        (lambda: tl.RandomNormalInitializer(0.5), 0.25),
        (lambda: tl.RandomUniformInitializer(0.3), 0.03),
    ],
)
def test_values_have_mean_0_and_the_promised_variance(make, variance):
    values = make()(SHAPE, rng())

    assert values.shape == SHAPE
    assert values.dtype == torch.float32
    assert abs(values.mean()) < 0.01 * variance**0.5
    assert abs(values.var() / variance - 1) < 0.02


@pytest.mark.parametrize(
    ("make", "bound"),
    [
        (tl.GlorotUniformInitializer, (6 / (9 * 160)) ** 0.5),
        (tl.LeCunUniformInitializer, (3 / (9 * 64)) ** 0.5),
        (tl.KaimingUniformInitializer, (6 / (9 * 64)) ** 0.5),
        (lambda: tl.RandomUniformInitializer(0.3), 0.3),
        (
            lambda: tl.ScaledInitializer(-1, -2, 1.0, "fan_in", "truncated_normal"),
            2 / 24 / 0.8796256,
        ),
        (lambda: tl.AtariConvInit, 1 / 24),
    ],
)
def test_bounded_distributions_fill_their_bounds(make, bound):
    values = make()(SHAPE, rng()).abs()

    assert 0.99 * bound < values.max() <= bound * (1 + 1e-6)


def test_axes_can_be_left_out_of_the_window():
    values = tl.LeCunNormalInitializer()(SHAPE, rng(), nonreceptive_dims=(0,))

    assert abs(values.var() * 3 * 64 - 1) < 0.02


def test_a_vectors_length_counts_as_inputs_and_outputs():
    values = tl.GlorotNormalInitializer()((4000,), rng())

    assert abs(values.var() * 4000 - 1) < 0.1
    assert tl.GlorotNormalInitializer()((0, 3), rng()).shape == (0, 3)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (2, 3, 4), (4,), (3, 3)])
def test_orthogonal_matrices_have_orthonormal_rows_or_columns(shape):
    values = tl.OrthogonalInitializer(stddev=2.0)(shape, rng())

    matrix = values.reshape(-1, shape[-1]) / 2
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.t()
    torch.testing.assert_close(short @ short.t(), torch.eye(len(short)), atol=1e-5, rtol=0)
    assert values.shape == shape


def test_orthogonal_matrices_are_spread_evenly():
    """The signs of a QR factorization are not; they are made so."""
    draw = tl.OrthogonalInitializer()
    generator = rng()

    corners = torch.stack([draw((2, 2), generator)[0, 0] for _ in range(400)])

    assert 150 < (corners > 0).sum() < 250


@pytest.mark.parametrize(
    "make",
    [tl.GlorotNormalInitializer, tl.OrthogonalInitializer, lambda: tl.AtariConvInit],
)
def test_a_seed_decides_the_values(make):
    initializer = pickle.loads(pickle.dumps(make()))

    assert torch.equal(initializer((2, 2, 3, 4), rng(1)), make()((2, 2, 3, 4), rng(1)))
    assert not torch.equal(initializer((2, 2, 3, 4), rng(1)), make()((2, 2, 3, 4), rng(2)))


def test_weights_come_from_a_file(tmp_path):
    path = tmp_path / "table.npy"
    table = np.arange(12.0).reshape(4, 3)
    np.save(path, table)
    layer = tl.Embedding(4, 3, kernel_initializer=tl.InitializerFromFile(str(path)))

    weights, _ = layer.init(np.zeros((1, 2), np.int32))

    assert weights.tolist() == table.tolist()
    assert weights.dtype == torch.float32


def test_files_of_another_shape_or_kind_are_refused(tmp_path):
    path, archive, objects = (str(tmp_path / n) for n in ("a.npy", "b.npz", "c.npy"))
    np.save(path, np.zeros((4, 2)))
    np.savez(archive, x=np.zeros((4, 3)))
    np.save(objects, np.array([{"run": "me"}], dtype=object))

    with pytest.raises(ValueError, match=r"shape \(4, 3\) are needed, but .*holds \(4, 2\)"):
        tl.InitializerFromFile(path)((4, 3), rng())
    with pytest.raises(ValueError, match=r"holds several arrays\. Give a \.npy file"):
        tl.InitializerFromFile(archive)((4, 3), rng())
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        tl.InitializerFromFile(objects)((1,), rng())
    with pytest.raises(FileNotFoundError):
        tl.InitializerFromFile(str(tmp_path / "none.npy"))((1,), rng())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: tl.LeCunNormalInitializer(scale=0.0), "scale is a variance, so above 0; got 0.0"),
        (lambda: tl.ScaledInitializer(-1, -2, 1.0, "fan", "normal"), "mode is 'fan_in'.*got 'fan'"),
        (
            lambda: tl.ScaledInitializer(-1, -2, 1.0, "fan_in", "cauchy"),
            "distribution.*got 'cauchy'",
        ),
        (lambda: tl.AtariConvInit((3, 4), rng()), r"inputs, outputs\); got a shape \(3, 4\)"),
    ],
)
def test_initializers_refuse_settings_that_make_no_sense(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "make",
    [
        tl.GlorotUniformInitializer,
        tl.RandomNormalInitializer,
        tl.OrthogonalInitializer,
        tl.RandomUniformInitializer,
    ],
)
def test_a_seed_or_a_key_stands_for_a_generator(make):
    """One seed gives the same values each time, another others; Trax's programs have keys."""
    key = np.array([0, 42], np.uint32)

    assert torch.equal(make()((3, 4), 7), make()((3, 4), rng(7)))
    assert torch.equal(make()((3, 4), key), make()((3, 4), key))
    assert not torch.equal(make()((3, 4), key), make()((3, 4), key + 1))


def test_layers_are_initialized_by_a_key():
    layers = [tl.Dense(2) for _ in range(3)]
    for layer, last in zip(layers, (42, 42, 43), strict=True):
        layer.init(torch.zeros(1, 3), rng=np.array([0, last], np.uint32))

    first, same, other = (layer.weights[0] for layer in layers)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
