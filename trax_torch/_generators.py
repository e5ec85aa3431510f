"""The process-wide generators that a program's data may draw from: torch's, numpy's, Python's.

Where they are, and going back there. Nothing is seeded here; that is `_seeds`.
"""

import ctypes
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

_N = 624  # 32-bit words in the state of a Mersenne twister
_N_TORCH = torch.default_generator.get_state().numel()
N_BYTES = _N_TORCH + 4 * _N + 4 * (_N + 1) + 8 * 5


@dataclass(frozen=True)
class Snapshot:
    """Where the three were at some time. `take` makes it.

    Attributes:
      of_torch: the state of torch's default generator on the CPU.
      of_numpy: the state of `numpy.random`; None if that is no Mersenne twister any more.
      of_python: the state of `random`.
    """

    of_torch: torch.Tensor
    of_numpy: tuple[Any, ...] | None
    of_python: tuple[Any, ...]
    _numpy_words: bytes | None

    def put(self) -> None:
        """Puts the generators back where they were."""
        torch.default_generator.set_state(self.of_torch)
        if self.of_numpy is not None:
            np.random.set_state(self.of_numpy)
        random.setstate(self.of_python)

    def moved(self, later: "Snapshot") -> list[str]:
        """Returns whose generators were elsewhere in a later one: 'torch', 'numpy', 'random'."""
        moved = {
            "torch": not torch.equal(self.of_torch, later.of_torch),
            "numpy": not _is_equal(self.of_numpy, later.of_numpy),
            "random": self.of_python != later.of_python,
        }
        return [name for name, has_moved in moved.items() if has_moved]

    def pack(self) -> torch.Tensor:
        """Returns all three as one tensor of `N_BYTES` bytes.

        Example:
          >>> snapshot = take()
          >>> snapshot.moved(unpack(snapshot.pack()))
          []
        """
        _, key, *numbers = self.of_numpy or ("", np.zeros(_N, np.uint32), -1, 0, 0.0)
        _, words, gauss = self.of_python
        rest = [*numbers, gauss is not None, gauss or 0.0]
        parts = (self.of_torch.numpy(), key, np.array(words, np.uint32), np.array(rest, np.float64))
        return torch.from_numpy(np.concatenate([part.view(np.uint8) for part in parts]))


def unpack(packed: torch.Tensor) -> Snapshot:
    """Returns the snapshot that `Snapshot.pack` packed.

    Raises:
      ValueError: if it is none, or another version of torch's.
    """
    if packed.dtype != torch.uint8 or packed.shape != (N_BYTES,):
        raise ValueError(
            f"The states of torch's, numpy's and Python's generators have {N_BYTES} bytes; got "
            f"{packed.numel()} items of {packed.dtype}. Go on with the version of torch that "
            f"packed them."
        )
    flat = packed.numpy()
    cuts = np.cumsum([_N_TORCH, 4 * _N, 4 * (_N + 1)])
    of_torch, key, words, rest = (part.copy() for part in np.split(flat, cuts))
    position, has_gauss, cached, python_has, python_gauss = rest.view(np.float64).tolist()
    of_numpy = ("MT19937", key.view(np.uint32), int(position), int(has_gauss), cached)
    gauss = python_gauss if python_has else None
    python = (3, tuple(words.view(np.uint32).tolist()), gauss)
    return Snapshot(torch.from_numpy(of_torch), of_numpy if position >= 0 else None, python, None)


def take(before: Snapshot | None = None) -> Snapshot:
    """Returns where the generators are now.

    Args:
      before: an earlier snapshot, with which it is quicker where numpy's has not moved since.
    """
    words = _numpy_words()
    # Of a normal number that is kept for the next call, the words tell nothing.
    is_same = before is not None and before._numpy_words == words and words is not None
    if is_same and before is not None and before.of_numpy is not None and not before.of_numpy[3]:
        of_numpy: Any = before.of_numpy
    else:
        of_numpy = None if words is None else np.random.get_state()
    return Snapshot(torch.default_generator.get_state(), of_numpy, random.getstate(), words)


def _numpy_words() -> bytes | None:
    """Returns the words of numpy's generator, and its place in them: its state takes 40 us."""
    numpy_random: Any = np.random  # whose stubs leave this out
    generator = numpy_random.get_bit_generator()
    if not isinstance(generator, np.random.MT19937):
        return None
    return ctypes.string_at(generator.ctypes.state_address, 4 * _N + 4)


def _is_equal(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    return bool(np.array_equal(one[1], other[1])) and one[2:] == other[2:]
