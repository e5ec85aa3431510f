"""Digests are alike for what is equal to the last bit, and for nothing else."""

import types

import numpy as np
import pytest
import torch

from trax_torch._digest import digest

T = torch.tensor([1.0, 2.0])


class Graph:
    """An object that holds itself, too."""

    def __init__(self, x):
        self.x, self.me = x, self


PAIRS = {
    "a bit": (T, torch.nextafter(T, torch.tensor(9.0))),
    "a type": (T, T.double()),
    "a shape": (T, T[None]),
    "a place": ((T, 1), (1, T)),
    "a name": ({"x": T}, {"y": T}),
    "a number": (1, 2),
    "a text": ("a", "b"),
    "an array": (np.arange(3), np.arange(3) + 1),
    "an object": (types.SimpleNamespace(x=T), types.SimpleNamespace(x=T + 1)),
    "an object's object": (
        types.SimpleNamespace(x=[Graph(T)]),
        types.SimpleNamespace(x=[Graph(2 * T)]),
    ),
    "a half": (np.float32(1), np.float32(2)),
    "texts in arrays": (np.array(["a"], object), np.array(["b"], object)),
    "zero's sign": (torch.tensor(0.0), torch.tensor(-0.0)),
    "half": (T.bfloat16(), T.bfloat16() * 2),
    "sparse": (T.to_sparse(), (2 * T).to_sparse()),
    "conjugate": (torch.tensor([1 + 2j]).conj(), torch.tensor([1 + 2j])),
}


@pytest.mark.parametrize(("one", "other"), PAIRS.values(), ids=PAIRS)
def test_other_batches_have_other_digests(one, other):
    assert digest(one) != digest(other)
    assert digest(one) == digest(one)


def test_memory_order_does_not_count():
    x = torch.arange(6.0).view(2, 3)

    assert digest(x.t().contiguous()) == digest(x.t())
    assert digest(np.asfortranarray(x.numpy())) == digest(x.numpy())


def test_an_object_of_the_same_attributes_is_the_same():
    """Wherever it lies in memory."""
    assert digest(Graph(T)) == digest(Graph(T.clone()))


def test_what_has_no_attributes_is_its_type_alone():
    assert digest(object()) == digest(object()) != digest(1)
    assert digest(()) != digest((1,))
