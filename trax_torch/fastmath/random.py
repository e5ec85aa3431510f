"""Random numbers by key: the same key, the same numbers, on every machine and in any order.

A key is an array of two uint32; it is split for every use, and never remembers what was drawn. The
numbers are those that JAX draws of the same key, so a program's figures are those of Trax: bits by
Threefry-2x32, floats of 23 of them.

Where a key is asked for, a whole number or a `torch.Generator`, such as a layer's `self.rng`, does
as well; what is drawn from a generator is another each time. All draw on the CPU and answer an
`Array`, which turns into a tensor where it meets one; in `torch.compile` they answer tensors.

Source: Trax `fastmath/ops.py::RandomBackend`; JAX `random.py` (with `jax_threefry_partitionable`
  off, as in Trax's time); Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

import math
from typing import Any

import numpy as np
import torch

from trax_torch import _seeds
from trax_torch.fastmath import _arrays
from trax_torch.fastmath import numpy as jnp

__all__ = ["bernoulli", "fold_in", "get_prng", "normal", "randint", "split", "uniform"]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_WORD = 0xFFFFFFFF  # 32 bits; they lie in int32, since torch computes with no uint32


def get_prng(seed: Any) -> Any:
    """Returns the key of a seed.

    Args:
      seed: a whole number; a `torch.Generator` gives a new one at each call.

    Raises:
      TypeError: if it is neither.

    Example:
      >>> get_prng(7)
      Array([0, 7], dtype=uint32)
    """
    if not isinstance(seed, torch.Generator) and (isinstance(seed, str) or np.ndim(seed)):
        raise TypeError(
            f"A key is made of one whole number; got {seed!r}. A key that is there is split."
        )
    return _as_key(_key(seed))


def split(key: Any, num: int = 2) -> Any:
    """Returns `num` new keys, independent of each other and of their parent: an array (num, 2).

    Example:
      >>> one, other = split(get_prng(0))
      >>> one
      Array([4146024105,  967050713], dtype=uint32)
    """
    return _as_key(_threefry(_key(key), torch.arange(2 * num, dtype=torch.int32)).reshape(num, 2))


def fold_in(key: Any, data: Any) -> Any:
    """Returns a new key that a key and a whole number, such as a step's, decide.

    Example:
      >>> fold_in(get_prng(0), 5)
      Array([1524306142, 1887795613], dtype=uint32)
    """
    return _as_key(_threefry(_key(key), _key(data)))


def uniform(
    key: Any, shape: Any = (), dtype: Any = None, minval: Any = 0.0, maxval: Any = 1.0
) -> Any:
    """Draws floats that lie evenly in [minval, maxval).

    Args:
      key: a key, a whole number or a generator.
      shape: the result's.
      dtype: torch's default float type by default.
      minval: the least that can be drawn.
      maxval: is not drawn itself.

    Example:
      >>> uniform(get_prng(0), (3,))
      Array([0.9653214 , 0.31468165, 0.63302994], dtype=float32)
    """
    return _drawn(_uniform(key, shape, minval, maxval), dtype)


def normal(key: Any, shape: Any = (), dtype: Any = None) -> Any:
    """Draws floats of mean 0 and standard deviation 1; arguments are `uniform`'s.

    Example:
      >>> f"{normal(get_prng(0)):.5f}"
      '-0.20584'
    """
    least = -1 + 2**-24  # the float32 next to -1
    inside = _uniform(key, shape, least, 1.0).double()
    return _drawn(math.sqrt(2) * torch.erfinv(inside), dtype)


def bernoulli(key: Any, p: Any = 0.5, shape: Any = None) -> Any:
    """Draws truth values; each is true with probability `p`.

    Args:
      key: a key, a whole number or a generator.
      p: a number, an array or a tensor that fits `shape`; a tensor gives a tensor.
      shape: the result's; that of `p` by default.

    Example:
      >>> bernoulli(get_prng(0), 0.3, (6,))
      Array([False,  True, False, False, False, False])
    """
    shape = tuple(getattr(p, "shape", ())) if shape is None else shape
    return jnp.less(uniform(key, shape), p)


def randint(key: Any, shape: Any, minval: Any, maxval: Any, dtype: Any = np.int32) -> Any:
    """Draws whole numbers in [minval, maxval); arguments are `uniform`'s.

    Example:
      >>> randint(get_prng(0), (5,), -3, 10)
      Array([ 8,  8, -2,  1,  3], dtype=int32)
    """
    high, low = (_bits(k, shape).long() & _WORD for k in split(key))
    least = torch.as_tensor(minval)
    span = (torch.as_tensor(maxval) - least).clamp(min=1)
    carry = ((2**16 % span) ** 2 & _WORD) % span  # what 2**32 leaves, as JAX reckons it
    offset = ((high % span * carry & _WORD) + low % span & _WORD) % span
    return _drawn(least + offset, dtype)


def _key(key: Any) -> torch.Tensor:
    """Returns the two words of a key, of a whole number or of a generator's next one."""
    if hasattr(key, "shape") and math.prod(key.shape) == 2:
        return torch.as_tensor(key).to(torch.int64).to(torch.int32).reshape(2)
    seed = key if isinstance(key, int) else _seeds.as_seed(key)
    return torch.tensor([seed >> 32 & _WORD if seed >= 0 else 0, seed & _WORD]).to(torch.int32)


def _as_key(words: torch.Tensor) -> Any:
    words = words.long() & _WORD
    return words if torch.compiler.is_compiling() else _arrays.of_torch(words.to(torch.uint32))


def _threefry(key: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Returns as many random words as there are counts: Threefry-2x32 in 20 rounds."""
    n = counts.shape[0]
    x, y = torch.cat([counts, counts.new_zeros(n % 2)]).reshape(2, -1).unbind()
    keys = (key[0], key[1], key[0] ^ key[1] ^ _PARITY)
    x, y = x + keys[0], y + keys[1]
    for i in range(5):
        for r in _ROTATIONS[i % 2]:
            x += y
            y = (y << r).bitwise_or_((y >> 32 - r).bitwise_and_((1 << r) - 1)).bitwise_xor_(x)
        x += keys[(i + 1) % 3]
        y += keys[(i + 2) % 3] + (i + 1)
    return torch.cat([x, y])[:n]


def _bits(key: Any, shape: Any) -> torch.Tensor:
    """Returns random words."""
    shape = (shape,) if isinstance(shape, int) else tuple(int(n) for n in shape)
    return _threefry(_key(key), torch.arange(math.prod(shape), dtype=torch.int32)).reshape(shape)


def _uniform(key: Any, shape: Any, minval: Any, maxval: Any) -> torch.Tensor:
    """Returns float32: 23 random bits are the digits of a number from 1 to 2."""
    digits = (_bits(key, shape) >> 9 & 0x7FFFFF | 0x3F800000).view(torch.float32)
    low, high = (torch.as_tensor(x).to("cpu", torch.float32) for x in (minval, maxval))
    return torch.maximum(low, (digits - 1) * (high - low) + low)


def _drawn(x: torch.Tensor, dtype: Any) -> Any:
    """Returns numbers in a type, as an array where nobody follows tensors."""
    kind = torch.get_default_dtype() if dtype is None else _arrays.torch_dtype(dtype)
    x = x.to(kind)
    return x if torch.compiler.is_compiling() or kind == torch.bfloat16 else _arrays.of_torch(x)
