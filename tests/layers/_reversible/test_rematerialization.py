"""The backward pass runs layers again as they ran, and leaves no trace."""

import copy
import functools
import threading

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
from trax_torch.layers._reversible import rematerialization


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


# A replay by itself.


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


class Choosing(tl.Layer):
    """Adds what it chooses, another number each time; chosen before, if it is run again."""

    def __init__(self):
        super().__init__()
        self._decisions = rematerialization.Decisions()
        self.n_chosen = [0]  # a list, which a replay leaves as it is

    def choose(self):
        self.n_chosen[0] += 1
        return torch.tensor(float(self.n_chosen[0]))

    def forward(self, x):
        return x + self._decisions.made(self.choose) * self._decisions.made(self.choose)


def test_what_a_layer_chose_is_chosen_again():
    """In order, as often as it is run again; and nothing is noted where nothing will be."""
    layer = Choosing()
    replay = rematerialization.Replay(layer, torch.device("cpu"))
    x = torch.zeros(())

    first = replay.first(x)

    assert [float(y) for y in (first, replay(x), layer(x), replay(x))] == [2.0, 2.0, 12.0, 2.0]
    assert layer.n_chosen == [4]


def test_choices_of_other_threads_are_others():
    decisions = rematerialization.Decisions()
    found = []
    with decisions.noted() as noted, decisions.again([1]):
        thread = threading.Thread(target=lambda: found.append(decisions.made(lambda: 2)))
        thread.start()
        thread.join()
        found.append(decisions.made(lambda: 3))

    assert found == [2, 1]
    assert noted == []
    assert copy.deepcopy(decisions).made(lambda: 4) == 4
