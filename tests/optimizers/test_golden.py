"""Optimizers follow Trax's rules, step by step."""

import figures
import numpy as np
import pytest
import torch

from trax_torch import _nest, optimizers
from trax_torch import layers as tl
from trax_torch.optimizers.trainer import Trainer


class GivenGradients(tl.Layer):
    """A loss whose gradients are whatever the batch says."""

    def __init__(self, weights):
        super().__init__(n_in=len(weights))
        self.ws = torch.nn.ParameterList([torch.nn.Parameter(torch.tensor(w)) for w in weights])

    def forward(self, grads):
        grads = grads if isinstance(grads, tuple) else (grads,)
        return sum((w * g).sum() for w, g in zip(self.ws, grads, strict=True))


@pytest.mark.parametrize("name", figures.names("optimizer"))
def test_an_optimizer_takes_the_steps_of_trax(name):
    """Weights, gradients_l2 and weights_l2 equal Trax's at every step."""
    info = figures.case(name)
    recipe = getattr(optimizers, info["name"])
    model = GivenGradients(figures.parts(name, "w"))
    trainer = Trainer(model, recipe(**info["kwargs"]))

    for step in range(1, info["n_steps"] + 1):
        grads = tuple(torch.from_numpy(np.array(g)) for g in figures.parts(name, f"step{step}_g"))
        _, stats = trainer.one_step(figures.bare(list(grads)), step=step)

        for key in ("gradients_l2", "weights_l2"):
            want = figures.part(name, f"step{step}_{key}")
            figures.assert_close(stats[key], want, 1e-4)
        for w, want in zip(model.ws, figures.parts(name, f"step{step}_w"), strict=True):
            figures.assert_close(w.detach(), want, 1e-4)


@pytest.mark.parametrize("name", figures.names("optimizer"))
def test_a_recipe_as_functions_takes_the_steps_of_trax(name):
    """tree_init and tree_update: weights, slots in Trax's form and norms; inputs do not change."""
    info = figures.case(name)
    recipe = getattr(optimizers, info["name"])(**info["kwargs"])
    weights = tuple(figures.parts(name, "w"))
    slots, opt_params = recipe.tree_init(weights)

    for step in range(1, info["n_steps"] + 1):
        before = [w.copy() for w in weights]
        given = weights
        weights, slots, stats = recipe.tree_update(
            step, tuple(figures.parts(name, f"step{step}_g")), weights, slots, opt_params
        )
        for w, old in zip(given, before, strict=True):
            assert np.array_equal(w, old)
        for key, value in stats.items():
            figures.assert_close(value, figures.part(name, f"step{step}_{key}"), 1e-4)
        for w, want in zip(weights, figures.parts(name, f"step{step}_w"), strict=True):
            assert isinstance(w, np.ndarray)
            figures.assert_close(w, want, 1e-4)

    assert recipe.slots is slots
    flat = [x for x in _nest.leaves(slots) if x is not None]
    for mine, want in zip(flat, figures.parts(name, "finalslots"), strict=True):
        figures.assert_close(mine, want, 1e-4)
