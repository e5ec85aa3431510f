"""Bundles of parameters: how they are made shows in the time of a step alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trax_torch import optimizers
from trax_torch.optimizers import _foreach

RULES = [optimizers.RMSProp(), optimizers.Adafactor(), optimizers.SM3()]
every_rule = pytest.mark.parametrize("recipe", RULES, ids=lambda r: type(r).__name__)


def parameters(shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(dtype)
    return params


def kept(slots):
    return {k: v.dtype for k, v in slots.items() if isinstance(v, torch.Tensor)}


@every_rule
@settings(max_examples=10, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=4).map(tuple), min_size=1, max_size=8),
    limit=st.integers(1, 100),
)
def test_a_step_does_not_depend_on_the_bundles(recipe, shapes, limit):
    """All at once, one by one, or in between: the same weights, bit for bit."""
    together, apart = parameters(shapes), parameters(shapes)
    one, other = recipe.bind(together), recipe.bind(apart)
    for _ in range(2):
        one.step()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_foreach, "_ELEMENTS_ON_CPU", limit)
            other.step()

    assert all(torch.equal(p, q) for p, q in zip(together, apart, strict=True))


def test_a_bundle_is_of_one_kind_and_within_the_limit(monkeypatch):
    """Unless one parameter alone is beyond it; each comes once."""
    monkeypatch.setattr(_foreach, "_ELEMENTS_ON_CPU", 10)
    params = [
        *parameters([(4,), (3,), (2, 2), (4,), (30,), (3,), (7,)]),
        *parameters([(4,)], torch.bfloat16),
    ]
    bound = optimizers.SM3().bind(params)

    bundles = [[tuple(p.shape) for p, *_ in b] for b in bound._bundles(params)]

    assert sorted(map(sorted, bundles)) == [
        [(2, 2)],
        [(3,), (4,)],
        [(3,), (7,)],
        [(4,)],
        [(4,)],
        [(30,)],
    ]


@every_rule
def test_weights_of_half_precision_are_rounded_once(recipe):
    """A step is that of float32 copies, rounded to bfloat16."""
    low = parameters([(3,), (4, 5)], torch.bfloat16)
    high = [torch.nn.Parameter(p.detach().float()) for p in low]
    for p, q in zip(low, high, strict=True):
        q.grad = p.grad.float()

    recipe.bind(low).step()
    recipe.bind(high).step()

    assert all(torch.equal(p, q.bfloat16()) for p, q in zip(low, high, strict=True))


def test_loading_keeps_the_slots_and_their_types():
    """Also where a slot is wider or narrower than its weight, and the saved one of another type."""
    recipe = optimizers.Adafactor(do_momentum=True, momentum_in_bfloat16=True)
    params = parameters([(2, 3)], torch.float16)
    bound, other = recipe.bind(params), recipe.bind(params)
    slots, types = bound.state[params[0]], kept(bound.state[params[0]])
    assert set(types.values()) == {torch.float32, torch.bfloat16}
    other.step()

    state_dict = other.state_dict()
    state_dict["state"][0]["v_row"] = state_dict["state"][0]["v_row"].double()
    bound.load_state_dict(state_dict)

    assert bound.state[params[0]] is slots
    assert kept(slots) == types
    assert slots["step"] == 1
    other.step()
    assert slots["step"] == 1  # nothing is shared with what was loaded
    assert not torch.equal(slots["v_row"], other.state[params[0]]["v_row"])


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (
            optimizers.Adafactor(factored=False),
            "keeps the slots .*v_row.* but the state_dict holds",
        ),
        (optimizers.SGD(), "but the state_dict holds {}. Bind the recipe"),
    ],
)
def test_slots_of_another_recipe_are_refused(saved, message):
    """And nothing has changed."""
    params = parameters([(4,), (2, 3)])
    bound, source = optimizers.Adafactor().bind(params), saved.bind(params)
    source.step()

    with pytest.raises(ValueError, match=message):
        bound.load_state_dict(source.state_dict())
    assert not bound.state[params[0]]["v"].any()
    assert bound.param_groups[0]["lr"] == 0.05


@every_rule
def test_other_parameters_are_refused(recipe):
    few, many = parameters([(4,)]), parameters([(4,), (2, 3)])
    bound = recipe.bind(few)

    with pytest.raises(ValueError, match="doesn't match the size"):
        bound.load_state_dict(recipe.bind(many).state_dict())
    assert set(bound.state) == set(few)


@every_rule
def test_parameters_added_later_have_slots_and_numbers_of_their_own(recipe):
    first, second = parameters([(2, 3)]), parameters([(2, 3)])
    bound = recipe.bind(first)

    bound.add_param_group({"params": second, "lr": 0.0})
    start = second[0].detach().clone()
    bound.step()

    assert bound.state[second[0]].keys() == bound.state[first[0]].keys()
    torch.testing.assert_close(second[0].detach(), start, rtol=1e-4, atol=0)
    assert not torch.equal(first[0], start)


@every_rule
def test_a_sparse_gradient_is_refused(recipe):
    table = torch.nn.Embedding(4, 2, sparse=True)
    bound = recipe.bind(table.parameters())
    table(torch.tensor([1])).sum().backward()

    with pytest.raises(TypeError, match=r"takes dense gradients; a parameter of shape \(4, 2\)"):
        bound.step()
