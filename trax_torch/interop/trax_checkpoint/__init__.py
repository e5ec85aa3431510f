"""What Trax wrote: checkpoints and files of weights, read without running anything in them.

`read` gives a file's contents as tensors, `load_into` fills a layer with them, `slots_by_weight`
sorts the optimizer's slots. `python -m trax_torch.interop.trax_checkpoint IN OUT_DIR` converts to
safetensors and JSON. Trax's formats are never written here.

To this module a file is data: names in a pickle stand for plain records, and time and memory grow
with the size of the files and never faster.
"""

import argparse
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from trax_torch import layers as tl
from trax_torch._errors import CheckpointError, MismatchError, UnsafeCheckpointError
from trax_torch.interop import _arrays, _contents, _gzip, _mismatch, _safe_pickle, _slots
from trax_torch.shapes import ShapeDtype

__all__ = [
    "CheckpointError",
    "MismatchError",
    "TraxCheckpoint",
    "UnsafeCheckpointError",
    "convert",
    "load_into",
    "read",
    "slots_by_weight",
]

_ENDING = ".pkl.gz"
_MIB = 1 << 20

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True, eq=False)
class TraxCheckpoint:
    """What a file of Trax's holds.

    Arrays are CPU tensors of their stored type and shape; each has memory of its own. What Trax
    stores as unsigned 16-bit integers is bfloat16 here, which is what it means there.

    Attributes:
      path: the file it was read from.
      step: the training step; None in a file that `Layer.save_to_file` wrote.
      flat_weights: the model's weights in Trax's order.
      flat_state: its state in train mode; empty where a file has none.
      flat_eval_state: its state in eval mode; empty in the older format.
      slots_per_task: for each task, the optimizer's slots in Trax's order. Empty where the slots'
        files are missing; a task whose optimizer has no slots has ().
      opt_params: the optimizer's parameters; None in today's format.
      history: {mode: {metric: [(step, value)]}}, values being numbers, or tensors where Trax
        recorded more than a number.
      input_signature: a ShapeDtype, or a tuple where there are several; None where a file has none.
        The older format has the whole batch's: inputs, targets, weights.
      version: the format's date, such as 'Mar-10-2021'; '' in a file of `Layer.save_to_file`.
    """

    path: str
    step: int | None
    flat_weights: Tensors = field(repr=False)
    flat_state: Tensors = field(repr=False)
    flat_eval_state: Tensors = field(repr=False)
    slots_per_task: tuple[Tensors, ...] = field(repr=False)
    opt_params: dict[str, float] | None
    history: dict[str, dict[str, list[tuple[int, Any]]]] = field(repr=False)
    input_signature: ShapeDtype | tuple[ShapeDtype, ...] | None
    version: str


def read(
    path: str | os.PathLike[str], max_bytes: int | None = None, with_slots: bool = True
) -> TraxCheckpoint:
    """Returns what a file of Trax's holds; nothing in it is run.

    Three formats are read: today's checkpoints ('Mar-10-2021': `<base>.pkl.gz` with
    `<base>.weights.npy.gz` and `<base>.opt_slots<i>.npy.gz` beside it), older ones ('Jun-18-2020':
    one `<base>.pkl.gz`), and the files of `Layer.save_to_file`.

    Trax writes the files of a checkpoint one after another and gives them nothing in common, so
    files of two saves, mixed after a crash, cannot be told from those of one.

    Args:
      path: the `.pkl.gz` file; the ending may be left out.
      max_bytes: how many bytes may be unpacked from all files together; arrays in a pickle count
        twice. By default 64 MiB and 32 times the size of the files.
      with_slots: reads the optimizer's slots too.

    Raises:
      FileNotFoundError: if there is no such file.
      CheckpointError: if a file is damaged, incomplete, or no regular file.
      UnsafeCheckpointError: if a file holds what Trax never writes.
    """
    file = _find(os.fspath(path))
    weights_file, slot_files = _companions(file)
    if max_bytes is None:
        sizes = [os.stat(f).st_size for f in (file, weights_file, *slot_files) if os.path.exists(f)]
        max_bytes = 64 * _MIB + 32 * sum(sizes)
    budget = _gzip.Budget(max_bytes)
    with _gzip.opened(file, budget) as reader:
        # A history of one value again and again has 13 opcodes to a byte of the packed file.
        max_opcodes = 50_000 + 20 * os.stat(file).st_size
        contents = _contents.Contents(_safe_pickle.load(reader.read_all(), max_opcodes), budget)
        weights_elsewhere = contents.is_elsewhere("flat_weights")
        slots_elsewhere = contents.is_elsewhere("slots_per_task")
        weights = () if weights_elsewhere else contents.tensors("flat_weights")
        slots = () if slots_elsewhere or not with_slots else contents.slots_per_task()
        rest: dict[str, Any] = {
            "step": contents.step(),
            "flat_state": contents.tensors("flat_state"),
            "flat_eval_state": contents.tensors("flat_eval_state"),
            "opt_params": contents.opt_params(),
            "history": contents.history(),
            "input_signature": contents.input_signature(),
            "version": contents.version(),
        }
    if weights_elsewhere:
        weights = _read_arrays(weights_file, budget, wanted_by=file)
    if slots_elsewhere and with_slots:
        slots = tuple(_read_arrays(f, budget, wanted_by=file) for f in slot_files)
    return TraxCheckpoint(path=file, flat_weights=weights, slots_per_task=slots, **rest)


def load_into(layer: tl.Layer, checkpoint: TraxCheckpoint, weights_only: bool = False) -> None:
    """Fills a layer's weights, and its state unless `weights_only`; all or nothing.

    A layer that has no weights yet is initialized for the checkpoint's `input_signature` first.
    Values are cast to the type of the layer's own.

    Args:
      layer: the model that the checkpoint was made with, in train or eval mode.
      checkpoint: what `read` returned.
      weights_only: leaves the state as it is.

    Raises:
      MismatchError: if number or shape of the arrays is another, with the first differences; the
        layer is as it was.
      ValueError: if the layer has no weights and the checkpoint no input signature.

    Example:
      >>> w, b = torch.ones(2, 3), torch.zeros(3)
      >>> checkpoint = TraxCheckpoint(
      ...     'model.pkl.gz', 0, (w, b), (), (), (), None, {}, ShapeDtype((1, 2)), '')
      >>> layer = tl.Dense(3)
      >>> load_into(layer, checkpoint)
      >>> layer(torch.ones(1, 2)).tolist()
      [[2.0, 2.0, 2.0]]

    Source: Trax `supervised/training.py::Loop.load_checkpoint`, which fills what fits, in order,
      and leaves the rest as it is; here that is an error.
    """
    signature = None if layer.is_initialized else _signature_for(layer, checkpoint)
    if signature is None:
        trees = layer.weights, layer.state
    else:
        try:
            trees = layer.weights_and_state_signature(signature)
        except tl.LayerError as error:
            raise MismatchError(
                f"{checkpoint.path} is of another model: {layer.name} cannot take the inputs its "
                f"model was made for, {signature}. Build the model as it was built in Trax."
            ) from error
    flat_weights, flat_state = tl.flatten_weights_and_state(*trees)
    weights = _fitted(checkpoint.flat_weights, flat_weights)
    state = list(checkpoint.flat_state)
    differences = _mismatch.differences(
        "weights", _mismatch.shapes(weights), _mismatch.shapes(flat_weights)
    )
    if not weights_only:
        differences += _mismatch.differences(
            "state", _mismatch.shapes(state), _mismatch.shapes(flat_state)
        )
    if differences:
        raise MismatchError(
            f"{checkpoint.path} is of another model than {layer.name}: "
            f"{_mismatch.first(differences)}. Build the model with the arguments it had in Trax; "
            f"weights_only=True leaves its state alone."
        )
    if signature is not None:
        layer.init(signature, rng=0)  # a seed, so that no one else's random numbers change
    new_weights, new_state = tl.unflatten_weights_and_state(weights, state, trees, weights_only)
    before = layer.state
    try:
        if not weights_only:
            layer.state = new_state
        layer.weights = new_weights
    except BaseException:
        layer.state = before
        raise


def slots_by_weight(
    checkpoint: TraxCheckpoint, task: int = 0, optimizer_name: str = "Adam"
) -> list[Tensors]:
    """Returns one task's optimizer slots, one tuple for each weight, in Trax's order of weights.

    | optimizer | slots of a weight |
    | --- | --- |
    | SGD | none |
    | Momentum | velocity |
    | RMSProp | mean square of the gradients |
    | Adam | m, v |
    | Adafactor | v; or, of two axes and more, v of rows, v of columns; then the momentum, if any |
    | SM3 | the momentum, if any; one accumulator an axis; as many again if it averages |

    How many Adafactor and SM3 keep, depends on their arguments in Trax; the shapes tell. Shapes
    are those of the file.

    Args:
      checkpoint: what `read` returned.
      task: which task.
      optimizer_name: the optimizer's name in Trax.

    Raises:
      ValueError: if there is no optimizer of this name.
      MismatchError: if there is no such task, or its slots are another optimizer's.

    Example:
      >>> w = torch.ones(2, 3)
      >>> checkpoint = TraxCheckpoint(
      ...     'model.pkl.gz', 0, (w,), (), (), ((w.sum(1), w.sum(0)),), None, {}, None, '')
      >>> slots_by_weight(checkpoint, optimizer_name='Adafactor')
      [(tensor([3., 3.]), tensor([2., 2., 2.]))]
    """
    if optimizer_name not in _slots.LAYOUTS:
        raise ValueError(
            f"Slots are known of {', '.join(_slots.LAYOUTS)}; got {optimizer_name!r}. Name the "
            f"optimizer as Trax does."
        )
    n_tasks = len(checkpoint.slots_per_task)
    if not 0 <= task < n_tasks:
        raise MismatchError(
            f"{checkpoint.path} has the slots of {n_tasks} tasks; task {task} was asked for. Tasks "
            f"count from 0, and their slots lie in files that must be beside the checkpoint."
        )
    slots = checkpoint.slots_per_task[task]
    sizes, differences = _slots.group(
        optimizer_name, _mismatch.shapes(checkpoint.flat_weights), _mismatch.shapes(slots)
    )
    if differences:
        raise MismatchError(
            f"{checkpoint.path} has the slots of another optimizer: "
            f"{_mismatch.first(differences)}. Name the one that the task was trained with in Trax."
        )
    items = iter(slots)
    return [tuple(next(items) for _ in range(size)) for size in sizes]


def _find(path: str) -> str:
    """Returns the file that `path` means, with or without its ending."""
    if path.endswith(_ENDING) or (os.path.exists(path) and not os.path.isdir(path)):
        return path
    if os.path.lexists(path + _ENDING) or not os.path.isdir(path):
        return path + _ENDING
    return path


def _companions(file: str) -> tuple[str, list[str]]:
    """Returns where the weights of a checkpoint in several files lie, and where its slots."""
    base = file.removesuffix(_ENDING)
    weights_file = f"{base}.weights.npy.gz"
    if not os.path.exists(weights_file) and os.path.exists(f"{file}.npy"):
        weights_file = f"{file}.npy"  # the name for a while between the two formats
    folder, name = os.path.split(base)
    pattern = re.compile(re.escape(name) + r"\.opt_slots([0-9]{1,4})\.npy\.gz")
    try:
        names = os.listdir(folder or ".")
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be listed: {error.strerror}.") from error
    numbers = [int(match[1]) for match in map(pattern.fullmatch, names) if match is not None]
    n_tasks = max(numbers, default=-1) + 1
    return weights_file, [f"{base}.opt_slots{i}.npy.gz" for i in range(n_tasks)]


def _read_arrays(file: str, budget: _gzip.Budget, wanted_by: str) -> Tensors:
    try:
        with _gzip.opened(file, budget) as reader:
            return tuple(_arrays.read_npy_stream(reader))
    except FileNotFoundError:
        raise CheckpointError(
            f"{wanted_by} keeps arrays in {file}, which is missing. Copy all of the checkpoint's "
            f"files to one folder."
        ) from None


def _signature_for(layer: tl.Layer, checkpoint: TraxCheckpoint) -> Any:
    signature = checkpoint.input_signature
    items = signature if isinstance(signature, tuple) else (signature,)
    if signature is None or len(items) < layer.n_in:
        raise ValueError(
            f"{layer.name} has no weights yet and takes {layer.n_in} inputs, but {checkpoint.path} "
            f"has the input signature {signature}. Initialize it, model.init(signature), first."
        )
    return items[0] if layer.n_in == 1 else items[: layer.n_in]


def _fitted(tensors: Tensors, places: Sequence[Any]) -> list[torch.Tensor]:
    """Returns tensors without the leading axis of 1 that positional tables once had in Trax."""
    if len(tensors) != len(places):
        return list(tensors)
    return [
        t[0] if t.dim() == 3 and tuple(t.shape) == (1, *place.shape) else t
        for t, place in zip(tensors, places, strict=True)
    ]


def convert(path: str, output_dir: str) -> list[str]:
    """Writes weights and state to `weights.safetensors`, and what is known of them to `info.json`.

    Weights are named `w.0`, `w.1`, ... in Trax's order, state `s.0`, ... Each file is written whole
    or not at all.

    Args:
      path: a file of Trax's, as `read` takes it.
      output_dir: a folder; made if there is none.

    Returns:
      The names of the files written.
    """
    from safetensors.torch import save_file

    checkpoint = read(path, with_slots=False)
    tensors = {f"w.{i}": t for i, t in enumerate(checkpoint.flat_weights)}
    tensors |= {f"s.{i}": t for i, t in enumerate(checkpoint.flat_state)}
    signature = checkpoint.input_signature
    items = signature if isinstance(signature, tuple) else (signature,) if signature else ()
    info = {
        "step": checkpoint.step,
        "version": checkpoint.version,
        "input_signature": [
            {"shape": item.shape, "dtype": str(item.dtype).removeprefix("torch.")} for item in items
        ],
        "opt_params": checkpoint.opt_params,
        "history": checkpoint.history,
    }
    text = json.dumps(info, indent=1, default=torch.Tensor.tolist) + "\n"
    os.makedirs(output_dir, exist_ok=True)
    names = [os.path.join(output_dir, name) for name in ("weights.safetensors", "info.json")]
    partial = [f"{name}.{os.urandom(4).hex()}.tmp" for name in names]
    try:
        with open(partial[1], "x", encoding="utf-8") as f:
            f.write(text)
        save_file(tensors, partial[0])
        os.chmod(partial[0], os.stat(partial[1]).st_mode)  # safetensors writes for the owner alone
        for a, b in zip(partial, names, strict=True):
            os.replace(a, b)
    finally:
        for name in partial:
            if os.path.exists(name):
                os.unlink(name)
    return names


def _main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m trax_torch.interop.trax_checkpoint",
        description="Converts a file of Trax's to weights.safetensors and info.json.",
    )
    parser.add_argument("path", metavar="IN", help="a checkpoint, with or without .pkl.gz")
    parser.add_argument("output_dir", metavar="OUT_DIR", help="a folder; made if there is none")
    args = parser.parse_args()
    try:
        names = convert(args.path, args.output_dir)
    except (CheckpointError, OSError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    for name in names:
        print(f"wrote {name}")


if __name__ == "__main__":
    _main()
