"""The slots of Trax's optimizers fall to the weights they were made for."""

import figures
import numpy as np
import pytest
import torch
import trax_files
from hypothesis import given, settings
from hypothesis import strategies as st
from trax_checkpoints import ADAM, BN

from trax_torch.interop import trax_checkpoint as tc


def checkpoint_of(weights, slots):
    def tensors(items):
        return tuple(torch.as_tensor(np.asarray(item)) for item in items)

    return tc.TraxCheckpoint(
        "model.pkl.gz", 0, tensors(weights), (), (), (tensors(slots),), None, {}, None, ""
    )


@pytest.mark.parametrize("name", figures.names("optimizer"))
def test_slots_are_grouped_as_trax_made_them(name):
    """The slots of every optimizer, as Trax left them, fall to the weights they were made for."""
    info, slots = figures.case(name), figures.parts(name, "finalslots")
    weights = figures.parts(name, "w")

    groups = tc.slots_by_weight(checkpoint_of(weights, slots), 0, info["name"])

    assert len(groups) == len(weights)
    flat = [slot.numpy() for group in groups for slot in group]
    assert all(np.array_equal(a, b) for a, b in zip(flat, slots, strict=True))
    if info["name"] in ("Adam", "Momentum", "RMSProp"):
        for weight, group in zip(weights, groups, strict=True):
            assert {slot.shape for slot in group} == {weight.shape}
    else:
        assert all(
            {size for s in g for size in s.shape} <= set(w.shape)
            for w, g in zip(weights, groups, strict=True)
        )


SLOTS_IN_TRAX = {
    "SGD": lambda w, a, b: None,
    "Momentum": lambda w, a, b: w,
    "RMSProp": lambda w, a, b: w,
    "Adam": lambda w, a, b: (w, w + 1),
    "Adafactor": lambda w, a, b: (
        ([w.sum(-1), w.sum(-2)] if a and w.ndim >= 2 else [w]) + ([w] if b else [])
    ),
    "SM3": lambda w, a, b: (
        w if a else [],
        [np.zeros(n) for n in w.shape],
        [np.ones(n) for n in w.shape] if b else [],
    ),
}


def leaves(tree):
    if isinstance(tree, (list, tuple)):
        return [leaf for item in tree for leaf in leaves(item)]
    return [] if tree is None else [tree]


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(SLOTS_IN_TRAX)),
    shapes=st.lists(st.lists(st.integers(1, 4), max_size=3), max_size=5),
    flags=st.tuples(st.booleans(), st.booleans()),
)
def test_grouping_undoes_flattening(tmp_path_factory, name, shapes, flags):
    """Whatever the shapes and the optimizer's arguments, each weight gets its own slots back."""
    weights = [
        np.arange(np.prod(s, dtype=int), dtype=float).reshape(s) + i for i, s in enumerate(shapes)
    ]
    trees = [SLOTS_IN_TRAX[name](w, *flags) for w in weights]
    folder = tmp_path_factory.mktemp("slots", numbered=True)
    path = trax_files.write_older(
        folder / "model.pkl.gz", 4, flat_weights=weights, slots=tuple(trees)
    )

    groups = tc.slots_by_weight(tc.read(path), 0, name)

    for group, tree in zip(groups, trees, strict=True):
        want = leaves(tree)
        assert [g.tolist() for g in group] == [w.tolist() for w in want]


def test_slots_of_another_optimizer_are_named():
    """The first slot that does not fit is named with both shapes."""
    with pytest.raises(
        tc.MismatchError, match=r"Adam's slots\[1\] has shape \(4,\) in the file wh"
    ):
        tc.slots_by_weight(tc.read(BN), 0, "Adam")
    with pytest.raises(tc.MismatchError, match=r"SM3's slots\[1\] has shape .* where .* is needed"):
        tc.slots_by_weight(tc.read(ADAM), 0, "SM3")
    assert len(tc.slots_by_weight(tc.read(BN), 0, "Momentum")) == 6


def test_tasks_and_optimizers_that_are_not_there_are_named():
    """A wrong argument says what there is."""
    with pytest.raises(tc.MismatchError, match="has the slots of 1 tasks; task 1 was asked for"):
        tc.slots_by_weight(tc.read(ADAM), 1, "Adam")
    with pytest.raises(ValueError, match=r"known of SGD, Momentum, .* got 'AdamW'"):
        tc.slots_by_weight(tc.read(ADAM), 0, "AdamW")
