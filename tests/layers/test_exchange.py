"""Lists, numpy files, and devices: how tensors leave layers."""

import gzip

import numpy as np
import pytest
import torch

from trax_torch import layers as tl


def test_outputs_become_lists():
    """Nested as they were, of numpy's and torch's numbers alike."""
    assert tl.to_list(torch.ones(1, 2)) == [[1.0, 1.0]]
    assert tl.to_list((np.arange(2), [torch.tensor(True), torch.zeros(0)])) == [[0, 1], [True, []]]


def test_arrays_are_written_and_read_again(tmp_path):
    """In order, with types and shapes; a second file takes the place of the first."""
    arrays = [np.zeros((2, 0), np.int8), np.array(2.5), np.arange(6, dtype=np.float16)[::2]]
    path = str(tmp_path / "x.npy.gz")
    tl.np_to_file([np.zeros(1)], path, compresslevel=9)

    tl.np_to_file([*arrays, torch.full((2,), 1.5, dtype=torch.bfloat16)], path, compresslevel=2)

    *same, wide = tl.np_from_file(path, compresslevel=2)
    for array, read in zip(arrays, same, strict=True):
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        assert np.array_equal(read, array)
    assert (wide.dtype, wide.tolist()) == (np.float32, [1.5, 1.5])
    assert [p.name for p in tmp_path.iterdir()] == ["x.npy.gz"]


def test_a_file_is_whole_or_as_it_was(tmp_path):
    """What cannot be written as plain numbers is refused, and nothing is left behind."""
    path = str(tmp_path / "x.npy.gz")
    tl.np_to_file([np.arange(3)], path, compresslevel=1)

    with pytest.raises(ValueError, match="allow_pickle"):
        tl.np_to_file([np.arange(4), np.array([object()])], path, compresslevel=1)

    assert [a.tolist() for a in tl.np_from_file(path, compresslevel=1)] == [[0, 1, 2]]
    assert [p.name for p in tmp_path.iterdir()] == ["x.npy.gz"]


def test_a_damaged_file_is_an_error(tmp_path):
    """Trax gives the arrays before the damage."""
    path = tmp_path / "x.npy.gz"
    tl.np_to_file([np.arange(300), np.arange(300)], str(path), compresslevel=1)
    path.write_bytes(path.read_bytes()[:-200])

    with pytest.raises(EOFError):
        tl.np_from_file(str(path), compresslevel=1)
    path.write_bytes(gzip.compress(b"no array"))
    with pytest.raises(ValueError, match="pickle"):
        tl.np_from_file(str(path), compresslevel=1)


def test_a_nest_is_moved_to_the_host():
    """Tensors alone; without CUDA the accelerator is the host, too."""
    x = torch.ones(2)
    nest = (x, [np.zeros(1)], {"a": 3})

    moved = tl.on_cpu(nest)

    assert moved[0] is x
    assert moved[1][0] is nest[1][0]
    if not torch.cuda.is_available():
        assert tl.on_accelerator(nest) is nest
    else:
        assert tl.on_accelerator(nest)[0].is_cuda
        assert tl.on_cpu(tl.on_accelerator(nest))[0].device.type == "cpu"
