"""Recipes as functions of weights and slots: trees, norms, and what is answered."""

import numpy as np
import pytest
import torch

from trax_torch import layers as tl
from trax_torch import optimizers
from trax_torch.optimizers import base


def tree():
    return (np.ones((2, 3), np.float32), (np.full(3, 2.0, np.float32), ()))


def test_a_tree_of_weights_keeps_its_form():
    """Tuples, empty ones and numpy; the gradient tells nothing of it."""
    recipe = optimizers.SGD(0.5)
    slots, opt_params = recipe.tree_init(tree())

    (w, (b, nothing)), new, stats = recipe.tree_update(1, tree(), tree(), slots, opt_params)

    assert (slots, new, nothing) == ((None, None), (None, None), ())
    assert (w == 0.5).all()
    assert (b == 1.0).all()
    assert stats["gradients_l2"] == stats["weights_l2"] == pytest.approx(18**0.5)


def test_a_models_weights_are_a_tree():
    """With what is shared by the instance once; the new tree may be set."""
    shared = tl.Dense(3)
    model = tl.Serial(shared, tl.Relu(), shared)
    model.init(torch.zeros(1, 3))
    recipe = optimizers.Adam(0.1)
    slots, opt_params = recipe.tree_init(model.weights)

    weights, _, _ = recipe.tree_update(1, model.weights, model.weights, slots, opt_params)

    before = model.weights[0][0].detach().clone()
    model.weights = weights
    assert len(slots) == 2
    assert not torch.equal(model.weights[0][0], before)


def test_gradients_are_clipped_by_the_norm_of_all():
    """And `store_slots=False` leaves the recipe as it was."""
    recipe = optimizers.SGD(1.0, clip_grad_norm=1.0)
    slots, opt_params = recipe.tree_init(tree())
    recipe.slots = None

    weights, _, _ = recipe.tree_update(1, tree(), tree(), slots, opt_params, store_slots=False)

    step = np.sqrt(
        sum(
            np.square(a - b).sum()
            for a, b in zip((tree()[0], tree()[1][0]), (weights[0], weights[1][0]), strict=True)
        )
    )
    assert step == pytest.approx(1.0)
    assert recipe.slots is None


def test_norms_and_clipping_of_trees():
    """Arrays give arrays, tensors tensors; below the limit nothing changes."""
    grads = (np.array([3.0], np.float32), [torch.tensor(4.0), ()])

    assert base.l2_norm(grads) == pytest.approx(5.0)
    clipped = base.clip_grads(grads, 1.0)
    assert isinstance(clipped[0], np.ndarray)
    assert clipped[0] == pytest.approx(0.6)
    assert float(clipped[1][0]) == pytest.approx(0.8)
    assert base.clip_grads(grads, 5.1) is grads
    assert base.l2_norm(()) == 0


def test_trees_that_are_not_alike_are_refused():
    recipe = optimizers.Adam()
    slots, opt_params = recipe.tree_init(tree())

    with pytest.raises(ValueError, match="got 1 gradients, 2 weights and slots for 2"):
        recipe.tree_update(1, tree()[0], tree(), slots, opt_params)
    with pytest.raises(ValueError, match=r"Adam keeps the slots exp_avg, exp_avg_sq .*got 1"):
        recipe.update(1, tree()[0], tree()[0], tree()[0], opt_params)
    with pytest.raises(ValueError, match=r"SGD keeps the slots none .*got 1"):
        optimizers.SGD().update(1, tree()[0], tree()[0], tree()[0], {})


def test_slots_do_not_make_recipes_differ():
    """A recipe is its rule and its numbers."""
    one, other = optimizers.Adam(0.1), optimizers.Adam(0.1)
    one.tree_init(tree())

    assert one == other
    assert hash(one) == hash(other)
    assert one.slots is not None
    assert other.slots is None


def test_a_trainer_counts_on_one_device():
    """Trax's third argument."""
    model = tl.Serial(tl.Dense(1), tl.L2Loss())
    batch = (torch.ones(2, 3), torch.ones(2, 1), torch.ones(2, 1))
    model.init(batch)

    loss, _ = optimizers.Trainer(model, optimizers.SGD(), 1).one_step(batch, 0, 1, 0.1)

    assert np.isfinite(float(loss))
    with pytest.raises(ValueError, match="got n_devices=2. Train on several with Loop"):
        optimizers.Trainer(model, optimizers.SGD(), 2)
