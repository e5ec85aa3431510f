"""One seed -> every generator, per purpose, per rank and per step.

Randomness is keyed, not remembered: the generator of step 7 is made from (seed, 7, rank) and owes
nothing to steps 1 to 6, so a resumed run draws what the uninterrupted one would have drawn.
"""

import hashlib
import operator
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

_BITS = 2**64 - 1
_numpy_random: Any = np.random  # whose types do not know all of it


def derive(seed: int, *keys: int | str) -> int:
    """Returns a seed in [0, 2**63) that depends on `seed` and every key, and on nothing else.

    Example:
      >>> derive(1, 'init') == derive(1, 'init') != derive(1, 'dropout')
      True
    """
    digest = hashlib.blake2b(repr((operator.index(seed), *keys)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def at_step(seed: int, step: int) -> int:
    """Returns a seed for one step of many; like `derive`, but quick enough for every step.

    Source: the output function of SplitMix64; Steele et al. 2014, "Fast splittable pseudorandom
      number generators".
    """
    z = (seed + step * 0x9E3779B97F4A7C15) & _BITS
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _BITS
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _BITS
    return (z ^ (z >> 31)) >> 1


def ambient_seed() -> int:
    """Returns a seed drawn from torch's default generator, so that `torch.manual_seed` rules it."""
    return int(torch.randint(2**62, (), device="cpu").item())


def generator(seed: int, *keys: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Returns a new generator on `device`, keyed by `seed` and `keys`."""
    return torch.Generator(device).manual_seed(derive(seed, *keys))


def as_seed(rng: Any) -> int:
    """Returns the int that stands for `rng`.

    Args:
      rng: a whole number, itself; a key, several whole numbers in an array, as JAX has them; or a
        generator, of which a number is drawn.

    Raises:
      TypeError: if it is none of these.

    Example:
      >>> as_seed(3), as_seed(np.array([0, 3], np.uint32)) == as_seed(np.array([0, 4], np.uint32))
      (3, False)
    """
    if isinstance(rng, torch.Generator):
        return int(torch.randint(2**62, (), generator=rng, device=rng.device).item())
    key = None if isinstance(rng, (str, bytes)) else np.asarray(rng)
    if key is None or key.dtype.kind not in "iu" or not key.size:
        raise TypeError(
            f"Random numbers come by a whole number, a key or a torch.Generator; got {rng!r}. Give "
            f"a number, such as 0."
        )
    if key.size == 1:
        return int(key.item())
    return derive(0, *map(int, key.ravel()))


def as_generator(rng: Any) -> torch.Generator | None:
    """Returns `rng` if it is a generator, or None for torch's own, else a new one seeded by it."""
    if rng is None or isinstance(rng, torch.Generator):
        return rng
    return torch.Generator().manual_seed(as_seed(rng))


class Keyed:
    """Puts torch's default generators on a keyed seed for a while, and then back as they were.

    The user's own stream (data that draws from the default generator, say) is the same with and
    without it. numpy's and Python's generators are left alone: layers do not draw from them.

    Args:
      device: the device whose default generator is keyed besides the CPU's.

    Example:
      >>> with Keyed()(7):
      ...     a = torch.rand(1)
      >>> with Keyed()(7):
      ...     b = torch.rand(1)
      >>> bool(a == b)
      True
    """

    def __init__(self, device: torch.device | None = None):
        self._generators = _default_generators(device)

    def __call__(self, seed: int) -> "_Scope":
        """Returns a context that runs its block on generators seeded with `seed`."""
        return _Scope(self._generators, [seed] * len(self._generators))


class Again:
    """Lets what is drawn from torch's default generators from now on be drawn again later.

    Args:
      device: the device whose default generator counts besides the CPU's.

    Example:
      >>> again = Again()
      >>> a = torch.rand(1)
      >>> with again():
      ...     b = torch.rand(1)
      >>> bool(a == b)
      True
    """

    def __init__(self, device: torch.device | None = None):
        self._generators = _default_generators(device)
        self._states = [g.get_state() for g in self._generators]

    def __call__(self) -> "_Scope":
        """Returns a context that draws the same numbers again, and then goes on as without it."""
        return _Scope(self._generators, self._states)

    def rewind(self) -> None:
        """Has the generators draw the same numbers again from now on."""
        for g, state in zip(self._generators, self._states, strict=True):
            g.set_state(state)


class _Scope:
    """A block on other generators. A class, since a step cannot afford contextlib.

    Args:
      generators: that are put back as they were after the block.
      starts: where each begins: a seed, or a state it had.
    """

    __slots__ = ("_generators", "_saved", "_starts")

    def __init__(self, generators: list[torch.Generator], starts: Sequence[int | torch.Tensor]):
        self._generators = generators
        self._starts = starts

    def __enter__(self) -> None:
        self._saved = [g.get_state() for g in self._generators]
        for g, start in zip(self._generators, self._starts, strict=True):
            if isinstance(start, int):
                g.manual_seed(start)
            else:
                g.set_state(start)

    def __exit__(self, *_: object) -> None:
        for g, state in zip(self._generators, self._saved, strict=True):
            g.set_state(state)


class Ambient:
    """Puts Python's, numpy's and torch's global generators on seeds for a while, and then back.

    So what data draws from them depends on the seeds alone, and nobody else's numbers change.

    Example:
      >>> ambient = Ambient()
      >>> draws = []
      >>> for _ in range(2):
      ...     ambient.enter([1, 2, 3])
      ...     draws.append((random.random(), np.random.rand(), float(torch.rand(()))))
      ...     ambient.exit()
      >>> draws[0] == draws[1]
      True
    """

    __slots__ = ("_numpy", "_own_numpy", "_python", "_torch")

    def __init__(self) -> None:
        self._own_numpy = np.random.MT19937(0)

    def enter(self, seeds: Sequence[int]) -> None:
        """Seeds the three: torch's, numpy's, Python's."""
        self._torch = torch.default_generator.get_state()
        self._python = random.getstate()
        self._numpy = _numpy_random.get_bit_generator()  # to set its state would take 150 us
        _numpy_random.set_bit_generator(self._own_numpy)
        torch.default_generator.manual_seed(seeds[0])
        np.random.seed(seeds[1] % 2**32)
        random.seed(seeds[2])

    def exit(self) -> None:
        """Puts them back where they were."""
        torch.default_generator.set_state(self._torch)
        random.setstate(self._python)
        _numpy_random.set_bit_generator(self._numpy)


def ambient_keys(*keys: int | str) -> list[int]:
    """Returns a key for each of torch's, numpy's and Python's global generators, by their places.

    They do not move: whoever seeds them rules what is keyed so, each by itself.
    """
    words = _numpy_random.get_state()[1:3]
    places: list[bytes] = [
        torch.default_generator.get_state().numpy().tobytes(),
        repr((words[0].tobytes(), words[1])).encode(),
        repr(random.getstate()).encode(),
    ]
    digests = [hashlib.blake2b(place, digest_size=7).digest() for place in places]
    return [derive(int.from_bytes(digest, "big"), *keys) for digest in digests]


def _default_generators(device: torch.device | None) -> list[torch.Generator]:
    """Returns the CPU's default generator, and that of a CUDA device."""
    # `torch.manual_seed` formats a stack trace at each call where CUDA is not initialized, and
    # seeds devices nobody uses: the generators themselves are seeded here.
    generators = [torch.default_generator]
    if device is not None and device.type == "cuda":
        torch.cuda.init()
        index = device.index if device.index is not None else torch.cuda.current_device()
        generators.append(torch.cuda.default_generators[index])
    return generators


def seed_ambient(seed: int, rank: int = 0) -> None:
    """Seeds Python's, numpy's and torch's global generators, which data may draw from.

    Each rank draws numbers of its own; rank 0 those of one process.
    """
    seed = operator.index(seed) if rank == 0 else derive(seed, "ambient", rank)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state(seed: int | None) -> np.random.RandomState:
    """Returns a generator of numpy's whose numbers are the same in every release of it.

    Args:
      seed: with 0 to 2**32 - 1, it draws as numpy's global one after `np.random.seed` of it; None
        for one drawn from that generator, so that it is ruled by what that was seeded with.
    """
    drawn = int(np.random.randint(2**32, dtype=np.uint64)) if seed is None else seed
    return np.random.RandomState(operator.index(drawn) % 2**32)
