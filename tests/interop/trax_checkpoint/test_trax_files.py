"""Files of Trax's are read whole and exactly, or what is wrong with them is named."""

import gzip
import sys

import figures
import numpy as np
import pytest
import torch
import trax_files
from trax_checkpoints import ADAM, BN, LM, OLDER, needs_older

from trax_torch.interop import trax_checkpoint as tc
from trax_torch.shapes import ShapeDtype


@pytest.mark.parametrize(
    ("path", "step", "n_weights", "n_slots", "signature"),
    [
        (LM, 800, 38, 76, ShapeDtype((32, 16), torch.int32)),
        (ADAM, 2, 22, 44, ShapeDtype((4, 12), torch.int32)),
        (BN, 2, 6, 6, ShapeDtype((4, 5, 5, 3))),
    ],
)
@pytest.mark.parametrize("ending", ["", ".pkl.gz"])
def test_todays_checkpoints_load(path, step, n_weights, n_slots, signature, ending):
    """Files of Trax 1.4.1 load with all they hold, by either form of their name."""
    checkpoint = tc.read(str(path).removesuffix(".pkl.gz") + ending)

    assert checkpoint.step == step
    assert len(checkpoint.flat_weights) == n_weights
    assert [len(slots) for slots in checkpoint.slots_per_task] == [n_slots]
    assert checkpoint.input_signature == signature
    assert checkpoint.version == "Mar-10-2021"
    assert checkpoint.opt_params is None


def test_weights_equal_those_in_trax_bit_for_bit():
    """What Trax held in memory when it saved is what is read."""
    checkpoint = tc.read(LM)

    wanted = figures.parts("checkpoint", "w")
    assert len(wanted) == len(checkpoint.flat_weights)
    for got, want in zip(checkpoint.flat_weights, wanted, strict=True):
        assert torch.equal(got, torch.from_numpy(want))


def test_state_of_both_modes_is_read():
    """BatchNorm's statistics and Dropout's rate come in Trax's order, for train and for eval."""
    checkpoint = tc.read(BN)

    assert [tuple(t.shape) for t in checkpoint.flat_state] == [(1, 1, 1, 4), (1, 1, 1, 4), (), ()]
    assert [t.dtype for t in checkpoint.flat_state][2:] == [torch.int32, torch.float32]
    assert [int(s[2]) for s in (checkpoint.flat_state, checkpoint.flat_eval_state)] == [2, 1]


def test_history_is_plain_and_exact():
    """Numbers stored as floats, numpy scalars and JAX arrays all come back as Python numbers."""
    history = tc.read(ADAM).history

    assert set(history) == {"train", "eval"}
    assert history["train"]["training/steps per second"] == [(1, 0.47183169810989645)]
    assert history["eval"]["metrics/WeightedCategoryCrossEntropy"] == [(1, 1.9667664766311646)]
    loss = history["train"]["training/loss"][0][1]
    assert type(loss) is float
    assert loss == float(np.float32(2.8225317))


def test_arrays_share_no_memory_with_each_other():
    """Writing to one tensor of a checkpoint changes no other."""
    checkpoint = tc.read(LM)

    tensors = (*checkpoint.flat_weights, *checkpoint.slots_per_task[0], *checkpoint.flat_state)
    assert len({t.data_ptr() for t in tensors}) == len(tensors)
    assert all(t.is_contiguous() for t in tensors)


def test_reading_imports_nothing():
    """No module that a file names is looked for."""
    assert not {"jax", "trax", "ml_dtypes"} & set(sys.modules)
    before = set(sys.modules)

    tc.read(ADAM)
    tc.read(BN)

    assert set(sys.modules) == before


@needs_older
def test_the_older_format_loads():
    """One file of 2020 holds weights, slots, optimizer parameters and a pickled History."""
    checkpoint = tc.read(OLDER)

    assert checkpoint.step == 5100
    assert checkpoint.version == "Jun-18-2020"
    assert checkpoint.flat_weights[1].shape == (1, 256, 64)
    assert checkpoint.opt_params["b2"] == float(np.float32(0.999))
    assert checkpoint.history["eval"]["metrics/accuracy"][-1][0] == 5100
    assert [s.shape for s in checkpoint.input_signature] == [(128, 12)] * 3
    pairs = tc.slots_by_weight(checkpoint, 0, "Adam")
    for weight, (m, v) in zip(checkpoint.flat_weights, pairs, strict=True):
        assert weight.shape == m.shape == v.shape
        assert (v >= 0).all()


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_every_pickle_protocol_of_arrays_is_read(tmp_path, protocol):
    """numpy pickles arrays in one way up to protocol 4 and in another since; both are read."""
    path = trax_files.write_older(tmp_path / "model.pkl.gz", protocol)

    checkpoint = tc.read(path)

    assert checkpoint.step == 7
    assert [w.tolist() for w in checkpoint.flat_weights] == [[[0, 1, 2], [3, 4, 5]], 5]
    assert [tuple(s.shape) for s in checkpoint.slots_per_task[0]] == [(2, 3), (2, 3), ()]
    assert checkpoint.opt_params == {"learning_rate": 0.5}
    assert checkpoint.history == {"train": {"loss": [(1, 0.25), (2, 0.1)]}}
    assert checkpoint.input_signature == ShapeDtype((4, 3), torch.int64)


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("dtype", ["?", "b", "h", "i", "q", "B", "I", "Q", "e", "f", "d"])
def test_every_type_and_memory_order_is_kept(tmp_path, dtype, protocol):
    """An array comes back with its type, shape and values, also one stored by columns."""
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    items = [array, np.asfortranarray(array), array[:, :0], array[0, 0, 1]]
    path = trax_files.write_older(tmp_path / "model.pkl.gz", protocol, flat_weights=items)

    weights = tc.read(path).flat_weights

    for got, want in zip(weights, items, strict=True):
        assert got.numpy().dtype == want.dtype
        assert np.array_equal(got.numpy(), want)


def test_arrays_beside_the_pickle_keep_type_and_memory_order(tmp_path):
    """The same holds for arrays in today's .npy files."""
    items = [np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.ones((0, 2), np.int8), np.array(3)]
    path = trax_files.write_today(tmp_path)
    trax_files.write_arrays(tmp_path / "model.weights.npy.gz", items)

    weights = tc.read(path).flat_weights

    assert [w.tolist() for w in weights] == [w.tolist() for w in items]
    assert [w.dtype for w in weights] == [torch.float64, torch.int8, torch.int64]


@pytest.mark.parametrize("place", ["pickle", "npy", "JAX"])
def test_bfloat16_comes_back_as_bfloat16(tmp_path, place):
    """Trax stores bfloat16 weights as unsigned 16-bit integers, state as JAX pickles it."""
    want = torch.tensor([1.0, -2.5, 3e38]).to(torch.bfloat16)
    bits = want.view(torch.uint16).numpy()
    if place == "npy":
        path = trax_files.write_today(tmp_path)
        trax_files.write_arrays(tmp_path / "model.weights.npy.gz", [bits])
    elif place == "pickle":
        path = trax_files.write_older(tmp_path / "model.pkl.gz", flat_weights=[bits])
    else:
        dtype = trax_files.Reduced(
            np.dtype, (trax_files.bfloat16, False, True), (3, "<", *[None] * 3, -1, -1, 0)
        )
        function, args, _ = bits.__reduce__()
        array = trax_files.Reduced(function, args, (1, (3,), dtype, False, bits.tobytes()))
        path = trax_files.write_older(tmp_path / "model.pkl.gz", flat_weights=[array])

    (got,) = tc.read(path).flat_weights

    assert got.dtype == torch.bfloat16
    assert torch.equal(got, want)


@pytest.mark.parametrize("by", [trax_files.reconstruct_array, trax_files.reconstruct_device_array])
def test_jax_arrays_of_either_age_are_read(tmp_path, by):
    """JAX has pickled its arrays under two names."""
    path = trax_files.write_today(tmp_path, flat_state=[trax_files.jax_array(np.float32(0.5), by)])

    (state,) = tc.read(path).flat_state

    assert state.item() == 0.5


def test_metrics_that_are_no_single_numbers_are_kept(tmp_path):
    """Trax records images too; they stay tensors."""
    values = {"train": {"image": [(1, np.ones((2, 2), np.float32))]}}
    path = trax_files.write_today(tmp_path, history={"_values": values})

    ((step, value),) = tc.read(path).history["train"]["image"]

    assert step == 1
    assert torch.equal(value, torch.ones(2, 2))


def test_a_long_history_is_no_flood(tmp_path):
    """A metric that has one value for ever packs best; it is read however long it is."""
    value = np.array(1, np.float32)
    entries = [(100 * i, trax_files.jax_array(value)) for i in range(4000)]
    path = trax_files.write_today(tmp_path, history={"_values": {"eval": {"accuracy": entries}}})

    history = tc.read(path).history

    assert history == {"eval": {"accuracy": [(100 * i, 1.0) for i in range(4000)]}}


def test_files_of_save_to_file_are_read(tmp_path):
    """Layer.save_to_file writes a pickle of weights, perhaps with state and signature."""
    weights = [np.ones((2, 3), np.float32)]
    full = {
        "flat_weights": weights,
        "flat_state": [trax_files.jax_array(np.float32(0.1))],
        "input_signature": trax_files.Signature((4, 2), np.float32),
    }
    trax_files.write_pickle(tmp_path / "full.pkl.gz", full, protocol=5)
    trax_files.write_pickle(tmp_path / "bare", {"flat_weights": weights}, protocol=5)

    full = tc.read(tmp_path / "full.pkl.gz")
    bare = tc.read(tmp_path / "bare")

    assert full.step is bare.step is None
    assert full.version == bare.version == ""
    assert torch.equal(full.flat_weights[0], bare.flat_weights[0])
    assert len(full.flat_state) == 1
    assert bare.flat_state == bare.slots_per_task == ()
    assert full.input_signature == ShapeDtype((4, 2))
    assert bare.input_signature is None


@pytest.mark.parametrize("level", [0, 2])
def test_uncompressed_checkpoints_are_read(tmp_path, level):
    """Trax's memory-efficient trainer writes its files with compression level 0."""
    path = trax_files.write_today(tmp_path, flat_weights=level, slots_per_task=level)
    file = tmp_path / "model.weights.npy.gz"
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()), level))

    assert len(tc.read(path).flat_weights) == 2


def test_slots_of_several_tasks_are_read(tmp_path):
    """Each task has a file; without slots' files there are none, and a gap is an error."""
    path = trax_files.write_today(tmp_path, n_tasks=3)

    assert [len(s) for s in tc.read(path).slots_per_task] == [4, 4, 4]
    assert tc.read(path, with_slots=False).slots_per_task == ()
    (tmp_path / "model.opt_slots1.npy.gz").unlink()
    with pytest.raises(tc.CheckpointError, match=r"opt_slots1\.npy\.gz, which is missing"):
        tc.read(path)
    for i in (0, 2):
        (tmp_path / f"model.opt_slots{i}.npy.gz").unlink()
    assert tc.read(path).slots_per_task == ()


def test_no_file_is_a_file_not_found_error(tmp_path):
    """A missing file is told from a damaged one."""
    with pytest.raises(FileNotFoundError, match=r"model\.pkl\.gz"):
        tc.read(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match=r"model\.pkl\.gz"):
        tc.read(tmp_path / "nowhere" / "model")


def test_weights_that_are_missing_are_named(tmp_path):
    """A checkpoint without its weights' file is incomplete."""
    path = trax_files.write_today(tmp_path)
    (tmp_path / "model.weights.npy.gz").unlink()

    with pytest.raises(tc.CheckpointError, match=r"model\.weights\.npy\.gz, which is missing"):
        tc.read(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flat_weights": "weights"}, "flat_weights is not of the form"),
        ({"flat_weights": ["weight"]}, "flat_weights holds something else than arrays"),
        ({"flat_state": [None]}, "flat_state holds something else"),
        ({"step": "seven"}, "step holds something else"),
        ({"step": -1}, "step is no number of steps"),
        ({"step": np.ones(2)}, "step has an array where a number is needed"),
        ({"opt_params": {"b1": np.ones(2)}}, "opt_params has an array"),
        ({"opt_params": [0.5]}, "opt_params is not of the form"),
        ({"history": {"_values": {"train": [1]}}}, "history is not of the form"),
        ({"history": {"_values": {"train": {"loss": [(1, 2, 3)]}}}}, "than .step, value."),
        ({"input_signature": (3, 4)}, "something else than ShapeDtypes"),
        ({"version_timestamp": 3}, "version_timestamp is no date"),
    ],
)
def test_contents_of_another_form_are_named(tmp_path, changes, message):
    """A pickle of harmless things that Trax does not write is refused, and the item named."""
    path = trax_files.write_older(tmp_path / "model.pkl.gz", **changes)

    with pytest.raises(tc.CheckpointError, match=message) as caught:
        tc.read(path)

    assert str(path) in str(caught.value)


def test_max_bytes_bounds_what_is_unpacked(tmp_path):
    """The cap counts all files together, and the message says how to raise it."""
    path = trax_files.write_today(tmp_path, weights=[(100, 100)])

    assert len(tc.read(path, max_bytes=150_000).flat_weights) == 1
    assert len(tc.read(path, max_bytes=50_000, with_slots=False).flat_weights) == 1
    with pytest.raises(tc.UnsafeCheckpointError, match="max_bytes=100000; if you trust"):
        tc.read(path, max_bytes=100_000)
