"""Pieces make up a whole, or the manifest that lists them is refused."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trax_torch._errors import CheckpointError
from trax_torch.supervised._checkpoint import shards


def written(rank, at, extents, shape=(4, 3)):
    """What a rank says that it wrote of one tensor."""
    piece = {"shape": list(shape), "dtype": "float32", "at": at, "extents": extents}
    entry = {"name": f"model.w.rank{rank}", "size": 1000, "header": 80, "sha256": "0"}
    return {"weights": {"file": entry, "tensors": {"w": piece | {"sha256": str(rank)}}}}


def test_pieces_of_all_ranks_are_listed_once_each():
    """A copy of a piece, as where ranks train the same rows of a mesh, is not."""
    ranks = [written(0, [0, 0], [3, 3]), written(1, [3, 0], [1, 3]), written(2, [0, 0], [3, 3])]
    pieces = shards.listed(ranks)["weights"]["tensors"]["w"]["pieces"]

    assert [(piece["file"], piece["at"]) for piece in pieces] == [(0, [0, 0]), (1, [3, 0])]


@pytest.mark.parametrize(
    "second", [([2, 0], [2, 3]), ([3, 0], [1, 2]), ([4, 0], [1, 3]), ([3], [1])]
)
def test_pieces_that_overlap_leave_gaps_or_lie_outside_are_refused(second):
    with pytest.raises(CheckpointError, match="w of the weights cannot be saved: its pieces on 2"):
        shards.listed([written(0, [0, 0], [3, 3]), written(1, *second)])


def good():
    ranks = [written(0, [0, 0], [3, 3]), written(1, [3, 0], [1, 3])]
    return shards.listed(ranks)


def set_piece(key, value):
    return lambda part: part["tensors"]["w"]["pieces"][1].update({key: value})


@pytest.mark.parametrize(
    "spoil",
    [
        *(set_piece("at", at) for at in ([2, 0], [-3, 0], [3.0, 0], [3], "30", None)),
        *(set_piece("extents", n) for n in ([2**60, 3], [1, 2], [True, 3])),
        *(set_piece("file", n) for n in (2, -1, 0.5)),
        set_piece("sha256", 7),
        lambda part: part["tensors"]["w"].update(shape=[2**40, 2**40]),
        lambda part: part["tensors"]["w"].update(shape=[5, 3]),
        lambda part: part["tensors"]["w"].update(dtype="load"),
        lambda part: part["tensors"]["w"].pop("pieces"),
        lambda part: part["files"][1].update(size=91),
        lambda part: part["files"][1].pop("name"),
        lambda part: part.update(files={}),
        lambda part: part.update(tensors=[]),
    ],
)
def test_a_list_made_by_hand_that_cannot_be_is_refused(spoil):
    """No more memory is asked for than the files have bytes."""
    spoilt = copy.deepcopy(good())
    spoil(spoilt["weights"])

    assert shards.is_well_formed(good())
    assert not shards.is_well_formed(spoilt)
    assert not shards.is_well_formed(None)
    assert not shards.is_well_formed({"weights": []})


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_boxes_overlap_if_and_only_if_they_have_an_element_in_common(data):
    """Compared with a count of every element."""
    n = data.draw(st.integers(1, 4))
    axis = st.tuples(st.integers(0, 3), st.integers(1, 3))
    boxes = [tuple(zip(*data.draw(st.tuples(axis, axis)), strict=True)) for _ in range(n)]
    counts = torch.zeros(6, 6)
    for at, extents in boxes:
        counts[tuple(slice(i, i + k) for i, k in zip(at, extents, strict=True))] += 1

    assert shards._overlap(boxes) == bool((counts > 1).any())
    pairs = itertools.combinations(boxes, 2)
    assert shards._overlap(boxes) == any(shards._common(a, b) for a, b in pairs)
