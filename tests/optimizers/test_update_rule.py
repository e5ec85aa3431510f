"""Rules that are written as Trax's are: init and update, for one weight."""

import numpy as np
import pytest
import torch
from toys import assert_resumes, line_loop, train_task

from trax_torch import optimizers


class Heavy(optimizers.Optimizer):
    """Momentum, with its slots in a nest, and a count of its own."""

    def __init__(self, learning_rate=0.01, mass=0.9, clip_grad_norm=None):
        super().__init__(learning_rate, clip_grad_norm, mass=mass)

    def init(self, weights):
        return {"v": (torch.zeros_like(weights), None), "n": [0]}

    def update(self, step, grads, weights, slots, opt_params):
        (v, nothing), (n,) = slots["v"], slots["n"]
        assert nothing is None
        assert int(n) == step - 1
        v = opt_params["mass"] * v + grads
        new = weights - opt_params["learning_rate"] * v
        return new, {"v": (v, None), "n": [n + 1]}


class Sign(optimizers.Optimizer):
    """Without slots."""

    def init(self, weights):
        return None

    def update(self, step, grads, weights, slots, opt_params):
        assert slots is None
        return weights - opt_params["learning_rate"] * torch.sign(grads), slots


def classical(**kwargs):
    return optimizers.Momentum(0.01, weight_decay_rate=0.0, nesterov=False, **kwargs)


def stepped(recipe, dtype=torch.float64, n=4):
    generator = torch.Generator().manual_seed(0)
    params = [
        torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        for shape in [(), (3,), (2, 3), (3,)]
    ]
    bound = recipe.bind(params)
    for _ in range(n):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(dtype)
        bound.step()
    return params, bound


@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_rule_of_ones_own_steps_as_written(clip):
    """Heavy is our Momentum without decay; clipped alike."""
    mine, _ = stepped(Heavy(0.01, clip_grad_norm=clip))
    ours, _ = stepped(classical(clip_grad_norm=clip))

    for p, q in zip(mine, ours, strict=True):
        assert torch.allclose(p, q, rtol=1e-12, atol=0)


def test_half_precision_is_rounded_once_a_step():
    """The rule gets float32, as those that ship do."""
    mine, _ = stepped(Heavy(0.01), torch.bfloat16)
    ours, _ = stepped(classical(), torch.bfloat16)

    for p, q in zip(mine, ours, strict=True):
        assert p.dtype == torch.bfloat16
        assert torch.allclose(p.float(), q.float(), rtol=2**-7)


def test_a_state_is_saved_and_loaded():
    """All slots, by name; a step counter too."""
    params, bound = stepped(Heavy())

    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = Heavy().bind(twins)
    other.load_state_dict(bound.state_dict())

    assert other.state[twins[2]].keys() == {"step", "slot.v.0", "slot.n.0"}
    for p, q in zip(params, twins, strict=True):
        assert torch.equal(bound.state[p]["slot.v.0"], other.state[q]["slot.v.0"])
        p.grad = q.grad = torch.ones_like(p)
    bound.step()
    other.step()
    assert all(map(torch.equal, params, twins))


@pytest.mark.parametrize("recipe", [Heavy, Heavy(0.02), Sign(0.01)])
def test_a_run_resumes_bit_for_bit(tmp_path, recipe):
    """Under a schedule, which sets the rate of each step."""

    def make(folder):
        return line_loop(folder, task=train_task(optimizer=recipe, lr_schedule=lambda s: 0.1 / s))

    resumed, _ = assert_resumes(make, tmp_path, 3, 4)

    assert resumed.step == 7


def test_a_run_learns():
    loop = line_loop(task=train_task(optimizer=Heavy(0.05)))
    loop.run(60)

    values = [value for _, value in loop.history.get("eval", "metrics/L2Loss")]
    assert values[-1] < 0.1 * values[0]


def test_it_trains_block_by_block():
    """Each weight goes by itself, so blocks may be updated one after another."""

    def weights(**settings):
        loop = line_loop(task=train_task(optimizer=Heavy(0.05)), **settings)
        loop.run(5)
        return [p.detach() for p in loop.model.parameters()]

    for p, q in zip(weights(), weights(use_memory_efficient_trainer=True), strict=True):
        assert torch.allclose(p, q, rtol=1e-5, atol=1e-7)


def test_numpy_slots_are_tensors_from_then_on():
    """np.zeros_like(weights) of a program is no mistake."""

    class Counts(Sign):
        def init(self, weights):
            return np.zeros(tuple(weights.shape), np.float32)

        def update(self, step, grads, weights, slots, opt_params):
            assert isinstance(slots, torch.Tensor)
            return weights * 1.0, slots + 1

    _, bound = stepped(Counts(), torch.float32)

    assert all(bool((state["slot."] == 4).all()) for state in bound.state.values())


def test_an_update_overridden_in_a_rule_that_ships_counts():
    """Its parent's kernels know nothing of it."""

    class HalfAdam(optimizers.Adam):
        def update(self, step, grads, weights, slots, opt_params):
            new, slots = super().update(step, grads, weights, slots, opt_params)
            return (new + weights) / 2, slots

    whole, _ = stepped(optimizers.Adam(0.01, weight_decay_rate=0.0), n=1)
    half, _ = stepped(HalfAdam(0.01, weight_decay_rate=0.0), n=1)
    start, _ = stepped(optimizers.SGD(0.0), n=1)

    for w, h, s in zip(whole, half, start, strict=True):
        assert torch.allclose(h, (w + s) / 2, rtol=1e-12)
    several, _ = stepped(HalfAdam(0.01))
    assert all(torch.isfinite(p).all() for p in several)


def test_a_rule_without_its_slots_says_what_is_missing():
    class Lonely(optimizers.Optimizer):
        def update(self, step, grads, weights, slots, opt_params):
            return weights, None

    with pytest.raises(TypeError, match=r"Lonely has no rule; .* or init\(weights\) and update\("):
        Lonely().bind([torch.nn.Parameter(torch.ones(2))])


@pytest.mark.parametrize(
    ("returned", "error", "said"),
    [
        (lambda w, s: w, TypeError, r"Wrong.update returns \(new weights, new slots\); got Tensor"),
        (lambda w, s: (w.sum(), s), ValueError, r"\(3,\) and \[\(3,\)\]; got \(\) and \[\(3,\)\]"),
        (lambda w, s: (w, None), ValueError, r"got \(3,\) and \[\]"),
        (lambda w, s: (w, (s, s)), ValueError, r"got \(3,\) and \[\(3,\), \(3,\)\]"),
    ],
)
def test_what_update_returns_must_fit(returned, error, said):
    class Wrong(optimizers.Optimizer):
        def init(self, weights):
            return torch.zeros_like(weights)

        def update(self, step, grads, weights, slots, opt_params):
            return returned(weights, slots)

    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    with pytest.raises(error, match=said):
        Wrong().bind([p]).step()
    assert p.tolist() == [1.0] * 3
