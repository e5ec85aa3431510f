"""Reversible layers in a row keep no activations; where that could be noticed, they run as ever."""

import copy
import functools
import pickle

import pytest
import torch
from reversible_rows import (
    D,
    assert_as_one_by_one,
    assert_close,
    blocks,
    built,
    gradients,
    half,
    items,
    keeps_nothing,
    one_by_one,
    vectors,
    weighted_sum,
)

from trax_torch import layers as tl
from trax_torch.layers._reversible import runs


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


def test_nothing_is_recorded_where_nothing_needs_gradients():
    inputs = vectors()
    model = built(*blocks(1), inputs=inputs)

    with torch.no_grad():
        without = model(inputs)
    model.requires_grad_(False)
    frozen = model(inputs)

    assert without[0] is frozen[0] is inputs[1]
    assert not any(y.requires_grad for y in (*without, *frozen))


def test_copies_and_pickles_keep_nothing_either():
    inputs = vectors()
    model = built(*blocks(2), inputs=inputs)
    want = gradients(model, model, inputs)

    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert keeps_nothing(twin(inputs))
        assert_close(gradients(twin, twin, inputs), want)


# Which layers are in a row.


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


# What others see.


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


def test_second_derivatives_are_refused():
    inputs = tuple(x.requires_grad_() for x in vectors())
    model = built(*blocks(1), inputs=inputs)
    first = torch.autograd.grad(weighted_sum(model(inputs)), inputs, create_graph=True)

    with pytest.raises(RuntimeError, match="differentiate twice"):
        first[0].sum().backward()


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
