"""Random numbers by key: the same on every machine, and those of JAX."""

import numpy as np
import pytest
import torch

from trax_torch import layers as tl
from trax_torch.fastmath import numpy as jnp
from trax_torch.fastmath import random

KEY = random.get_prng(0)


@pytest.mark.parametrize(
    ("ours", "jax"),
    [
        (random.split(KEY), [[4146024105, 967050713], [2718843009, 1272950319]]),
        (
            random.split(random.get_prng(7), 3),
            [[276534068, 861967409], [1905761346, 1641862660], [2900896126, 1402713516]],
        ),
        (random.get_prng(-1), [0, 4294967295]),
        (random.fold_in(KEY, 5), [1524306142, 1887795613]),
        (random.uniform(KEY, (3,)), [0.9653214, 0.31468165, 0.63302994]),
        (random.uniform(KEY), 0.41845703),
        (
            random.uniform(random.get_prng(5), (2, 2), minval=-1, maxval=3),
            [[2.3475742, -0.5018983], [0.66214895, 2.5517368]],
        ),
        (random.normal(KEY, (3,)), [1.8160863, -0.48262316, 0.33988908]),
        (random.bernoulli(KEY, 0.3, (6,)), [False, True, False, False, False, False]),
        (random.randint(KEY, (5,), -3, 10), [8, 8, -2, 1, 3]),
        (random.randint(random.get_prng(2), (), 0, 7), 3),
        (random.randint(KEY, (2,), 0, 2**31 - 1), [328783295, 1284935054]),
        (random.randint(KEY, (3,), -70000, 70000), [-38784, 52823, -18139]),
    ],
)
def test_a_key_gives_the_numbers_that_jax_gives(ours, jax):
    """Figures of jax 0.10.2 with jax_threefry_partitionable=False, which was Trax's only way."""
    np.testing.assert_allclose(ours, jax, rtol=1e-5)


def test_the_same_key_gives_the_same_numbers_and_its_children_others():
    one, other = random.split(KEY)

    assert (random.normal(one, (4,)) == random.normal(one, (4,))).all()
    assert (random.normal(one, (4,)) != random.normal(other, (4,))).all()


@pytest.mark.parametrize("of", [np.asarray, torch.as_tensor, lambda k: 0, lambda k: np.int64(0)])
def test_a_key_may_be_an_array_a_tensor_or_a_whole_number(of):
    assert (random.uniform(of(KEY), (3,)) == random.uniform(KEY, (3,))).all()


def test_a_generator_stands_for_a_new_key_at_each_draw():
    """Its state decides; a layer's rng is one."""

    def drawn():
        generator = torch.Generator().manual_seed(1)
        return random.uniform(generator, (2,)), random.uniform(generator, (2,))

    (one, other), (again, _) = drawn(), drawn()

    assert (one == again).all()
    assert (one != other).all()


@pytest.mark.parametrize(
    ("draw", "mean", "std"),
    [
        (lambda n: random.uniform(KEY, (n,), minval=-1.0, maxval=1.0), 0.0, 3**-0.5),
        (lambda n: random.normal(KEY, (n,)), 0.0, 1.0),
        (lambda n: random.bernoulli(KEY, 0.25, (n,)), 0.25, 0.4330),
        (lambda n: random.randint(KEY, (n,), 0, 10), 4.5, 2.8723),
    ],
)
def test_numbers_are_spread_as_their_name_says(draw, mean, std):
    """Within five standard errors."""
    n = 10_000
    x = np.asarray(draw(n), np.float64)

    assert abs(x.mean() - mean) < 5 * std / n**0.5
    assert abs(x.std() - std) < 0.05


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float64, torch.bfloat16, np.float32])
def test_floats_come_in_the_type_asked_for(dtype):
    assert random.uniform(KEY, (2,), dtype).dtype == jnp.zeros(1, dtype).dtype
    assert random.normal(KEY, 2, dtype=dtype).dtype == jnp.zeros(1, dtype).dtype


def test_probabilities_may_be_a_tensor():
    p = torch.tensor([0.0, 1.0])

    assert random.bernoulli(KEY, p).tolist() == [False, True]


def test_a_layer_draws_inside_and_gradients_go_past():
    """The numbers become a tensor where the layer's input is."""
    noisy = tl.Fn("Noise", lambda x: x + random.uniform(key=KEY, shape=x.shape))
    x = torch.zeros(2, 3, requires_grad=True)
    y = noisy(x)
    y.sum().backward()

    assert y.tolist() == random.uniform(KEY, (2, 3)).tolist()
    assert (x.grad == 1).all()


def test_numbers_are_drawn_in_a_compiled_graph():
    """All of it is one graph, with the same numbers."""
    key = np.asarray(KEY)

    def draw(x):
        one, other = random.split(key)
        y = x + random.uniform(one, x.shape) * random.bernoulli(other, 0.5, x.shape)
        return y + random.normal(random.fold_in(one, 3), (3,)) + random.randint(other, (3,), 0, 9)

    compiled = torch.compile(draw, backend="eager", fullgraph=True)

    torch.testing.assert_close(compiled(torch.ones(3)), draw(torch.ones(3)))


@pytest.mark.parametrize("seed", ["seven", KEY, [1, 2, 3]])
def test_a_key_is_made_of_one_number(seed):
    with pytest.raises(TypeError, match="A key is made of one whole number; got"):
        random.get_prng(seed)
