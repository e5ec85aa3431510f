"""Recipes, and what else may stand for an optimizer."""

import copy
import functools

import pytest
import torch

from trax_torch import optimizers
from trax_torch.optimizers import base


@pytest.fixture
def params():
    return [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))]


@pytest.mark.parametrize(
    ("optimizer", "kind", "rate"),
    [
        (optimizers.RMSProp(0.2), torch.optim.Optimizer, 0.2),
        (optimizers.RMSProp, torch.optim.Optimizer, 0.001),
        (torch.optim.RMSprop, torch.optim.RMSprop, 0.01),
        (functools.partial(torch.optim.RMSprop, lr=0.3), torch.optim.RMSprop, 0.3),
    ],
)
def test_whatever_stands_for_an_optimizer_is_bound(params, optimizer, kind, rate):
    """A recipe, its class, a torch class, or a partial of one; over a generator too."""
    bound = base.bind(optimizer, (p for p in params))

    assert isinstance(bound, kind)
    assert bound.param_groups[0]["lr"] == rate
    assert [id(p) for p in bound.param_groups[0]["params"]] == [id(p) for p in params]


def test_a_bound_optimizer_stays_itself(params):
    """Also where it holds only some of the model's parameters."""
    bound = torch.optim.SGD(params[:1], lr=0.1)

    assert base.bind(bound, params) is bound


def test_an_optimizer_of_other_parameters_is_refused(params):
    bound = torch.optim.SGD([torch.nn.Parameter(torch.ones(7)), *params], lr=0.1)

    with pytest.raises(ValueError, match=r"holds 1 parameters .*of shape \(7,\)\. Make it of"):
        base.bind(bound, params)


@pytest.mark.parametrize("optimizer", [None, "Adam", 0.1, torch.nn.Linear, lambda params: params])
def test_what_is_no_optimizer_is_refused(params, optimizer):
    with pytest.raises(TypeError, match=r"a recipe such as optimizers.Adam\(0.001\).*; got "):
        base.bind(optimizer, params)


def test_a_recipe_without_a_rule_says_what_is_missing(params):
    with pytest.raises(TypeError, match=r"Optimizer has no rule; a recipe must override bind"):
        optimizers.Optimizer().bind(params)


def test_a_recipe_of_ones_own_needs_bind_alone(params):
    """And its numbers appear in its repr."""

    class Lion(optimizers.Optimizer):
        def bind(self, params):
            return torch.optim.SGD(list(params), lr=self.opt_params["learning_rate"])

    recipe = Lion(0.5, clip_grad_norm=2.0, beta=0.9)

    assert base.bind(recipe, params).param_groups[0]["lr"] == 0.5
    assert repr(recipe) == "Lion(learning_rate=0.5, beta=0.9, clip_grad_norm=2.0)"
    assert base.clip_norm_of(recipe) == 2.0
    with pytest.raises(ValueError, match=r"Lion takes a learning_rate in \[0, inf\); got -1"):
        Lion(-1)


def test_what_is_no_recipe_clips_nothing(params):
    assert base.clip_norm_of(torch.optim.SGD(params, lr=0.1)) is None
    assert base.clip_norm_of(torch.optim.SGD) is None


def test_recipes_are_equal_as_their_numbers_and_kinds_are():
    assert optimizers.Adam(0.1) == optimizers.Adam(0.1)
    assert optimizers.Adam(0.1) != optimizers.Adam(0.1, clip_grad_norm=1.0)
    assert optimizers.SGD(0.1) != optimizers.Optimizer(0.1)
    assert len({optimizers.Adam(0.1), optimizers.Adam(0.1), optimizers.Adam(0.2)}) == 2


def test_every_exported_name_is_there():
    assert all(hasattr(optimizers, name) for name in optimizers.__all__)


@pytest.mark.parametrize("recipe", [optimizers.Adam(0.1), optimizers.Momentum(0.1)])
def test_parameters_are_added_to_a_bound_optimizer(recipe):
    """Those that come later move as those that were there from the beginning."""
    early, late, other = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    bound, whole = recipe.bind([early]), recipe.bind([other])
    bound.add_param_group({"params": [late]})
    for p in (early, late, other):
        p.grad = torch.ones(2)

    bound.step()
    whole.step()

    assert torch.equal(late, other)
    assert torch.equal(early, other)
    grouped = recipe.bind([{"params": [torch.nn.Parameter(torch.ones(1))]}])
    assert len(grouped.param_groups) == 1


RECIPES = ("SGD", "Adam", "Momentum", "RMSProp", "Adafactor", "SM3")


@pytest.mark.parametrize("is_copied", [False, True])
@pytest.mark.parametrize("closures", [False, True])
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_bound_by_hand_clips(name, closures, is_copied):
    """As if the gradients had come clipped: 3, 4 as 0.6, 0.8. A copy does so, too."""
    found = []
    for limit, scale in ((1.0, 1.0), (None, 0.2)):
        p = torch.nn.Parameter(torch.tensor([1.0, -1.0], dtype=torch.float64))
        bound = getattr(optimizers, name)(0.1, clip_grad_norm=limit).bind([p])
        if is_copied:
            bound, p = copy.deepcopy((bound, p))
        for grad, times in ((torch.tensor([3.0, 4.0]), scale), (torch.tensor([0.1, 0.2]), 1.0)):

            def closure(p=p, grad=grad, times=times):
                p.grad = (grad * times).double()

            if closures:
                bound.step(closure)
            else:
                closure()
                bound.step()
        found.append(p.detach())
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-7)


def test_advice_against_steps_that_are_not_finite_fits_the_optimizer(params):
    assert "clip: clip_grad_norm=1.0" in base.advice_of(optimizers.Adam(0.1))
    assert "or clip_grad_norm=0.5" in base.advice_of(optimizers.Adam(0.1, clip_grad_norm=0.5))
    assert "or clip_grad_norm=2.0" in base.advice_of(optimizers.SGD(0.1, 2.0).bind(params))
    for foreign in (torch.optim.SGD(params, lr=0.1), functools.partial(torch.optim.SGD, lr=0.1)):
        assert "clip: Loop(clip_grad_norm=1.0)" in base.advice_of(foreign)
        assert "or clip_grad_norm=0.5" in base.advice_of(foreign, 0.5)
