"""Gradients of reversible layers in a row are those of the same layers one by one."""

import copy
import functools

import pytest
import ranks
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reversible_rows import (
    D,
    assert_as_one_by_one,
    assert_close,
    blocks,
    built,
    gradients,
    half,
    keeps_nothing,
    one_by_one,
    vectors,
    weighted_sum,
)
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from trax_torch import _distributed, _sharding
from trax_torch import layers as tl
from trax_torch.layers._reversible import rematerialization


def test_gradcheck_holds_for_inputs_and_weights_dropout_included():
    inputs = tuple(x.requires_grad_() for x in vectors(shape=(2, D)))
    model = built(*blocks(2, dropout=0.3), inputs=inputs)

    def run(x, y, *_):
        torch.manual_seed(0)
        return model((x, y))

    assert keeps_nothing(run(*inputs))
    assert torch.autograd.gradcheck(run, (*inputs, *model.parameters()))


@pytest.mark.parametrize("apart", [True, False])
def test_gradcheck_holds_with_attention_inside(apart):
    """A block of Reformer's kind: attention, in series or apart, then a network."""
    inputs = tuple(x.requires_grad_() for x in vectors(shape=(1, 3, D)))
    attention = tl.CausalAttention(D, 2)
    if apart:
        attend = tl.ReversibleHalfResidual(tl.LayerNorm(), attention_layer=attention)
    else:
        attend = tl.ReversibleHalfResidual(tl.LayerNorm(), attention)
    model = built(attend, tl.ReversibleSwap(), half(), tl.ReversibleSwap(), inputs=inputs)

    def run(x, y, *_):
        return model((x, y))

    assert keeps_nothing(run(*inputs))
    assert torch.autograd.gradcheck(run, (*inputs, *model.parameters()))


def attending():
    attention = tl.Fn("Attend", lambda q, mask: torch.where(mask > 0, q, q.tanh()))
    return tl.ReversibleHalfResidual(tl.Dense(D), attention_layer=attention)


KINDS = {
    "swap": tl.ReversibleSwap,
    "turn": lambda: tl.ReversibleSelect([2, 0, 1]),
    "copy": lambda: tl.ReversibleSelect([1, 0, 1]),
    "alone": lambda: half(dropout=0.4),
    "with two": lambda: half(n_context=2),
    "with three": lambda: half(n_context=3, dropout=0.2),
    "with attention": attending,
}


@settings(max_examples=30, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=8),
    shares=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_gradients_are_those_of_the_same_layers_one_by_one(kinds, shares, dtype):
    """Layers of a kind may be one, used several times; 'copy' makes the stack deeper."""
    inputs = vectors(4, dtype)
    one_of_each = {kind: make() for kind, make in KINDS.items()}
    layers = [one_of_each[k] if shares else KINDS[k]() for k in kinds]
    model = built(*layers, inputs=inputs, dtype=dtype)

    assert_as_one_by_one(model, inputs, 1e-10 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("depth", range(1, 9))
def test_gradients_are_those_of_the_plain_spelling(depth):
    """Branch and Add instead of a half residual, with the same weights."""
    inputs = vectors()
    model = built(*blocks(depth), inputs=inputs)
    plain = tl.Serial(
        [
            (tl.Select([0, 1, 1]), tl.Parallel(None, f, None), tl.Add(), tl.Swap())
            for f in (layer.sublayers[0] for layer in model.sublayers[::2])
        ]
    )

    assert keeps_nothing(model(inputs))
    assert not keeps_nothing(plain(inputs))
    assert_close(gradients(model, model, inputs), gradients(plain, model, inputs))


def test_a_weight_in_several_layers_has_the_sum_of_their_gradients():
    """Shared as a layer, and as a tensor alone."""
    inputs = vectors()
    shared, tied = half(), half()
    model = built(shared, tl.ReversibleSwap(), shared, tied, inputs=inputs)
    dense = [m for m in model.modules() if isinstance(m, tl.Dense)]
    dense[2].weight = dense[0].weight

    assert keeps_nothing(model(inputs))
    assert_as_one_by_one(model, inputs)


def test_frozen_weights_stay_without_gradients():
    inputs = vectors()
    model = built(*blocks(2), inputs=inputs)
    frozen = list(model.parameters())[::2]
    for p in frozen:
        p.requires_grad_(False)

    assert_as_one_by_one(model, inputs)
    assert all(p.grad is None for p in frozen)


def test_integers_and_what_is_not_there_go_through():
    """A mask, bool or None, in the context."""
    x, y = vectors()

    def masked(v, mask):
        return v if mask is None else v * mask

    layers = [tl.ReversibleHalfResidual(tl.Fn("Masked", masked), tl.Dense(D)), tl.ReversibleSwap()]
    model = built(*layers, *layers, inputs=(x, y, torch.ones(3, D, dtype=torch.bool)))

    outputs = model((x, y, torch.eye(3, D, dtype=torch.bool)))
    assert keeps_nothing(outputs)
    assert not outputs[2].requires_grad
    assert model((x, y, None))[2] is None
    for mask in (torch.eye(3, D, dtype=torch.bool), torch.ones(3, D, dtype=torch.int64)):
        assert_as_one_by_one(model, (x, y, mask))


def test_gradients_flow_into_items_made_of_several_tensors():
    """Such a row runs as ever."""
    x, y = vectors()
    parts = tuple(t.requires_grad_() for t in vectors())
    pick = tl.Fn("Pick", lambda v, several: v * several[1])
    model = tl.Serial(tl.ReversibleHalfResidual(pick), tl.ReversibleSwap())

    weighted_sum(model((x, y, parts))[:2]).backward()

    assert parts[1].grad.any()


def test_an_input_without_gradients_comes_out_without():
    x, y = vectors()
    model = built(half(n_context=1), tl.ReversibleSelect([0, 1]), inputs=(x, y))

    total, same = model((x, y))

    assert keeps_nothing(total)
    assert not same.requires_grad


@pytest.mark.parametrize("used", [[0], [1], [2], [0, 2], [1, 2], [0, 1, 2]])
def test_an_output_that_nothing_uses_has_no_gradient(used):
    """Outputs 0 and 2 are one tensor."""
    inputs = vectors()
    model = built(half(), tl.ReversibleSelect([0, 1, 0]), inputs=inputs)

    def loss(outputs):
        return sum((i + outputs[i].sin()).square().sum() for i in used)

    assert keeps_nothing(model(inputs))
    assert_as_one_by_one(model, inputs, loss=loss)


def test_pure_fn_differentiates_the_weights_it_was_given():
    """The layer's own are in place again when the backward pass runs."""
    inputs = vectors(shape=(5, D))
    model = built(half(tl.BatchNorm(axis=0), dropout=0.5), half(dropout=0.5), inputs=inputs)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.5)
        for m in other.modules():
            if isinstance(m, tl.Dropout):
                m.state = torch.tensor(0.2)

    torch.manual_seed(0)
    outputs, _ = model.pure_fn(inputs, other.weights, other.state)
    assert keeps_nothing(outputs)
    weighted_sum(outputs).backward()
    got = [p.grad for p in other.parameters()]
    other.zero_grad()
    torch.manual_seed(0)
    weighted_sum(one_by_one(other, inputs)).backward()

    assert all(p.grad is None for p in model.parameters())
    assert_close(got, [p.grad for p in other.parameters()])


class Coupling(tl.ReversibleLayer):
    """(x, y) -> (x * exp(s(y)) + noise, y), with the logarithm of its volume as a third output."""

    def __init__(self):
        super().__init__(n_in=2, n_out=3)
        self.scale = torch.nn.Linear(D, D)
        self.unused = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        x, y = x
        s = self.scale(y).tanh()
        return x * s.exp() + torch.rand_like(x), y, s.sum()

    def reverse(self, output, weights=(), state=(), new_state=(), rng=None):
        x, y, _ = output
        return (x - torch.rand_like(x)) * torch.exp(-self.scale(y).tanh()), y


def test_a_layer_of_the_users_own_needs_no_more_than_a_reverse():
    inputs = vectors()
    model = built(Coupling(), tl.ReversibleSwap(), half(), inputs=inputs)

    assert keeps_nothing(model(inputs))
    assert_as_one_by_one(model, inputs)
    assert model.sublayers[0].unused.grad is None


# On several ranks.


def ddp_gradients(rank, find_unused_parameters):
    torch.manual_seed(0)
    world = _distributed.join(2, "cpu")
    inputs = vectors(shape=(4, D))
    share = tuple(x[2 * rank : 2 * rank + 2] for x in inputs)
    head = torch.nn.Linear(1, 1) if find_unused_parameters else torch.nn.Identity()
    model = built(Coupling(), tl.ReversibleSwap(), tl.Select([0, 1], 3), blocks(2), inputs=inputs)
    model.sublayers[0].unused.requires_grad_(find_unused_parameters)
    model.head = head
    model = DistributedDataParallel(model, find_unused_parameters=find_unused_parameters)
    found = []
    for run in (model, model):
        torch.manual_seed(rank)
        found.append([g for g in gradients(run, model, share)[4:]])
    model = model.module
    torch.manual_seed(rank)
    alone = gradients(functools.partial(one_by_one, model), model, share)[4:]
    sums = [None if g is None else g.clone() for g in alone]
    for g in sums:
        if g is not None:
            torch.distributed.all_reduce(g)
    del world
    assert_close(found[0], found[1], 0.0)
    assert_close(found[0], [None if g is None else g / 2 for g in sums])
    return len(found[0])


@pytest.mark.parametrize("find_unused_parameters", [False, True])
def test_gradients_are_the_means_over_ranks(tmp_path, find_unused_parameters):
    """DistributedDataParallel finds the weights that a row does not use, too."""
    work = functools.partial(ddp_gradients, find_unused_parameters=find_unused_parameters)
    ranks.values(tmp_path, 2, work)


def sharded_gradients(rank, inside):
    world = _distributed.join(2, "cpu")
    inputs = vectors(dtype=torch.float32)
    model = built(
        tl.Dense(D), tl.Serial(blocks(2)), half(), half(), inputs=inputs, dtype=torch.float32
    )
    want = gradients(model, model, inputs)
    if inside:
        for dense in [m for m in model.modules() if isinstance(m, tl.Dense)]:
            fully_shard(dense)
        fully_shard(model)
    else:
        _sharding.shard(world, model, list(model.children()))
    # The inner Serial's row: where it is sharded whole, its weights come together before it runs.
    assert keeps_nothing(model(inputs)) == (not inside)
    got = gradients(model, model, inputs)
    return [
        torch.allclose(g.full_tensor() if hasattr(g, "full_tensor") else g, w, atol=1e-5)
        for g, w in zip(got, want, strict=True)
    ]


@pytest.mark.parametrize("inside", [False, True])
def test_gradients_are_the_same_where_ranks_hold_parts_of_weights(tmp_path, inside):
    work = functools.partial(sharded_gradients, inside=inside)
    for found in ranks.values(tmp_path, 2, work):
        assert all(found)


# A layer by itself.


@pytest.mark.parametrize(
    "layer",
    [half(dropout=0.5), tl.ReversibleSelect([1, 0, 1]), Coupling()],
    ids=lambda layer: layer.name,
)
def test_reverse_and_grad_agrees_with_a_backward_pass_and_changes_nothing(layer):
    inputs = tuple(x.requires_grad_() for x in vectors())
    layer = built(layer, inputs=inputs).sublayers[0]
    params = list(layer.parameters())
    replay = rematerialization.Replay(layer, torch.device("cpu"), inputs)
    outputs = tuple(y.detach() for y in layer(inputs))
    with replay.draws():
        plain = layer(inputs)
    above = tuple(torch.ones_like(y) for y in plain)

    back, of_inputs, of_params = layer.reverse_and_grad(outputs, above, replay, params)

    wanted = torch.autograd.grad(plain, (*inputs, *params), above, allow_unused=True)
    assert_close([*of_inputs, *of_params], wanted)
    assert_close(back, [x.detach() for x in inputs])
    assert not any(x.requires_grad for x in back)
    assert all(p.grad is None for p in (*params, *inputs))


def test_reverse_and_grad_gives_none_where_nothing_flows():
    inputs = vectors()
    layer = built(half(), inputs=inputs).sublayers[0]
    params = [p.requires_grad_(i > 0) for i, p in enumerate(layer.parameters())]
    outputs = tuple(y.detach() for y in layer(inputs))

    back, of_inputs, of_params = layer.reverse_and_grad(outputs, (None, outputs[1]), None, params)

    assert_close(back, inputs)
    assert of_inputs[0] is None
    assert torch.equal(of_inputs[1], outputs[1])
    assert of_params == [None] * len(params)
