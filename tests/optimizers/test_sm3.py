"""What SM3 promises beyond the contract."""

import pytest
import torch

from trax_torch.optimizers import SM3
from trax_torch.optimizers.sm3 import MomentumType


def parameter(*shape):
    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(shape, generator=generator))
    p.grad = torch.randn(shape, generator=generator)
    return p


def test_memory_is_one_number_per_index_of_each_axis():
    """And one more slot of the weight's size for momentum."""
    p = parameter(2, 3, 4)

    slots = SM3().bind([p]).state[p]

    assert {k: tuple(v.shape) for k, v in slots.items()} == {
        "m": (2, 3, 4),
        "v1_0": (2,),
        "v1_1": (3,),
        "v1_2": (4,),
    }
    assert list(SM3(momentum=0).bind([p]).state[p]) == ["v1_0", "v1_1", "v1_2"]
    assert list(SM3(0.1, 0.9, 0.5).bind([p]).state[p])[4:] == ["v2_0", "v2_1", "v2_2"]


@pytest.mark.parametrize("averaging", [1.0, 0.5, 0.0])
def test_a_scalar_moves_as_a_vector_of_one(averaging):
    """Trax fails on it."""
    p, q = parameter(), parameter(1)
    one = SM3(second_moment_averaging=averaging).bind([p])
    other = SM3(second_moment_averaging=averaging).bind([q])
    for _ in range(3):
        one.step()
        other.step()

    assert p.item() == q.item()


def test_a_vector_moves_as_under_adagrad():
    """With one axis there is nothing to share."""
    p, q = parameter(6), parameter(6)
    bound, adagrad = SM3(0.1, momentum=0).bind([p]), torch.optim.Adagrad([q], lr=0.1, eps=1e-16)
    for _ in range(5):
        bound.step()
        adagrad.step()

    torch.testing.assert_close(p, q)


def test_moments_bound_the_sum_of_squares():
    """Each axis' number is at least every sum of squares that it stands for."""
    p = parameter(4, 5)
    bound = SM3().bind([p])
    total = torch.zeros(4, 5)
    for i in range(5):
        p.grad = torch.randn(4, 5, generator=torch.Generator().manual_seed(i))
        total += p.grad**2
        bound.step()
        slots = bound.state[p]

        shared = torch.minimum(slots["v1_0"].unsqueeze(1), slots["v1_1"].unsqueeze(0))
        assert (shared >= total * (1 - 1e-5)).all()


def test_a_graft_gives_the_norm_of_the_sum():
    """With averaging, a step has the direction of the average and the length of the sum."""
    recipe, plain = SM3(0.1, 0.0, second_moment_averaging=0.5), SM3(0.1, 0.0)
    p, q = parameter(4, 5), parameter(4, 5)
    bound, other = recipe.bind([p]), plain.bind([q])
    for i in range(4):
        before = p.detach().clone(), q.detach().clone()
        p.grad = torch.randn(4, 5, generator=torch.Generator().manual_seed(i))
        q.grad = p.grad.clone()
        bound.step()
        other.step()
        steps = p.detach() - before[0], q.detach() - before[1]

        torch.testing.assert_close(steps[0].norm(), steps[1].norm(), rtol=1e-4, atol=0)
    assert not torch.allclose(*steps)


def test_zero_gradients_give_zero_steps():
    for shape in ((), (5,), (4, 3)):
        p = parameter(*shape)
        start = p.detach().clone()
        p.grad.zero_()

        SM3(second_moment_averaging=0.5).bind([p]).step()

        assert torch.equal(p, start)


def test_a_momentum_type_has_a_name_and_a_number():
    """They are equal, as recipes are that use them."""
    assert [t.name for t in MomentumType] == ["EMA", "HEAVY_BALL", "NESTEROV"]
    assert SM3(momentum_type=MomentumType.NESTEROV) == SM3(momentum_type=3)


@pytest.mark.parametrize("value", [0, 4, "EMA", None])
def test_another_momentum_type_is_refused(value):
    message = "is one of EMA = 1, HEAVY_BALL = 2, NESTEROV = 3; got .*. The default is EMA"
    with pytest.raises(ValueError, match=message):
        SM3(momentum_type=value)
