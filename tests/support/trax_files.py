"""Writes small files like Trax's, with numpy's own pickles and stand-ins for Trax's classes."""

import contextlib
import gzip
import io
import pickle
import sys
import types

import numpy as np
import pytest


class History:
    def __init__(self, values):
        self._values = values


class Signature:
    __slots__ = ["dtype", "shape"]

    def __init__(self, shape, dtype):
        self.shape = shape
        self.dtype = dtype


class bfloat16:
    pass


def reconstruct_array(*args):
    pass


def reconstruct_device_array(*args):
    pass


STAND_INS = {
    ("trax.supervised.history", "History"): History,
    ("trax.shapes", "ShapeDtype"): Signature,
    ("jax._src.array", "_reconstruct_array"): reconstruct_array,
    ("jax._src.device_array", "reconstruct_device_array"): reconstruct_device_array,
    ("ml_dtypes", "bfloat16"): bfloat16,
}
for (_module, _name), _item in STAND_INS.items():  # what pickle writes
    _item.__module__, _item.__name__, _item.__qualname__ = _module, _name, _name


class Reduced:
    """Pickles as it is told."""

    def __init__(self, *reduced):
        self._reduced = reduced

    def __reduce__(self):
        return self._reduced


def jax_array(array, by=reconstruct_array):
    """Returns what pickles as JAX's arrays do."""
    function, args, state = np.asarray(array).__reduce__()
    return Reduced(by, (function, args, state, {"weak_type": False, "named_shape": {}}))


@contextlib.contextmanager
def stand_ins():
    with pytest.MonkeyPatch.context() as patch:
        for (module, name), item in STAND_INS.items():
            parts = module.split(".")
            for i in range(len(parts)):
                path = ".".join(parts[: i + 1])
                if path not in sys.modules:
                    patch.setitem(sys.modules, path, types.ModuleType(path))
            patch.setattr(sys.modules[module], name, item, raising=False)
        yield


def write_pickle(path, value, protocol=4):
    with stand_ins():
        data = pickle.dumps(value, protocol=protocol)
    path.write_bytes(gzip.compress(data, 2))
    return path


def write_arrays(path, arrays):
    out = io.BytesIO()
    for array in arrays:
        np.save(out, array, allow_pickle=False)
    path.write_bytes(gzip.compress(out.getvalue(), 2))


def write_older(path, protocol=3, **changes):
    """Writes a small checkpoint in the format before today's."""
    value = {
        "step": 7,
        "flat_weights": [np.arange(6, dtype=np.float32).reshape(2, 3), np.array(5, np.float32)],
        "slots": ((np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)), [np.ones(())]),
        "opt_params": {"learning_rate": np.array(0.5, np.float32)},
        "history": History({"train": {"loss": [(1, np.float32(0.25)), (2, 0.1)]}}),
        "flat_state": [np.array(0.05, np.float32)],
        "input_signature": (Signature((4, 3), np.dtype("int64")),),
        "version_timestamp": "Jun-18-2020",
    }
    return write_pickle(path, {**value, **changes}, protocol)


def write_today(folder, weights=((2, 3), (3,)), n_tasks=1, **changes):
    """Writes a small checkpoint in today's format."""
    arrays = [np.full(shape, i + 1, np.float32) for i, shape in enumerate(weights)]
    value = {
        "step": 3,
        "flat_weights": 2,
        "flat_state": [],
        "flat_eval_state": [],
        "history": {"_values": {}},
        "slots_per_task": 2,
        "input_signature": (Signature((4, 2), np.dtype("float32")),),
        "version_timestamp": "Mar-10-2021",
    }
    write_arrays(folder / "model.weights.npy.gz", arrays)
    for i in range(n_tasks):
        write_arrays(folder / f"model.opt_slots{i}.npy.gz", [a for a in arrays for _ in "mv"])
    return write_pickle(folder / "model.pkl.gz", {**value, **changes}, protocol=5)
