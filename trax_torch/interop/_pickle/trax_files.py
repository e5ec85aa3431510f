"""Files that Trax wrote, in its three formats: what they hold, as plain data.

To this room a file is data: names in a pickle stand for plain records, and time and memory grow
with the size of the files and never faster.
"""

import os
import re
from dataclasses import dataclass, field
from typing import Any

import torch

from trax_torch._errors import CheckpointError
from trax_torch.interop._pickle import arrays, gzip_stream, machine
from trax_torch.interop._pickle.trax_contents import Contents
from trax_torch.shapes import ShapeDtype

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
    budget = gzip_stream.Budget(max_bytes)
    with gzip_stream.opened(file, budget) as reader:
        # A history of one value again and again has 13 opcodes to a byte of the packed file.
        max_opcodes = 50_000 + 20 * os.stat(file).st_size
        contents = Contents(machine.load(reader.read_all(), max_opcodes), budget)
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


def _read_arrays(file: str, budget: gzip_stream.Budget, wanted_by: str) -> Tensors:
    try:
        with gzip_stream.opened(file, budget) as reader:
            return tuple(arrays.read_npy_stream(reader))
    except FileNotFoundError:
        raise CheckpointError(
            f"{wanted_by} keeps arrays in {file}, which is missing. Copy all of the checkpoint's "
            f"files to one folder."
        ) from None
