"""An optimizer's step, with and without what torch puts around it."""

import pytest
import torch
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from trax_torch import _torch_private as private
from trax_torch._torch_private import steps


def test_an_optimizers_step_hooks_are_seen():
    """`torch.optim.Optimizer` keeps its hooks by other names."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    hooks = [lambda *a: None, lambda *a: None]
    optimizer.register_step_pre_hook(hooks[0])
    optimizer.register_step_post_hook(hooks[1])

    assert private.step_hooks(optimizer) == hooks


def one_weight(kind=torch.optim.AdamW, **settings):
    """An optimizer of a weight with a gradient, and the weight."""
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    weight.grad = torch.tensor([0.5, -0.25])
    return kind([weight], lr=0.1, **settings), weight


class OwnStep(torch.optim.SGD):
    """Has a step of its own, which torch puts its things around, too."""

    def step(self, closure=None):
        self.param_groups[0]["lr"] = 0.2
        return super().step(closure)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, OwnStep])
def test_a_step_without_what_is_around_it_is_the_same_step(kind):
    """`Optimizer.step` is wrapped otherwise, or computes otherwise without it."""
    (ours, a), (plain, b) = one_weight(kind), one_weight(kind)
    assert not steps.is_step_watched(ours)
    for _ in range(3):
        private.take_step(ours)
        plain.step()

    assert torch.equal(a, b)
    assert torch.is_grad_enabled()


def test_an_optimizers_step_is_one_that_is_known(monkeypatch):
    """`Optimizer.profile_hook_step` does not wrap steps any more: each takes some us longer."""
    optimizer, weight = one_weight()
    monkeypatch.setattr(steps, "is_step_watched", lambda optimizer: False)
    monkeypatch.setattr(optimizer, "step", lambda: pytest.fail("went by the front door"))

    private.take_step(optimizer)

    assert weight.tolist() != [1.0, 2.0]


def test_a_step_that_is_not_known_is_taken_by_the_front_door(monkeypatch):
    """Whatever stands there."""
    optimizer, _ = one_weight()
    taken = []
    monkeypatch.setattr(optimizer, "step", lambda: taken.append(1))
    monkeypatch.setattr(steps, "is_step_watched", lambda optimizer: False)
    for known in (None, one_weight.__code__):
        monkeypatch.setattr(steps, "_CODE_AROUND_STEP", known)
        private.take_step(optimizer)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: taken.append(2))
    private.take_step(optimizer)

    assert taken == [1, 1, 1]


def test_who_watches_an_optimizers_step_sees_it():
    """Hooks of one or all optimizers, a scheduler that counts steps, or a profiler is not seen."""
    seen = []
    for register in (
        lambda o: o.register_step_pre_hook(lambda *a: seen.append("pre")),
        lambda o: o.register_step_post_hook(lambda *a: seen.append("post")),
        lambda o: register_optimizer_step_pre_hook(lambda *a: seen.append("all, pre")),
        lambda o: register_optimizer_step_post_hook(lambda *a: seen.append("all, post")),
    ):
        optimizer, _ = one_weight()
        handle = register(optimizer)
        private.take_step(optimizer)
        handle.remove()
        private.take_step(optimizer)
    assert seen == ["pre", "post", "all, pre", "all, post"]

    optimizer, _ = one_weight()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    private.take_step(optimizer)
    scheduler.step()  # which warns if it saw no step

    optimizer, _ = one_weight()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        private.take_step(optimizer)
    assert "Optimizer.step#AdamW.step" in {event.name for event in profile.events()}


def test_steps_whose_hooks_are_elsewhere_are_taken_as_they_are(said):
    """Once it is said."""
    optimizer, _ = one_weight()
    del optimizer._optimizer_step_pre_hooks
    assert steps.is_step_watched(optimizer)
    assert steps.is_step_watched(optimizer)

    assert len(said()) == 1
    assert "each step looks for them itself" in said()[0]


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.SGD, torch.optim.AdamW])
def test_a_fused_optimizer_obeys_a_verdict_on_the_device(make):
    """Fused kernels no longer ask for `found_inf`: a bad step would change weights."""
    p = nn.Parameter(torch.ones(3))
    optimizer = make([p], lr=0.1, fused=True)
    p.grad = torch.ones(3)
    assert private.verdict_of(optimizer) is None

    private.set_verdict(optimizer, torch.tensor(1.0))
    optimizer.step()
    assert p.tolist() == [1, 1, 1]

    private.set_verdict(optimizer, torch.tensor(0.0))
    optimizer.step()
    assert (p < 1).all()
