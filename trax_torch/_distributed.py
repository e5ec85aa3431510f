"""The process group: rank, size, device, and what ranks tell each other (all-reduce, broadcast).

One process is a world of size 1, where all of this is free. Ranks that share the work come with
`torchrun`. Everything here is collective: all ranks call it, in the same order. No objects travel,
only numbers, tensors and bytes.
"""

import atexit
import contextlib
import dataclasses
import datetime
import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from trax_torch import _memory_order, _roll_call, _torch_private
from trax_torch._dtensors import fill_ as fill_
from trax_torch._dtensors import in_memory as in_memory
from trax_torch._dtensors import is_freed as is_freed
from trax_torch._dtensors import is_shard as is_shard  # whoever asks about ranks asks here
from trax_torch._dtensors import local as local
from trax_torch._dtensors import piece_of as piece_of
from trax_torch._dtensors import shard_like as shard_like
from trax_torch._dtensors import whole as whole
from trax_torch._errors import CallError, RankError
from trax_torch._last_words import Words, heard
from trax_torch._rendezvous import meeting_place

_ROOM = 30  # numbers in a sum of one piece
_NOTHING = contextlib.nullcontext()
_NAME = 200  # bytes of a call's name that are told
_LET_GO = 1.0  # seconds in which threads let go of what was sent


@dataclass(frozen=True)
class World:
    """The processes that train together, seen from one of them.

    Attributes:
      rank: this process's number, from 0.
      size: how many processes there are.
      device: where this process computes.
      calls: what this process is doing, the outermost call first; see `call`.
      timeout: seconds after which a rank that does not answer is given up.
      group: what they talk by, where that is not the process group of all.
      words: where a rank that fails in a call says why, for those that wait for it.
      roll: tells who does not answer.
    """

    rank: int
    size: int
    device: torch.device
    calls: list[str] = field(default_factory=list, repr=False, compare=False)
    timeout: float = field(default=300.0, compare=False)
    group: Any = field(default=None, repr=False, compare=False)
    words: Words | None = field(default=None, repr=False, compare=False)
    roll: _roll_call.Roll | None = field(default=None, repr=False, compare=False)

    @property
    def n_hosts(self) -> int:
        """How many machines the ranks are on, as the launcher says."""
        return self.size // int(os.environ.get("LOCAL_WORLD_SIZE", self.size)) or 1

    @property
    def is_chief(self) -> bool:
        """Whether this process speaks, and writes files, for all."""
        return self.rank == 0

    @contextlib.contextmanager
    def call(self, name: str) -> Generator[None]:
        """Names what its block does; ranks that do different things then notice it in a sum.

        Args:
          name: as a person would write the call.
        """
        if not self.calls and self.words is not None:
            self.words.begin()
        self.calls.append(name)
        try:
            with self.phase(f"in {name}", is_told=True):
                yield
        except Exception as error:
            if self.words is not None and not isinstance(error, RankError):
                self.words.leave(error)
            raise
        finally:
            self.calls.pop()

    def phase(self, name: str, is_told: bool = False) -> contextlib.AbstractContextManager[None]:
        """Names what its block does, for an error to say if this rank, or another, waits in vain.

        Args:
          name: as in 'hashing its part', or 'in step 4'.
          is_told: whether others know of it while all is well, too, which costs a message.
        """
        return _NOTHING if self.roll is None else self.roll.phase(name, is_told)

    def aside(self) -> "World":
        """Returns the same ranks, who talk by a group of their own, for a thread beside this one.

        All ranks call it.
        """
        if self.size == 1:
            return self
        limit = datetime.timedelta(seconds=self.timeout)
        with self._told():
            group = dist.new_group(backend="gloo", timeout=limit)
        roll = self.roll and self.roll.beside()
        return dataclasses.replace(self, calls=[], group=group, words=None, roll=roll)

    def _gone(self, error: Exception, *hints: str) -> RankError:
        """Returns the error that another rank is gone, which one, and what it said, if it did."""
        return _roll_call.gone(error, self.roll, self.words, self.timeout, *hints)

    def sum(self, values: Sequence[float]) -> list[float]:
        """All-reduces: returns the sums over ranks, in float64; nothing waits for a GPU.

        Raises:
          CallError: on all ranks, if they are not in the same call. Sums have one size and carry
            a number that stands for the call, so that those of different calls meet.
        """
        n = len(values)
        if self.size == 1:
            return list(values)
        if n > _ROOM:
            self.sum([n])  # that all are here
            totals = torch.tensor(values, dtype=torch.float64)
        else:
            tag = float(zlib.crc32(f"{self._call} {n}".encode()) >> 12)
            padding = [0.0] * (_ROOM - n)
            totals = torch.tensor([*values, *padding, tag, tag * tag], dtype=torch.float64)
        with self._told(totals):
            dist.all_reduce(totals, group=self.group)
        sums: list[float] = totals.tolist()
        if n <= _ROOM:
            tags, squares = int(sums[-2]), int(sums[-1])
            # The mean of squares is the square of the mean where all numbers are the same.
            if self.size * squares != tags * tags:
                self._fail_apart()
        return sums[:n]

    @property
    def _call(self) -> str:
        return self.calls[-1] if self.calls else "Loop(...)"

    def _fail_apart(self) -> None:
        """Raises CallError with what each rank calls."""
        name = self._call.encode()[:_NAME]
        mine = torch.frombuffer(bytearray(name.ljust(_NAME)), dtype=torch.uint8)
        everyones = [torch.empty_like(mine) for _ in range(self.size)]
        with self._told(mine, *everyones):
            dist.all_gather(everyones, mine, group=self.group)
        names = [x.numpy().tobytes().decode(errors="replace").strip() for x in everyones]
        where = {name: [str(r) for r, other in enumerate(names) if other == name] for name in names}
        told = "; ".join(f"{name} on rank {', '.join(ranks)}" for name, ranks in where.items())
        raise CallError(
            f"All ranks must call the same methods of Loop, in the same order; got {told}. Call "
            f"save_checkpoint, run_evals, load_checkpoint and run on every rank, not under `if "
            f"loop.is_chief:`; the chief alone speaks and writes as it is."
        )

    def _told(self, *tensors: torch.Tensor) -> contextlib.AbstractContextManager[None]:
        alone = [call for call in self.calls[:1] if call != "run()"]  # a script's own call
        return _told(*tensors, calls=alone, gone=self._gone)

    def each(self, number: float) -> list[float]:
        """Returns every rank's number, in the order of ranks."""
        numbers = [0.0] * self.size
        numbers[self.rank] = number
        return self.sum(numbers)

    def all_agree(self, is_so: bool) -> bool:
        """Tells whether something is so on all ranks."""
        (n_others,) = self.sum([float(not is_so)])
        return not n_others

    def from_chief(self, data: bytes) -> bytes:
        """Returns the chief's bytes."""
        if self.size == 1:
            return data
        (length,) = self.sum([len(data) * self.is_chief])
        content = torch.zeros(int(length), dtype=torch.uint8)
        if self.is_chief and data:
            content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        with self._told(content):
            dist.broadcast(content, 0, group=self.group)
        return content.numpy().tobytes()

    def gather(self, data: bytes) -> list[bytes]:
        """Returns every rank's bytes, in the order of ranks."""
        if self.size == 1:
            return [data]
        lengths = [int(n) for n in self.each(len(data))]
        mine = torch.zeros(max(lengths), dtype=torch.uint8)
        if data:
            mine[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        everyones = [torch.empty_like(mine) for _ in lengths]
        with self._told(mine, *everyones):
            dist.all_gather(everyones, mine, group=self.group)
        return [x[:n].numpy().tobytes() for x, n in zip(everyones, lengths, strict=True)]

    def copy_from_chief_(self, tensors: Sequence[torch.Tensor]) -> None:
        """Sets the tensors to the chief's."""
        if self.size == 1:
            return
        for tensor in tensors:
            with self._told(tensor), torch.no_grad():
                dist.broadcast(tensor, 0, group=self.group)

    def fail_together(self, error: Exception | None, kind: type[Exception] = RankError) -> None:
        """Raises on every rank what was raised on some, the lowest rank's where there are several.

        Args:
          error: what was raised here, if anything.
          kind: of the error to raise where nothing was raised, with the rank and its message.
        """
        if error is not None and getattr(error, "is_gone", False):  # nobody is left to tell
            raise error
        if self.size > 1 and not isinstance(error, CallError):  # which all ranks have
            failed = [bool(n) for n in self.each(error is not None)]
            if any(failed):
                texts = self.gather(b"" if error is None else str(error).encode())
                if error is None:
                    first = failed.index(True)
                    raise kind(f"On rank {first}: {texts[first].decode()}")
        if error is not None:
            raise heard(error)

    @contextlib.contextmanager
    def together(self, kind: type[Exception] = RankError) -> Generator[None]:
        """Raises on every rank what its block raised on some; see `fail_together`."""
        error = None
        try:
            yield
        except Exception as raised:
            error = raised
        self.fail_together(error, kind)

    @contextlib.contextmanager
    def watched(self, hint: str = "") -> Generator[None]:
        """Says in plain words if what its block computes fails because another rank is gone.

        Args:
          hint: what else may have had it wait.
        """
        try:
            yield
        except RuntimeError as error:
            if _torch_private.asks_to_find_unused(error):
                raise ValueError(
                    "The loss does not depend on weights that it did depend on in the sample "
                    "batch, and ranks wait for their gradients. Give "
                    "Loop(find_unused_parameters=True), which looks for them at each step."
                ) from error
            is_of_ranks = isinstance(error, dist.DistError) or _torch_private.is_of_gloo(error)
            if self.size == 1 or isinstance(error, RankError) or not is_of_ranks:
                raise
            raise self._gone(error, hint) from error

    def share(
        self, parts: dict[str, dict[str, torch.Tensor]] | None, info: Any
    ) -> tuple[dict[str, dict[str, torch.Tensor]], Any]:
        """Returns the chief's tensors, by part and name, and its plain data.

        Args:
          parts: tensors on the CPU, without gaps in memory; other ranks' do not matter.
          info: plain data.
        """
        if self.size == 1:
            return parts or {}, info
        parts = parts or {}
        forms = {
            part: {
                k: [list(t.shape), str(t.dtype)[6:], _memory_order.order_of(t)]
                for k, t in tensors.items()
            }
            for part, tensors in parts.items()
        }
        forms, info = json.loads(self.from_chief(json.dumps([forms, info]).encode()))
        if not self.is_chief:
            parts = {
                part: {
                    k: _memory_order.empty_in_order(shape, getattr(torch, dtype), order)
                    for k, (shape, dtype, order) in named.items()
                }
                for part, named in forms.items()
            }
        everything = [t for named in parts.values() for t in named.values() if t.numel()]
        flat = [t.permute(_memory_order.order_of(t)).reshape(-1) for t in everything]
        self.copy_from_chief_([t.view(torch.uint8) for t in flat])
        return parts, info

    def compare(self, facts: Mapping[str, Any]) -> None:
        """Raises ValueError on every rank if a fact differs between ranks.

        Args:
          facts: plain data by name.
        """
        texts = self.gather(json.dumps(dict(facts)).encode())
        everyones = [json.loads(text) for text in texts]
        for rank, theirs in enumerate(everyones):
            for name, value in everyones[0].items():
                if theirs.get(name) != value:
                    first, other = _where_they_differ(value, theirs.get(name))
                    text = (
                        f"All ranks must train the same, but {name}: {first} on rank 0, {other} on "
                        f"rank {rank}. Give every rank the same model, tasks and settings; data "
                        f"alone may differ."
                    )
                    raise heard(ValueError(text))

    def exchange(self, tensor: torch.Tensor, partner: int) -> torch.Tensor:
        """Returns the partner's tensor of the same shape, which gets this one."""
        theirs = torch.empty_like(tensor)
        with self._told():
            operations = [
                dist.P2POp(dist.isend, tensor, partner),
                dist.P2POp(dist.irecv, theirs, partner),
            ]
            for work in dist.batch_isend_irecv(operations):
                work.wait()
        return theirs

    def mean_(self, tensor: torch.Tensor) -> None:
        """Sets a tensor to its mean over ranks."""
        with self._told(tensor):
            dist.all_reduce(tensor)
        tensor.div_(self.size)

    def means_(self, tensors: Sequence[torch.Tensor]) -> None:
        """Sets tensors to their means over ranks; those of one type and device travel together."""
        bundles: dict[Any, list[torch.Tensor]] = {}
        for tensor in tensors:
            bundles.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        for bundle in bundles.values():
            together = torch.cat([tensor.reshape(-1) for tensor in bundle])
            self.mean_(together)
            pieces = together.split([tensor.numel() for tensor in bundle])
            for tensor, piece in zip(bundle, pieces, strict=True):
                tensor.copy_(piece.view_as(tensor))

    def parallel(
        self, module: nn.Module, unused: Sequence[nn.Parameter], find_unused: bool
    ) -> nn.Module:
        """Returns a module whose backward passes take the mean of gradients over ranks.

        Weights and buffers become the chief's.

        Args:
          module: maps a batch to a loss.
          unused: parameters that the loss does not depend on, the same on all ranks.
          find_unused: whether there may be others, which are then looked for at each step.
        """
        for p in unused:  # what needs no gradient now is not waited for later
            p.requires_grad_(False)
        try:
            on_gpu = self.device.type == "cuda"
            return nn.parallel.DistributedDataParallel(
                module,
                device_ids=[self.device.index] if on_gpu else None,
                find_unused_parameters=find_unused,
            )
        finally:
            for p in unused:
                p.requires_grad_(True)


def join(
    n_devices: int | None = None,
    device: str | torch.device | None = None,
    timeout: float = 300.0,
) -> World:
    """Returns the world that the launcher made; joins its process group, or starts it.

    A group that is started here is closed when the process ends.

    Args:
      n_devices: how many processes the caller counts on, one device each; None takes what is there.
      device: where to compute; by default CUDA if there is any, the launcher's LOCAL_RANK saying
        which, else the CPU.
      timeout: seconds after which a rank that does not answer is given up, in a group that is
        started here.

    Raises:
      ValueError: if more, or fewer, processes are wanted than the launcher started.
      RankError: if not all of them come within the timeout.
    """
    joined = dist.is_available() and dist.is_initialized()
    size = dist.get_world_size() if joined else launched()[1]
    if n_devices is not None and n_devices != size:
        raise ValueError(
            f"n_devices={n_devices}, but the launcher started {size} processes, with one device "
            f"each. More devices come from it: torchrun --nproc-per-node={n_devices} SCRIPT.py"
        )
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if size == 1:
        return World(0, 1, device)
    if device.type == "cuda":
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if not joined:
        # Numbers that the host needs go by gloo, so that no GPU is waited for.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        limit = datetime.timedelta(seconds=timeout)
        with _told():
            place = meeting_place(*launched(), limit)
            dist.init_process_group(backend, timeout=limit, **place)
        atexit.register(_close)
    rank, store = dist.get_rank(), _torch_private.meeting_store()
    words = Words(store, rank)
    roll = _roll_call.Roll(store, str(words.serial), rank, size)
    return World(rank, size, device, timeout=timeout, words=words, roll=roll)


def launched() -> tuple[int, int]:
    """Returns this process's rank and how many ranks there are, as the launcher said; (0, 1)."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def backends() -> list[str]:
    """Returns by what processes here can talk to each other: 'gloo', 'nccl', 'mpi'."""
    if not dist.is_available():
        return []
    there = {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available()}
    return [
        name for name, is_there in (there | {"mpi": dist.is_mpi_available()}).items() if is_there
    ]


def _close() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def _told(
    *tensors: torch.Tensor,
    calls: Sequence[str] = (),
    gone: Callable[..., RankError] = _roll_call.gone,
) -> Generator[None]:
    """Says in plain words that another rank is gone, or does not answer.

    Args:
      calls: what is under way that others may not have called.
      gone: makes the error.
      tensors: what its block sends and receives by gloo. They are the caller's alone when it ends:
        a thread of gloo's that lets go of a tensor later needs the interpreter for it, and aborts
        the process if that is just ending (pytorch issue 190489).
    """
    sent = [t for t in tensors if t.device.type == "cpu"]
    counts = [sys.getrefcount(t) for t in sent]
    try:
        yield
    except RuntimeError as error:
        if _torch_private.lacks_a_backend(error):
            raise ValueError(
                "The process group that is there already cannot send what is on the CPU. Start it "
                "with init_process_group('cpu:gloo,cuda:nccl'), or let Loop start it."
            ) from error
        hints = [
            f" This was in {call}, which all ranks must call: under `if loop.is_chief:` the chief "
            f"waits for the others in vain."
            for call in calls
        ]
        raise gone(error, *hints) from error
    until = time.monotonic() + _LET_GO
    while [sys.getrefcount(t) for t in sent] > counts and time.monotonic() < until:
        time.sleep(0)


def _where_they_differ(one: Any, other: Any) -> tuple[str, str]:
    """Returns two values as text; of lists, what differs first."""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        one, other = next((a, b) for a, b in zip(one, other, strict=True) if a != b)
    texts = [value if isinstance(value, str) else json.dumps(value) for value in (one, other)]
    first, second = (text if len(text) <= 300 else f"{text[:300]}..." for text in texts)
    return first, second
