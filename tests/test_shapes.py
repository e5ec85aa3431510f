"""ShapeDtype and signature."""

import numpy as np
import pytest
import torch

from trax_torch import shapes
from trax_torch.shapes import ShapeDtype, signature


def test_a_shape_dtype_takes_types_in_every_tongue():
    """numpy types, names and torch types say the same."""
    ways = [np.int32, "int32", torch.int32, np.dtype("int32")]

    assert len({ShapeDtype((2,), way) for way in ways}) == 1
    assert ShapeDtype(3, np.float64).as_tuple() == ((3,), torch.float32)
    assert ShapeDtype((1, 2)).replace(shape=(4,)).shape == (4,)


def test_a_type_that_torch_does_not_know_is_refused():
    with pytest.raises(TypeError, match="names no torch type"):
        ShapeDtype((2,), "int7")


def test_a_signature_mirrors_the_nest():
    nest = (torch.zeros(2, 3), [np.zeros(4, np.int32), None], {"a": 1.5})

    assert str(signature(nest)) == (
        "(ShapeDtype{shape:(2, 3), dtype:float32}, [ShapeDtype{shape:(4,), dtype:int32}, None], "
        "{'a': ShapeDtype{shape:(), dtype:float32}})"
    )
    with pytest.raises(TypeError, match="made of arrays, tensors or ShapeDtypes; got str"):
        signature("text")


def test_shapes_that_differ_are_named():
    with pytest.raises(ValueError, match=r"got \(2,\) and \(3,\)"):
        shapes.assert_same_shape(torch.zeros(2), torch.zeros(3))


def test_a_shape_that_should_be_another_is_named():
    shapes.assert_shape_equals(np.zeros((2, 3)), (2, 3))
    with pytest.raises(ValueError, match=r"got \(2,\) and \(4,\)"):
        shapes.assert_shape_equals(torch.zeros(2), [4])


def test_signatures_are_spliced_in_order():
    """Tuples and lists lose their brackets, empty ones leave nothing; one alone is no tuple."""
    a, b, c, d = (ShapeDtype((n,)) for n in range(4))

    assert shapes.splice_signatures(a, (b, [c][0]), (), [d]) == (a, b, c, d)
    assert shapes.splice_signatures((), (a,)) is a
    assert shapes.splice_signatures() == ()


def test_a_signature_of_one_tensor_has_the_length_1():
    assert len(ShapeDtype((2, 3))) == 1
    assert bool(ShapeDtype(()))
