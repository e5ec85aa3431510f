"""Tensors in pieces: each rank writes those that it holds, and the manifest says where they belong.

A piece is a box of the whole tensor: where it begins and how far it extends, axis by axis. So it
does not matter how ranks were laid out, nor how they are when it is read.
"""

import collections
import contextlib
import math
import os
import re
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from trax_torch import _dtensors
from trax_torch._errors import CheckpointError
from trax_torch.supervised._checkpoint import packing
from trax_torch.supervised._checkpoint.files import reasons
from trax_torch.supervised._checkpoint.tensor_files import (
    TensorFile,
    hashes_of,
    n_bytes,
    write_pieces,
)

Tensors = dict[str, torch.Tensor]
# Of a part, a name and a shape: a tensor that ranks hold in pieces as they are to hold that one, or
# None for what each rank is to have whole.
Like = Callable[[str, str, torch.Size], Any]

Box = tuple[Sequence[int], Sequence[int]]  # where it begins, and its extents, by axis

PART = re.compile(
    r"(?P<basename>.+)\.(?P<generation>[0-9a-f]{16})\.(?P<part>weights|state|opt_slots\d+)"
    r"(?P<rank>\.rank\d+)?\.safetensors"
)


@dataclass(frozen=True)
class Cut:
    """The tensors of a run, by part and name, as one rank is to save them.

    Attributes:
      whole: those that each rank has all of, which the chief saves.
      own: this rank's pieces of the others.
      places: of each piece, plain data: the whole's `shape` and `dtype`, and where the piece is
        `at`.
      is_cut: whether there are others; the same on all ranks.
    """

    whole: dict[str, Tensors] = field(default_factory=dict)
    own: dict[str, Tensors] = field(default_factory=dict)
    places: dict[str, dict[str, Any]] = field(default_factory=dict)
    is_cut: bool = False


def cut(
    parts: Mapping[str, Mapping[str, torch.Tensor]], rank: int = 0, beside: Collection[int] = (0,)
) -> Cut:
    """Returns what of a run's tensors a rank is to save.

    Pieces that several ranks hold, they share out, by bytes.

    Args:
      parts: the tensors, by part and name.
      rank: this process's number.
      beside: the ranks that write to the same folder.
    """
    found = Cut(is_cut=any(map(_dtensors.is_shard, _all_of(parts))))
    loads: collections.Counter[tuple[int, ...]] = collections.Counter()  # bytes

    def is_mine(tensor: torch.Tensor) -> bool:
        holders = [each for each in _dtensors.holders_of(tensor) if each in beside]
        if not holders:
            return False
        # All of these hold the same pieces, so all come to the same.
        writer = min(holders, key=lambda each: (loads[*holders, each], each))
        loads[*holders, writer] += n_bytes(_dtensors.local(tensor))
        return writer == rank

    for part, tensors in parts.items():
        whole, own, places = {}, {}, {}
        for name, tensor in tensors.items():
            if not _dtensors.is_shard(tensor):
                whole[name] = tensor
            elif is_mine(tensor) and _dtensors.local(tensor).numel():
                own[name] = _dtensors.local(tensor)
                shape, dtype = list(tensor.shape), str(tensor.dtype)[6:]
                at = _dtensors.piece_of(tensor)[0]
                places[name] = {"shape": shape, "dtype": dtype, "at": at}
            else:
                places[name] = {"shape": list(tensor.shape), "dtype": str(tensor.dtype)[6:]}
        found.whole[part] = whole
        if places:
            found.own[part], found.places[part] = own, places
    return found


def write(
    folder: str,
    stem: str,
    rank: int,
    cut: Cut,
    phase: Callable[[str], contextlib.AbstractContextManager[None]],
) -> dict[str, Any]:
    """Writes a rank's pieces, a file for each part of the run.

    Args:
      folder: where to.
      stem: what the files' names begin with.
      rank: this process's number.
      cut: the pieces.
      phase: says what its block does with them.

    Returns:
      Plain data for `listed`.

    Raises:
      CheckpointError: if they cannot be written, with the reason.
    """
    if not os.path.isdir(folder):
        raise CheckpointError(
            f"{os.path.dirname(folder)} is no longer the folder that a rank beside this one writes "
            f"to: it was removed or replaced while the run was under way. Start the run again."
        )
    written = {}
    for part, places in cut.places.items():
        tensors: dict[str, Any] = {name: dict(place) for name, place in places.items()}
        entry = None
        if own := cut.own[part]:
            name = f"{stem}.{part}.rank{rank}.safetensors"
            path = os.path.join(folder, name)
            plain = packing.to_plain(own)[0]
            with phase("hashing its part of"):
                hashes = hashes_of(plain)
            with phase("writing its part of"), reasons(path, "write"):
                entry = write_pieces(path, plain)
            entry["name"] = name
            for key, tensor in own.items():
                tensors[key] |= {"extents": list(tensor.shape), "sha256": hashes[key]}
        written[part] = {"file": entry, "tensors": tensors}
    return written


def listed(
    everyones: Sequence[Mapping[str, Any]], beside: Sequence[int] | None = None
) -> dict[str, Any]:
    """Returns what the manifest says of pieces, from what `write` returned on each rank.

    Args:
      everyones: that, in the order of ranks.
      beside: the ranks whose pieces are taken where others have the same; None for any.

    Raises:
      CheckpointError: if the pieces of a tensor do not make it up.
    """
    shards: dict[str, Any] = {}
    for part in everyones[0]:
        files: list[dict[str, Any]] = []
        tensors: dict[str, Any] = {}
        for rank in sorted(range(len(everyones)), key=lambda each: each not in (beside or [])):
            written = everyones[rank]
            entry = written[part]["file"]
            for name, piece in written[part]["tensors"].items():
                known = tensors.setdefault(
                    name, {"shape": piece["shape"], "dtype": piece["dtype"], "pieces": []}
                )
                box = {"at": piece.get("at"), "extents": piece.get("extents")}
                places = [{key: other[key] for key in box} for other in known["pieces"]]
                if entry is not None and "sha256" in piece and box not in places:
                    known["pieces"].append(box | {"file": len(files), "sha256": piece["sha256"]})
            if entry is not None:
                files.append(entry)
        shards[part] = {"files": files, "tensors": tensors}
        for name, tensor in tensors.items():
            if not _make_up(tensor["shape"], tensor["pieces"]):
                raise CheckpointError(
                    f"{name} of the {part} cannot be saved: its pieces on {len(everyones)} ranks "
                    f"do not make up the whole of {tensor['shape']}. Lay it out by Shard and "
                    f"Replicate alone."
                )
    return shards


def is_well_formed(shards: Any) -> bool:
    """Tells whether a manifest lists pieces as `listed` does; anybody can compute its hash."""
    if not isinstance(shards, dict):
        return False
    try:
        return all(_is_part(each) for each in shards.values())
    except (LookupError, TypeError, AttributeError):
        return False


def _is_part(part: Any) -> bool:
    files, tensors = part["files"], part["tensors"]
    return (
        isinstance(files, list)
        and all(
            isinstance(each["name"], str)
            and isinstance(each["sha256"], str)
            and _are_counts([each["size"], each["header"]])
            for each in files
        )
        and all(
            isinstance(getattr(torch, each["dtype"], None), torch.dtype)
            and _are_counts(each["shape"])
            and all(
                _are_counts([*piece["at"], *piece["extents"], piece["file"]])
                and piece["file"] < len(files)
                and isinstance(piece["sha256"], str)
                for piece in each["pieces"]
            )
            and _make_up(each["shape"], each["pieces"])
            for each in tensors.values()
        )
        and _fit(part)
    )


def _are_counts(numbers: list[Any]) -> bool:
    return all(type(n) is int and 0 <= n < 2**48 for n in numbers)


def _fit(part: dict[str, Any]) -> bool:
    """Tells whether the files of a part are large enough for its pieces."""
    room = [each["size"] - each["header"] for each in part["files"]]
    for tensor in part["tensors"].values():
        for piece in tensor["pieces"]:
            n = math.prod(piece["extents"])
            room[piece["file"]] -= n * getattr(torch, tensor["dtype"]).itemsize
    return all(n >= 0 for n in room)


def _make_up(shape: Sequence[int], pieces: Sequence[Mapping[str, Any]]) -> bool:
    """Tells whether boxes lie in a whole, fill it, and do not overlap."""
    boxes = [(piece["at"], piece["extents"]) for piece in pieces]
    for at, extents in boxes:
        if not len(shape) == len(at) == len(extents):
            return False
        if any(i + n > whole for whole, i, n in zip(shape, at, extents, strict=True)):
            return False
    n_there = sum(math.prod(extents) for _, extents in boxes)
    return n_there == math.prod(shape) and not _overlap(boxes)


def _overlap(boxes: Sequence[Box]) -> bool:
    """Tells whether two boxes have anything in common."""
    near: list[Box] = []  # those that may reach into the next one, by the first axis
    for box in sorted(boxes):
        near = [other for other in near if not box[0] or other[0][0] + other[1][0] > box[0][0]]
        if any(_common(box, other) for other in near):
            return True
        near.append(box)
    return False


@dataclass(frozen=True)
class Saved:
    """A tensor of a checkpoint that is not in memory yet.

    Attributes:
      shape: of the whole.
      dtype: its type.
    """

    shape: torch.Size
    dtype: torch.dtype
    _pieces: Sequence[Mapping[str, Any]]
    _files: "_Files | Sequence[TensorFile]"
    _name: str
    _order: Sequence[int] | None = None  # of its axes in memory, where it was saved whole

    def read(self, box: Box | None = None) -> torch.Tensor:
        """Returns the tensor, or a box of it, on the CPU; pieces beside the box are not read.

        Raises:
          CheckpointError: if a piece is not as it was saved.
        """
        at, extents = box or ([0] * len(self.shape), self.shape)
        there = torch.empty(list(extents), dtype=self.dtype)
        for piece in self._pieces:
            common = _common((at, extents), (piece["at"], piece["extents"]))
            if common is None:
                continue
            place = _narrowed(there, common, at)
            if piece["sha256"] is None and place.is_contiguous() and _are_rows(common, piece):
                first = (common[0][0] - piece["at"][0]) * math.prod(common[1][1:])
                self._files[piece["file"]].read_into(place, self._name, None, first)
                continue
            is_all = list(common[1]) == list(piece["extents"]) and place.is_contiguous()
            whole = place if is_all else torch.empty(piece["extents"], dtype=self.dtype)
            self._files[piece["file"]].read_into(whole, self._name, piece["sha256"])
            if not is_all:
                place.copy_(_narrowed(whole, common, piece["at"]))
        if self._order is None or box is not None:
            return there
        return packing.from_plain({"": there}, {"": {"order": self._order}})[""]


def _are_rows(box: Box, piece: Mapping[str, Any]) -> bool:
    """Tells whether a box of a piece is some of its rows, whole: one after another in the file."""
    return len(box[1]) > 0 and list(box[1][1:]) == list(piece["extents"][1:])


def _common(one: Box, other: Box) -> Box | None:
    """Returns what two boxes have in common; None if that is nothing."""
    begins = [max(a, b) for a, b in zip(one[0], other[0], strict=True)]
    ends = [
        min(a + n, b + m) for a, n, b, m in zip(one[0], one[1], other[0], other[1], strict=True)
    ]
    extents = [end - begin for begin, end in zip(begins, ends, strict=True)]
    return (begins, extents) if all(n > 0 for n in extents) else None


def _narrowed(tensor: torch.Tensor, box: Box, at: Sequence[int]) -> torch.Tensor:
    """Returns a box of a whole, of which a tensor is what begins at a place."""
    for axis, (begin, extent) in enumerate(zip(*box, strict=True)):
        tensor = tensor.narrow(axis, begin - at[axis], extent)
    return tensor


@contextlib.contextmanager
def opened(
    directory: str,
    basename: str,
    manifest: Mapping[str, Any],
    parts: Collection[str],
    with_whole: bool = False,
) -> Generator[dict[str, dict[str, Saved]]]:
    """Gives the tensors that ranks saved in pieces, by part and name, to be read one by one.

    Args:
      directory: the folder, and basename: the checkpoint's name in it.
      manifest: what `storage.read_manifest` gave.
      parts: which are wanted.
      with_whole: gives those that the chief saved whole, too; their files are hashed at once.

    Raises:
      CheckpointError: if a file is damaged, or not there, with its name.
    """
    with contextlib.ExitStack() as stack:
        found: dict[str, dict[str, Saved]] = {}

        def file_of(entry: Mapping[str, Any]) -> TensorFile:
            check_name(directory, basename, entry["name"])
            path = os.path.join(directory, entry["name"])
            return stack.enter_context(TensorFile(path, entry))

        for part, entry in (manifest["files"] if with_whole else {}).items():
            if part in parts:
                found[part] = _wholes(file_of(entry), entry.get("forms", {}))
        for part, each in manifest.get("shards", {}).items():
            if part not in parts:
                continue
            opened_files = _Files(each["files"], file_of)
            found[part] = found.get(part, {}) | {
                name: Saved(
                    torch.Size(tensor["shape"]),
                    getattr(torch, tensor["dtype"]),
                    tensor["pieces"],
                    opened_files,
                    name,
                )
                for name, tensor in each["tensors"].items()
            }
        yield found


def saved_in(file: TensorFile) -> dict[str, Saved]:
    """Returns the tensors of a file of somebody's, by name, to be read one by one."""
    return _wholes(file, {})


class _Files:
    """Files that are opened when something of them is read."""

    def __init__(self, entries: Sequence[Mapping[str, Any]], open_: Callable[..., TensorFile]):
        self._entries, self._open = entries, open_
        self._opened: dict[int, TensorFile] = {}

    def __getitem__(self, i: int) -> TensorFile:
        if i not in self._opened:
            self._opened[i] = self._open(self._entries[i])
        return self._opened[i]


def _wholes(file: TensorFile, forms: Mapping[str, Any]) -> dict[str, Saved]:
    """Returns the tensors of a file that holds them whole, each as one piece."""
    found = {}
    for name in file.names:
        dtype, shape = file.form_of(name)
        form = forms.get(name, {})
        if "dtype" in form:  # it became bytes
            dtype, shape = getattr(torch, form["dtype"]), form["shape"]
        piece = {"at": [0] * len(shape), "extents": shape, "file": 0, "sha256": None}
        order = form.get("order")
        found[name] = Saved(torch.Size(shape), dtype, [piece], [file], name, order)
    return found


def read_own(
    directory: str,
    basename: str,
    manifest: Mapping[str, Any],
    like: Like,
    until: contextlib.ExitStack | None = None,
) -> dict[str, dict[str, Any]]:
    """Returns tensors, saved whole or in pieces, cut as the ranks of now hold others.

    Each rank reads what it needs; none waits for another.

    Args:
      directory: the folder, and basename: the checkpoint's name in it.
      manifest: has `files` and `shards`, as `storage.read_manifest` gave them.
      like: tells how a tensor is to be cut; those that are to be whole are left out.
      until: keeps the files open, so that weights, which are known to be as they were saved then,
        are `Saved` and are read where they belong; None reads all at once.

    Raises:
      CheckpointError: if a file is damaged, or not there, with its name.
    """
    found: dict[str, dict[str, Any]] = {}
    parts = manifest["files"].keys() | manifest.get("shards", {}).keys()
    with contextlib.ExitStack() as stack:
        whole_time = stack if until is None else until
        saved = whole_time.enter_context(
            opened(directory, basename, manifest, parts, with_whole=True)
        )
        for part, tensors in saved.items():
            found[part] = {}
            for name, each in tensors.items():
                other = like(part, name, each.shape)
                if other is None:
                    continue
                own = each.read(_dtensors.piece_of(other))
                is_later = until is not None and part == "weights"
                found[part][name] = each if is_later else _dtensors.with_part(own, other)
    return found


def like_nothing(part: str, name: str, shape: torch.Size) -> None:
    """Tells that each rank is to have every tensor whole."""
    return None


def check_name(directory: str, basename: str, name: str) -> None:
    """Raises CheckpointError if a manifest lists a file that cannot be of its checkpoint."""
    match = PART.fullmatch(name)
    if not match or match["basename"] != basename:
        path = os.path.join(directory, f"{basename}.json")
        raise CheckpointError(f"{path} lists a file of another name: {name!r}.")


def _all_of(parts: Mapping[str, Mapping[str, torch.Tensor]]) -> list[torch.Tensor]:
    return [tensor for tensors in parts.values() for tensor in tensors.values()]
