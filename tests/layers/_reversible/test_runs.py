"""Reversible layers in a row: gradients as ever, without keeping activations."""

import copy
import functools
import pickle

import pytest
import ranks
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from trax_torch import _distributed, shapes
from trax_torch import layers as tl
from trax_torch.layers._reversible import rematerialization, runs

D = 4


def half(*more, dropout=0.0, n_context=1, name=None):
    """A half residual of a small network over the sum of its context."""
    layers = [tl.Add() for _ in range(n_context - 1)]
    layers += [tl.Dense(6), tl.Tanh(), tl.Dropout(dropout), tl.Dense(D), *more]
    return tl.ReversibleHalfResidual(*layers, name=name)


def attending():
    attention = tl.Fn("Attend", lambda q, mask: torch.where(mask > 0, q, q.tanh()))
    return tl.ReversibleHalfResidual(tl.Dense(D), attention_layer=attention)


def blocks(n, **kwargs):
    return [layer for _ in range(n) for layer in (half(**kwargs), tl.ReversibleSwap())]


def built(*layers, inputs, dtype=torch.float64, seed=0):
    model = tl.Serial(*layers)
    model.init(shapes.signature(inputs), rng=seed)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.normal_(generator=torch.Generator().manual_seed(seed + i)).mul_(0.5)
    return model.to(dtype)


def vectors(n=2, dtype=torch.float64, shape=(3, D)):
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(shape, generator=generator, dtype=dtype) for _ in range(n))


def one_by_one(model, stack):
    """Runs a Serial's layers alone, so that none stands in a row."""
    for layer in model.sublayers:
        outputs = layer(tl.inputs_from_stack(stack, layer.n_in))
        stack = tl.outputs_onto_stack(outputs, stack, layer.n_in)
    return stack


def items(x):
    return x if isinstance(x, tuple) else (x,)


def weighted_sum(outputs):
    floats = [y for y in items(outputs) if y.requires_grad]
    return sum((y * (i + y.sin())).sum() for i, y in enumerate(floats, 1))


def gradients(run, model, inputs, loss=weighted_sum, seed=3):
    """Returns the outputs, and the gradients of inputs and of weights."""
    model.zero_grad()
    inputs = tuple(x.clone().requires_grad_(x.is_floating_point()) for x in items(inputs))
    torch.manual_seed(seed)
    outputs = run(inputs if len(inputs) > 1 else inputs[0])
    loss(outputs).backward()
    return [
        *(y.detach() for y in items(outputs)),
        *(x.grad for x in inputs),
        *(p.grad for p in model.parameters()),
    ]


def assert_as_one_by_one(model, inputs, tolerance=1e-10, **kwargs):
    twin = copy.deepcopy(model)
    got = gradients(model, model, inputs, **kwargs)
    want = gradients(functools.partial(one_by_one, twin), twin, inputs, **kwargs)
    assert_close(got, want, tolerance)
    assert_close(model.buffers(), twin.buffers(), tolerance)


def assert_close(got, want, tolerance=1e-10):
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype
            size = max(1.0, b.double().abs().max().item())
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance * size)


def keeps_nothing(outputs):
    """Tells whether a row of reversible layers is one node of the graph behind the outputs."""
    seen, todo = set(), [y.grad_fn for y in items(outputs)]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "_RunBackward":
            return True
        todo += [n for n, _ in node.next_functions]
    return False


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


def test_layers_before_between_and_after_rows_run_as_ever():
    x = vectors(1)
    model = built(
        *(tl.Dense(D), tl.Dup(), blocks(2), tl.Relu(), blocks(1), tl.Serial(blocks(2)), tl.Add()),
        inputs=x[0],
    )

    assert keeps_nothing(model(x[0]))
    assert_as_one_by_one(model, x)


def test_what_lies_below_on_the_stack_passes_by():
    x, y, *_ = inputs = (*vectors(), torch.arange(3), "rest")
    model = built(*blocks(1), inputs=(x, y))

    outputs = model(inputs)

    assert outputs[2] is inputs[2]
    assert outputs[3] == "rest"


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


def test_nothing_is_recorded_where_nothing_needs_gradients():
    inputs = vectors()
    model = built(*blocks(1), inputs=inputs)

    with torch.no_grad():
        without = model(inputs)
    model.requires_grad_(False)
    frozen = model(inputs)

    assert without[0] is frozen[0] is inputs[1]
    assert not any(y.requires_grad for y in (*without, *frozen))


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


class Counting(tl.Layer):
    """Multiplies by the number of times it was called, which it keeps in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("n_calls", torch.zeros(()))

    def forward(self, x):
        self.n_calls += 1
        return x * self.n_calls.clone()


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_statistics_are_counted_once(mode):
    """BatchNorm in a half residual that occurs twice, so that it has other statistics each time."""
    inputs = vectors(shape=(5, D))
    shared = half(tl.BatchNorm(axis=0, momentum=0.5), Counting())
    model = built(shared, tl.ReversibleSwap(), shared, inputs=inputs)
    model.train(mode == "train")

    assert keeps_nothing(model(inputs))
    assert_as_one_by_one(model, inputs)


class Holding(tl.Layer):
    """Multiplies by what it holds and changes: a buffer that does not last, or an attribute."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        if kind == "buffer":
            self.register_buffer("held", torch.ones(()), persistent=False)
        else:
            self.held = torch.ones(())

    def forward(self, x):
        if self.kind == "attribute that is replaced":
            self.held = self.held + 1
        else:
            self.held += 1
        return x * self.held.clone()


@pytest.mark.parametrize("kind", ["buffer", "attribute", "attribute that is replaced"])
def test_what_a_layer_holds_is_changed_once(kind):
    """In a half residual that occurs twice."""
    inputs = vectors()
    holding = Holding(kind)
    shared = half(holding)
    model = built(shared, tl.ReversibleSwap(), shared, inputs=inputs)
    holding.held = torch.ones(())
    twin = copy.deepcopy(model)

    assert_as_one_by_one(model, inputs)
    gradients(functools.partial(one_by_one, twin), twin, inputs)
    assert holding.held == twin.sublayers[0].sublayers[0].sublayers[-1].held == 3


def test_what_is_left_alone_is_not_copied_and_may_not_change_before_the_backward_pass():
    inputs = vectors()
    look = tl.Fn("Look", lambda x: x * 1.0)
    look.register_buffer("table", torch.ones(D), persistent=False)
    model = built(half(look), tl.ReversibleSwap(), inputs=inputs)
    replay = rematerialization.Replay(model.sublayers[0], torch.device("cpu"))
    model.sublayers[0](inputs)
    replay.held.settle()
    assert all(noted.copy is None for noted in replay.held._noted.values())
    loss = weighted_sum(model(inputs))
    look.table.add_(1.0)

    with pytest.raises(
        RuntimeError, match=r"shape \(4,\), was written into since.*Change it before"
    ):
        loss.backward()


@pytest.mark.parametrize("used", [[0], [1], [2], [0, 2], [1, 2], [0, 1, 2]])
def test_an_output_that_nothing_uses_has_no_gradient(used):
    """Outputs 0 and 2 are one tensor."""
    inputs = vectors()
    model = built(half(), tl.ReversibleSelect([0, 1, 0]), inputs=inputs)

    def loss(outputs):
        return sum((i + outputs[i].sin()).square().sum() for i in used)

    assert keeps_nothing(model(inputs))
    assert_as_one_by_one(model, inputs, loss=loss)


def test_a_graph_that_is_kept_gives_the_same_gradients_again():
    inputs = vectors(shape=(5, D))
    model = built(*blocks(2, dropout=0.5), half(Counting()), inputs=inputs)
    params = list(model.parameters())
    loss = weighted_sum(model(inputs))

    first = torch.autograd.grad(loss, params, retain_graph=True)
    torch.rand(3)
    second = torch.autograd.grad(loss, params)

    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_backward_pass_leaves_random_numbers_modes_and_buffers_alone():
    inputs = vectors(shape=(5, D))
    model = built(half(tl.BatchNorm(axis=0), dropout=0.5), tl.ReversibleSwap(), inputs=inputs)
    loss = weighted_sum(model(inputs))
    model.eval()
    buffers = [b.clone() for b in model.buffers()]
    torch.manual_seed(4)

    loss.backward()

    drawn = torch.rand(2)
    assert torch.equal(drawn, torch.rand(2, generator=torch.Generator().manual_seed(4)))
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
    assert not any(m.training for m in model.modules())


def test_a_mode_or_rate_changed_before_the_backward_pass_changes_no_gradient():
    inputs = vectors()
    model = built(*blocks(2, dropout=0.5), inputs=inputs)

    def then(change):
        torch.manual_seed(2)
        loss = weighted_sum(model(inputs))
        change()
        return torch.autograd.grad(loss, list(model.parameters()))

    def change():
        model.eval()
        for m in model.modules():
            if isinstance(m, tl.Dropout):
                m.state = torch.tensor(0.1)

    assert_close(then(change=lambda: None), then(change), 0.0)


def test_weights_changed_before_the_backward_pass_are_refused():
    inputs = vectors()
    model = built(*blocks(1), inputs=inputs)
    loss = weighted_sum(model(inputs))
    with torch.no_grad():
        next(model.parameters()).add_(1.0)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_second_derivatives_are_refused():
    inputs = tuple(x.requires_grad_() for x in vectors())
    model = built(*blocks(1), inputs=inputs)
    first = torch.autograd.grad(weighted_sum(model(inputs)), inputs, create_graph=True)

    with pytest.raises(RuntimeError, match="differentiate twice"):
        first[0].sum().backward()


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


class Doubling(tl.ReversibleHalfResidual):
    """Inherits from a layer that computes something else."""

    def forward(self, x):
        total, *context = super().forward(x)
        return 2 * total, *context

    def reverse(self, output, weights=(), state=(), new_state=(), rng=None):
        total, *context = output
        return super().reverse((total / 2, *context), weights, state, new_state, rng)


class Mixin:
    def forward(self, x):
        return tuple(3 * item for item in x)

    def reverse(self, output, weights=(), state=(), new_state=(), rng=None):
        return tuple(item / 3 for item in output)


class Tripling(Mixin, tl.ReversibleSelect):
    pass


def test_a_subclass_that_computes_something_else_has_gradients_of_its_own():
    inputs = vectors()
    model = built(Doubling(tl.Dense(D)), Tripling([0, 1]), Doubling(tl.Tanh()), inputs=inputs)

    assert keeps_nothing(model(inputs))
    assert_as_one_by_one(model, inputs)


class Irreversible(tl.ReversibleLayer):
    def forward(self, x):
        return torch.relu(x)


def test_a_layer_without_a_reverse_stands_in_no_row():
    inputs = vectors()
    model = built(Irreversible(), tl.ReversibleSwap(), half(), inputs=inputs)

    model.sublayers[2].forward = model.sublayers[2].forward  # nor one that is patched
    assert not keeps_nothing(model(inputs))
    assert_as_one_by_one(model, inputs)


def test_rows_have_two_layers_at_least_one_of_which_computes():
    swap, select, other = tl.ReversibleSwap(), tl.ReversibleSelect([0]), tl.Relu()

    def rows(*layers):
        return runs.find_runs(layers)

    assert rows() == rows(half()) == rows(swap, select) == rows(other, other) == ()
    assert rows(half(), swap) == rows(Tripling([0, 1]), swap) == ((0, 2),)
    assert rows(other, swap, half(), other, half(), other, half(), half()) == ((1, 3), (6, 8))


def test_hooks_see_what_they_would_see_one_by_one():
    """A layer with hooks of its own keeps its row's activations, since hooks may change them."""
    inputs = vectors()
    model = built(*blocks(2), tl.ReversibleSelect([0]), inputs=inputs)
    calls = []

    def twice(layer, args, output):
        calls.append(layer)
        return 2 * output[0], *output[1:]

    handle = model.sublayers[2].register_forward_hook(twice)
    assert_as_one_by_one(model, inputs)
    handle.remove()
    assert len(calls) == 2  # the twin's, too
    assert keeps_nothing(model(inputs))
    model.sublayers[4].register_full_backward_hook(lambda *_: calls.append("back"))
    gradients(model, model, inputs)

    assert calls[2:] == ["back"]


def test_hooks_inside_a_layer_and_of_weights_see_each_gradient_once():
    inputs = vectors()
    model = built(*blocks(2), inputs=inputs)
    seen = []
    dense = next(m for m in model.modules() if isinstance(m, tl.Dense))
    dense.register_full_backward_hook(lambda *_: seen.append("module"))
    dense.weight.register_hook(lambda g: seen.append("weight") or 2 * g)
    dense.weight.register_post_accumulate_grad_hook(lambda p: seen.append("accumulated"))

    assert keeps_nothing(model(inputs))
    got = gradients(model, model, inputs)
    plain = gradients(functools.partial(one_by_one, model), model, inputs)

    assert sorted(seen) == sorted(2 * ["module", "weight", "accumulated"])
    assert_close(got, plain)


def autocast_gradients(run, model, inputs):
    x = inputs.clone().requires_grad_()
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = run(x)
        loss = sum(y.float().square().sum() for y in items(outputs))
    loss.backward()
    found = [x.grad, *(p.grad for p in model.parameters())]
    model.zero_grad()
    return found


def test_autocast_holds_in_the_backward_pass_outside_its_block():
    """The stack is in float32, the networks in bfloat16; one weight is used outside the row too."""
    (x,) = vectors(1, torch.float32)
    seen = []
    look = tl.Fn("Look", lambda v: seen.append(v.dtype) or v)
    layers = blocks(2, dropout=0.3)
    model = built(tl.Dup(), *layers, half(look), tl.Add(), inputs=x, dtype=torch.float32)
    seen.clear()
    dense = next(m for m in model.modules() if isinstance(m, tl.Dense))

    def run(x, row=model):
        before = dense(x).mean()
        return row(x) + dense(x).mean() + before

    got = autocast_gradients(run, model, x)
    assert seen == 2 * [torch.bfloat16]
    row = functools.partial(one_by_one, model)
    want = autocast_gradients(functools.partial(run, row=row), model, x)

    assert_close(got, want, 1e-2)


def test_inputs_come_back_in_the_types_in_which_they_came():
    """Under autocast a Dense gives bfloat16, to which a float32 is added."""
    (x,) = vectors(1, torch.float32)
    seen = []
    look = tl.Fn("Look", lambda v: seen.append(v.dtype) or v)
    wide = half(tl.Fn("Float", lambda v: v.float()))
    model = built(
        *(tl.Dense(D), tl.Dup()),
        *(tl.ReversibleHalfResidual(look, tl.Dense(D)), tl.ReversibleSwap(), wide),
        *(tl.ReversibleSwap(), tl.ReversibleHalfResidual(look, tl.Dense(D))),
        inputs=x,
        dtype=torch.float32,
    )
    seen.clear()

    got = autocast_gradients(model, model, x)
    forward, backward = seen[:2], seen[2:]
    want = autocast_gradients(functools.partial(one_by_one, model), model, x)

    assert forward == backward[::-1] == [torch.bfloat16, torch.float32]
    assert_close(got, want, 5e-2)


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


def test_func_grad_and_forward_mode_and_second_derivatives_go_the_plain_way():
    inputs = vectors()
    model = built(*blocks(2), inputs=inputs)
    params = dict(model.named_parameters())

    def loss(params):
        return weighted_sum(torch.func.functional_call(model, params, (inputs,)))

    got = torch.func.grad(loss)(params)
    want = torch.autograd.grad(weighted_sum(model(inputs)), list(params.values()))
    assert_close(got.values(), want)

    def first(x):
        return model((x, x))[0]

    _, tangent = torch.func.jvp(first, inputs[:1], inputs[1:])
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(*inputs)
        dual = torch.autograd.forward_ad.unpack_dual(first(x)).tangent
    torch.testing.assert_close(tangent, dual)
    assert torch.func.hessian(lambda x: first(x).sum())(inputs[0]).any()


def test_a_compiled_model_has_the_same_gradients():
    torch.compiler.reset()
    inputs = vectors()
    model = built(tl.Dense(D), *blocks(2), inputs=inputs)
    compiled = torch.compile(model, backend="eager", fullgraph=True)

    assert_close(gradients(compiled, model, inputs), gradients(model, model, inputs))


def test_copies_and_pickles_keep_nothing_either():
    inputs = vectors()
    model = built(*blocks(2), inputs=inputs)
    want = gradients(model, model, inputs)

    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert keeps_nothing(twin(inputs))
        assert_close(gradients(twin, twin, inputs), want)


def test_layers_assigned_later_are_looked_at_anew():
    inputs = vectors()
    model = built(*blocks(2), inputs=inputs)
    model._modules["1"] = tl.Swap()  # behind its back: seen when it runs
    assert not keeps_nothing(model(inputs))

    model._sublayers = [tl.Relu(), *model.sublayers[2:]]

    assert keeps_nothing(model(inputs))


def test_layers_that_predict_run_as_ever():
    """What they remember would be written twice."""
    x = vectors(shape=(2, 3, D))
    model = built(
        *(tl.ReversibleHalfResidual(tl.CausalAttention(D)), tl.ReversibleSwap()), inputs=x
    ).eval()

    with model.predict(2, 3):
        outputs = model(x)
    one = model.sublayers[0]
    with one.predict(2, 3):
        inside = model(x)

    assert keeps_nothing(model(x))
    assert not keeps_nothing(outputs)
    assert not keeps_nothing(inside)


def test_an_error_in_a_row_names_the_layer_in_which_it_is():
    x, y = vectors()
    model = built(*blocks(1), inputs=(x, y))

    with pytest.raises(tl.LayerError, match="layer Dense_6 .*ReversibleHalfResidual > Serial"):
        model((x, y[:, :2]))
    with pytest.raises(tl.LayerError, match="2 inputs are needed here, but only 1 came"):
        model(x)


def test_a_context_larger_than_what_it_is_added_to_is_refused():
    """It could not be undone."""
    x, y = vectors()
    model = built(*blocks(1), inputs=(x, y))

    with pytest.raises(tl.LayerError, match=r"must not be larger: x has shape \(1, 4\), and the"):
        model((x[:1], y))


def kept_bytes(model, inputs, run=None):
    """Returns how many bytes the graph keeps, weights apart."""
    own = {p.data_ptr() for p in model.parameters()}
    found = {}

    def pack(x):
        if x.data_ptr() not in own:
            found[x.data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        outputs = (run or model)(inputs)
    assert len(items(outputs)) == 2
    return sum(x.untyped_storage().nbytes() for x in found.values())


def test_what_is_kept_for_the_backward_pass_does_not_grow_with_depth():
    inputs = vectors(shape=(64, D))
    models = [built(*blocks(depth, dropout=0.1), inputs=inputs) for depth in (1, 4, 16)]

    kept = [kept_bytes(model, inputs) for model in models]
    plain = [kept_bytes(m, inputs, functools.partial(one_by_one, m)) for m in models]

    assert kept == [2 * inputs[0].nbytes] * 3
    assert plain[2] > 3 * plain[1] > 6 * plain[0]


def test_activations_are_gone_after_the_forward_pass():
    """No reference holds them elsewhere."""
    inputs = tuple(x.requires_grad_() for x in vectors())
    alive = []
    model = built(
        *(half(tl.Fn("Watch", lambda x: alive.append(torch._C._WeakTensorRef(x)) or x + 0.0))
        for _ in range(4)),
        inputs=inputs,
    )  # fmt: skip
    alive.clear()

    outputs = model(inputs)

    assert keeps_nothing(outputs)
    assert len(alive) == 4
    assert all(ref.expired() for ref in alive)


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
        world.shard(model)
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


# The parts by themselves.


def test_a_replay_draws_the_same_and_leaves_buffers_as_they_are():
    (x,) = vectors(1)
    layer = built(tl.Dropout(0.5), Counting(), inputs=x)
    replay = rematerialization.Replay(layer, torch.device("cpu"))

    first = layer(x)
    layer(x)
    again = [replay(x), replay(x)]
    torch.manual_seed(1)
    with replay.draws():
        mask = torch.nn.functional.dropout(x, 0.5) != 0

    assert all(torch.equal(first, y) for y in again)
    assert torch.equal(mask, mask & (x != 0))
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(1))
    assert layer.sublayers[1].n_calls == 2


def test_a_replay_takes_other_weights_at_every_place_of_a_tied_one():
    (x,) = vectors(1)
    layer = built(tl.Dense(D), tl.Dense(D), inputs=x)
    one, two = layer.sublayers
    two.weight = one.weight
    replay = rematerialization.Replay(layer, torch.device("cpu"))

    outputs = replay(x, {"0.weight": torch.zeros(D, D, dtype=x.dtype)})

    assert torch.equal(outputs, two.bias.expand(3, D))
    assert two.weight is one.weight
    assert one.weight.any()


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
