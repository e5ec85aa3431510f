"""Laws that every optimizer keeps: one row each in `ROWS`, and a new one adds a row."""

import copy
import dataclasses
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trax_torch import optimizers
from trax_torch.optimizers import SGD, SM3, Adafactor, Adam, Momentum, RMSProp, Trainer


@dataclasses.dataclass(frozen=True)
class Row:
    """A recipe, and what the laws must know of it.

    Args:
      recipe: the optimizer.
      rate: a learning rate that minimises a quadratic within 200 steps.
      keeps: the share of a weight that a step at rate 0 leaves.
    """

    recipe: optimizers.Optimizer
    rate: float = 0.1
    keeps: float = 1.0


ROWS = {
    "SGD": Row(SGD()),
    "Momentum": Row(Momentum(), keeps=1 - 1e-5),
    "Momentum classical": Row(Momentum(weight_decay_rate=0, nesterov=False)),
    "Momentum without mass": Row(Momentum(mass=0, weight_decay_rate=1e-4), keeps=1 - 1e-4),
    "RMSProp": Row(RMSProp()),
    "Adam": Row(Adam(weight_decay_rate=1e-4), keeps=1 - 1e-4),
    "Adafactor": Row(Adafactor(weight_decay_rate=1e-4), keeps=1 - 1e-4),
    "Adafactor full": Row(Adafactor(factored=False, weight_decay_rate=0)),
    "Adafactor momentum": Row(Adafactor(do_momentum=True, beta1=0.9), keeps=1 - 1e-5),
    "Adafactor bfloat16": Row(
        Adafactor(do_momentum=True, beta1=0.5, momentum_in_bfloat16=True, weight_decay_rate=0)
    ),
    "Adafactor absolute": Row(Adafactor(multiply_by_parameter_scale=False, weight_decay_rate=0)),
    "Adafactor unclipped": Row(
        Adafactor(multiply_by_parameter_scale=False, do_clipping=False, weight_decay_rate=0)
    ),
    "SM3": Row(SM3(), rate=0.5),
    "SM3 without momentum": Row(SM3(momentum=0), rate=0.5),
    "SM3 heavy ball": Row(SM3(momentum_type=2, weight_decay=0.001)),
    "SM3 Nesterov": Row(SM3(momentum_type=3)),
    "SM3 grafted": Row(SM3(second_moment_averaging=0.9), rate=0.5),
}
SHAPES = [(), (1,), (5,), (5,), (4, 6), (6, 1), (2, 3, 4), (2, 1, 3, 2), (0, 3)]

every_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())


def weights(dtype=torch.float32, seed=0, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def take_step(bound, params, i, rate=None):
    """Takes the i-th step along gradients that i alone decides."""
    generator = torch.Generator().manual_seed(1000 + i)
    for p in params:
        # In the weight's memory layout, as autograd has it: torch's fused kernels rely on that.
        p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator))
    for group in bound.param_groups:
        group["lr"] = 0.01 / (i + 1) if rate is None else rate
    bound.step()


def slots_of(bound, params):
    """Copies of every slot, flat, by place and name."""
    return {
        (i, name): torch.as_tensor(slot).clone()
        for i, p in enumerate(params)
        for name, slot in bound.state[p].items()
    }


def assert_same(one, other):
    """Asserts that (bound, params) pairs are equal in weights and slots, bit for bit."""
    assert all(torch.equal(p, q) for p, q in zip(one[1], other[1], strict=True))
    mine, theirs = slots_of(*one), slots_of(*other)
    assert mine.keys() == theirs.keys()
    assert all(mine[k].dtype == theirs[k].dtype for k in mine)
    assert [k for k in mine if not torch.equal(mine[k], theirs[k])] == []


@every_row
@settings(max_examples=5, deadline=None)
@given(
    before=st.integers(0, 4),
    after=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_saving_and_loading_changes_nothing(row, before, after, dtype):
    """k steps, a file, fresh parameters and slots, n steps: the same as k + n steps."""
    straight = weights(dtype)
    bound = row.recipe.bind(straight)
    for i in range(before):
        take_step(bound, straight, i)
    torch.save((straight, bound.state_dict()), file := io.BytesIO())
    for i in range(before, before + after):
        take_step(bound, straight, i)

    file.seek(0)
    saved, state_dict = torch.load(file, weights_only=True)
    resumed = [torch.nn.Parameter(p.detach()) for p in saved]
    fresh = row.recipe.bind(resumed)
    fresh.load_state_dict(state_dict)
    for i in range(before, before + after):
        take_step(fresh, resumed, i)

    assert_same((bound, straight), (fresh, resumed))


@every_row
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_goes_on_as_the_original(row, copied):
    """deepcopy and pickle carry slots and numbers, and share nothing with the original."""
    params = weights()
    bound = row.recipe.bind(params)
    take_step(bound, params, 0)

    twin = copied(bound)
    twins = twin.param_groups[0]["params"]
    take_step(bound, params, 1)
    take_step(twin, twins, 1)

    assert_same((bound, params), (twin, twins))


@every_row
def test_one_recipe_serves_two_models(row):
    """Bound twice, it makes the same steps, and neither knows of the other."""
    first, second = weights(), weights()
    one = row.recipe.bind(first)
    take_step(one, first, 0)
    before = [p.detach().clone() for p in first]

    other = row.recipe.bind(p for p in second)
    take_step(other, second, 0)

    assert all(torch.equal(p, q) for p, q in zip(first, before, strict=True))
    assert_same((one, first), (other, second))


class Given(torch.nn.Module):
    """A loss whose gradients are the batch."""

    def __init__(self, params):
        super().__init__()
        self.params = torch.nn.ParameterList(params)

    def forward(self, grads):
        return sum((p * g).sum() for p, g in zip(self.params, grads, strict=True))


@every_row
@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_clipping_limits_the_global_norm(row, limit):
    """The gradients used are those given, scaled to the limit where their norm reaches it."""
    recipe = type(row.recipe)(**{**row.recipe.opt_params, "clip_grad_norm": limit})
    clipped, by_hand = weights(), weights()
    trainer = Trainer(Given(clipped), recipe)
    bound = recipe.bind(by_hand)
    for i in range(3):
        generator = torch.Generator().manual_seed(i)
        grads = [torch.randn(p.shape, generator=generator) for p in clipped]

        _, stats = trainer.one_step(grads)
        norm = stats["gradients_l2"]
        for p, g in zip(by_hand, grads, strict=True):
            p.grad = g * (limit / norm) if norm >= limit else g
        bound.step()

        used = torch.cat([p.grad.flatten() for p in clipped]).norm()
        assert used <= limit * (1 + 1e-5)
        assert torch.allclose(used, torch.tensor(min(limit, norm)), rtol=1e-5)
        assert all(torch.equal(p, q) for p, q in zip(clipped, by_hand, strict=True))


@every_row
def test_bfloat16_parameters_train(row):
    """The loss falls, weights stay bfloat16, and nothing becomes NaN."""
    torch.manual_seed(0)
    x = torch.randn(64, 3, dtype=torch.bfloat16)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.bfloat16)
    model = torch.nn.Linear(3, 1, dtype=torch.bfloat16)
    bound = row.recipe.bind(model.parameters())
    losses = []
    for _ in range(60):
        for group in bound.param_groups:
            group["lr"] = row.rate / 2
        loss = (model(x) - y).square().mean()
        bound.zero_grad()
        loss.backward()
        bound.step()
        losses.append(loss.item())

    assert losses[-1] < 0.5 * losses[0]
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(p.isfinite().all() for p in model.parameters())


@every_row
def test_a_rate_of_0_changes_nothing_but_decay(row):
    """And the decay is there whatever the rate, where the rule has it so."""
    params, start = weights(), weights()
    bound = row.recipe.bind(params)
    for i in range(3):
        take_step(bound, params, i, rate=0.0)

    for p, q in zip(params, start, strict=True):
        torch.testing.assert_close(p.detach(), row.keeps**3 * q.detach(), rtol=1e-6, atol=0)
    if row.keeps == 1:
        assert all(torch.equal(p, q) for p, q in zip(params, start, strict=True))


@every_row
def test_a_quadratic_is_minimised(row):
    """From afar to the least value, for a scalar, a vector, a matrix and a cube at once."""
    shapes = [(), (5,), (4, 6), (2, 3, 4)]
    params, targets = weights(shapes=shapes), weights(seed=1, shapes=shapes)
    bound = row.recipe.bind(params)

    def loss():
        return sum((p - t.detach()).square().sum() for p, t in zip(params, targets, strict=True))

    start = loss().item()
    for i in range(200):
        for group in bound.param_groups:
            group["lr"] = row.rate * (1 - i / 200)
        bound.zero_grad()
        loss().backward()
        bound.step()

    assert loss().item() < 1e-2 * start


@every_row
def test_a_parameter_without_a_gradient_stays(row):
    """Its weight, and its slots; the others go on."""
    params = weights()
    bound = row.recipe.bind(params)
    take_step(bound, params, 0)
    still, before = params[4], slots_of(bound, params)
    start = [p.detach().clone() for p in params]
    for p in params:
        p.grad = None if p is still else torch.ones_like(p)

    bound.step()

    after = slots_of(bound, params)
    assert all(torch.equal(before[k], after[k]) for k in before if k[0] == 4)
    assert [torch.equal(p, q) for p, q in zip(params, start, strict=True)] == [
        p is still or not p.numel() for p in params
    ]


@every_row
def test_slots_are_there_before_the_first_step(row):
    """So that memory is known at once, and a checkpoint of step 0 is whole."""
    params = weights()
    bound = row.recipe.bind(params)
    before = slots_of(bound, params)
    places = {k: v.data_ptr() for p in params for k, v in tensors(bound, p)}

    take_step(bound, params, 0)

    assert before.keys() == slots_of(bound, params).keys()
    assert places == {k: v.data_ptr() for p in params for k, v in tensors(bound, p)}


def tensors(bound, p):
    return [((id(p), k), v) for k, v in bound.state[p].items() if isinstance(v, torch.Tensor)]


@every_row
def test_a_gradient_is_left_as_it_is(row):
    """A user may look at it after the step."""
    params = weights()
    bound = row.recipe.bind(params)
    for p in params:
        p.grad = torch.full_like(p, 0.25)

    bound.step()

    assert all((p.grad == 0.25).all() for p in params)


@every_row
def test_a_closure_sees_the_weights_before_the_step(row):
    """And its loss is returned."""
    params = weights()
    bound = row.recipe.bind(params)
    before = sum(p.sum() for p in params).item()

    def closure():
        bound.zero_grad()
        loss = sum(p.sum() for p in params)
        loss.backward()
        return loss

    bound.param_groups[0]["lr"] = 0.0
    assert bound.step(closure).item() == before


@every_row
def test_a_step_does_not_depend_on_memory_layout(row):
    """Channels-last and transposed weights move as contiguous ones do."""
    plain = weights(shapes=[(2, 3, 4, 5), (6, 4)])
    odd = [
        torch.nn.Parameter(plain[0].detach().clone().to(memory_format=torch.channels_last)),
        torch.nn.Parameter(plain[1].detach().t().contiguous().t()),
    ]
    one, other = row.recipe.bind(plain), row.recipe.bind(odd)
    for i in range(3):
        take_step(one, plain, i)
        take_step(other, odd, i)

    for p, q in zip(plain, odd, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@every_row
def test_a_recipe_reads_as_it_is_written(row):
    """repr is an expression of an equal recipe; equal recipes hash alike."""
    again = eval(repr(row.recipe))

    assert again == row.recipe
    assert hash(again) == hash(row.recipe)
    assert type(row.recipe)(learning_rate=0.123) != row.recipe
    assert pickle.loads(pickle.dumps(row.recipe)) == row.recipe


@pytest.mark.parametrize("kind", [SGD, Momentum, RMSProp, Adam, Adafactor, SM3])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "0.1", None])
def test_a_learning_rate_out_of_range_is_refused(kind, value):
    with pytest.raises(ValueError, match=rf"{kind.__name__} takes a learning_rate in \[0, inf\)"):
        kind(learning_rate=value)


@pytest.mark.parametrize("kind", [SGD, Momentum, RMSProp, Adam, Adafactor, SM3])
def test_a_limit_that_is_not_positive_is_refused(kind):
    with pytest.raises(ValueError, match="clip_grad_norm is a positive norm or None; got 0"):
        kind(clip_grad_norm=0)


@pytest.mark.parametrize(
    ("kind", "name", "values", "interval"),
    [
        (Momentum, "mass", (-0.1, 1.0), "[0, 1)"),
        (Momentum, "weight_decay_rate", (-0.1, 1.0), "[0, 1)"),
        (RMSProp, "gamma", (-0.1, 1.0), "[0, 1)"),
        (RMSProp, "eps", (0.0, float("nan")), "(0, inf)"),
        (Adam, "weight_decay_rate", (-0.1, 1.0), "[0, 1)"),
        (Adam, "b1", (-0.1, 1.0), "[0, 1)"),
        (Adam, "b2", (-0.1, 1.0), "[0, 1)"),
        (Adam, "eps", (-1e-8,), "[0, inf)"),
        (Adafactor, "beta1", (-0.1, 1.0), "[0, 1)"),
        (Adafactor, "decay_rate", (-0.1,), "[0, inf)"),
        (Adafactor, "clipping_threshold", (0.0, -1.0), "(0, inf)"),
        (Adafactor, "weight_decay_rate", (-0.1, 1.0), "[0, 1)"),
        (Adafactor, "weight_decay_n_steps", (-1, None), "[0, inf)"),
        (Adafactor, "epsilon1", (0.0,), "(0, inf)"),
        (Adafactor, "epsilon2", (-1e-3,), "[0, inf)"),
        (SM3, "momentum", (-0.1, 1.0, None), "[0, 1)"),
        (SM3, "second_moment_averaging", (-0.1, 1.1), "[0, 1]"),
        (SM3, "weight_decay", (-0.1,), "[0, inf)"),
    ],
)
def test_a_number_out_of_range_is_refused(kind, name, values, interval):
    """The message names the optimizer, the number, its range, what came, and the default."""
    for value in values:
        with pytest.raises(ValueError, match=f"{kind.__name__} takes a {name} in ") as caught:
            kind(**{name: value})
        assert f"in {interval}; got {value!r}. The default is " in str(caught.value)


@every_row
@pytest.mark.parametrize("shape", SHAPES)
def test_as_functions_it_is_the_rule_that_is_bound(row, shape):
    """init and update of one weight give what three steps of the bound rule give; float64."""
    params = weights(torch.float64, shapes=[shape])
    bound, recipe = row.recipe.bind(params), row.recipe
    weight = params[0].detach().clone()
    slots, opt_params = recipe.init(weight), dict(recipe.opt_params)

    for step in range(1, 4):
        take_step(bound, params, step)
        opt_params["learning_rate"] = torch.tensor(0.01 / (step + 1))  # as an array, as in Trax
        weight, slots = recipe.update(step, params[0].grad, weight, slots, opt_params)

    assert torch.allclose(weight, params[0], rtol=1e-6, atol=1e-9)
    assert recipe.slots is None
