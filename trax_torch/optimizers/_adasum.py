"""Adasum: gradients of several ranks are merged by how much they agree.

Orthogonal gradients are added up, parallel ones averaged. Source: Maleki et al. 2020,
arXiv:2006.02924; Trax `optimizers/trainer.py::_average_multidevice_gradients`.
"""

from collections.abc import Callable

import torch

_TINY = 1e-30


def adasum_(
    gradients: list[torch.Tensor],
    rank: int,
    size: int,
    exchange: Callable[[torch.Tensor, int], torch.Tensor],
    mean_: Callable[[torch.Tensor], None],
) -> None:
    """Merges the gradients of all ranks, each tensor for itself; all ranks get the same.

    In round i, ranks r and r xor 2^i merge a and b to
    (1 - a.b / (2 a.a)) a + (1 - a.b / (2 b.b)) b; the mean over ranks, equal by then but for
    rounding, makes them equal to the last bit.

    Args:
      gradients: the tensors, which are changed.
      rank: this process's number.
      size: how many ranks there are, a power of 2.
      exchange: gives a partner's flat vector for one's own.
      mean_: sets a flat vector to its mean over ranks.
    """
    flat = torch.cat([g.reshape(-1) for g in gradients])
    n_elements = [g.numel() for g in gradients]
    shift = 1
    while shift < size:
        other = exchange(flat, rank ^ shift)
        # The same order on both sides, so that both compute the same bits.
        first, second = (flat, other) if rank < rank ^ shift else (other, flat)
        merged = [
            _merge(a, b)
            for a, b in zip(first.split(n_elements), second.split(n_elements), strict=True)
        ]
        flat = torch.cat(merged)
        shift *= 2
    mean_(flat)
    for gradient, merged_one in zip(gradients, flat.split(n_elements), strict=True):
        gradient.copy_(merged_one.view_as(gradient))


def _merge(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Returns the merger of two vectors.

    Example:
      >>> _merge(torch.tensor([1., 0.]), torch.tensor([0., 1.])).tolist()
      [1.0, 1.0]
      >>> _merge(torch.tensor([1., 0.]), torch.tensor([1., 0.])).tolist()
      [1.0, 0.0]
    """
    dot = torch.dot(a, b)
    return (1 - dot / (2 * torch.dot(a, a) + _TINY)) * a + (
        1 - dot / (2 * torch.dot(b, b) + _TINY)
    ) * b
