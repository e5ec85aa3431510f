"""Rules on torch's fused kernels: Momentum and Adam."""

import pytest
import torch

from trax_torch.optimizers import SGD, Adam, Momentum


def parameter():
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    p.grad = torch.tensor([0.5, 0.25])
    return p


def test_decay_does_not_enter_the_velocity():
    """As torch's own weight_decay would."""
    p = parameter()
    bound = Momentum(0.1, weight_decay_rate=0.5).bind([p])

    bound.step()

    assert torch.equal(bound.state[p]["momentum_buffer"], p.grad)


def test_without_mass_and_decay_it_is_sgd():
    """And there is no velocity to keep."""
    p, q = parameter(), parameter()
    bound, sgd = Momentum(0.1, mass=0, weight_decay_rate=0).bind([p]), SGD(0.1).bind([q])
    for _ in range(3):
        bound.step()
        sgd.step()

    assert torch.equal(p, q)
    assert not bound.state


@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize("kind", [SGD, Momentum, Adam])
def test_a_step_found_bad_on_the_device_changes_nothing(kind, rate):
    """Neither gradient nor decay moves a weight, and the slots stay."""
    kwargs = {} if kind is SGD else {"weight_decay_rate": 0.5}
    p = parameter()
    bound = kind(rate, **kwargs).bind([p])
    bound.found_inf = torch.tensor(1.0)
    bound.step()

    assert p.tolist() == [1.0, -2.0]
    assert not any(bound.state[p][k].any() for k in bound.state[p] if k != "step")

    bound.found_inf = torch.tensor(0.0)
    bound.step()

    assert (p.tolist() == [1.0, -2.0]) == (kind is SGD and rate == 0)


@pytest.mark.parametrize("kind", [Momentum, Adam])
def test_a_closure_is_called_before_the_decay(kind):
    """Its gradient is that of the weights as they were, and decay reaches them at rate 0."""
    p = torch.nn.Parameter(torch.tensor([4.0]))
    bound = kind(0.0, weight_decay_rate=0.5).bind([p])

    def closure():
        bound.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert bound.step(closure).item() == 16.0
    assert p.grad.item() == 8.0
    assert p.item() == 2.0
