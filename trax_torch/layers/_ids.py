"""Ids and category numbers that are outside of what there is: told once, or, asked for, refused.

To look is to wait for the device, so it is done at the first batch alone; in torch's mode for
debugging, `torch.autograd.detect_anomaly()`, at every one.
"""

import warnings

import torch

from trax_torch._torch_private import is_transformed


def can_look(x: torch.Tensor) -> bool:
    """Tells whether a tensor has numbers that can be read now."""
    return type(x) is torch.Tensor and not x.is_meta and x.numel() > 0 and not is_transformed()


def check_ids(name: str, ids: torch.Tensor, n: int) -> None:
    """Warns if ids are clipped into [0, n); ValueError where every batch is looked at."""
    low, high = (int(end) for end in torch.aminmax(ids))
    if low >= 0 and high < n:
        return
    said = (
        f"{name} has vectors for ids 0 to {n - 1}; ids from {low} to {high} came, and are clipped, "
        f"so that they share a vector. Build the model with a vocab_size of {max(high + 1, n)} or "
        f"more, or look at how ids are made."
    )
    _tell(said)


def check_targets(targets: torch.Tensor, n: int, weights: torch.Tensor | None = None) -> None:
    """Warns if targets beyond [0, n) count; ValueError where every batch is looked at.

    Negative ones are padding, as in Trax, and so is what has a weight of 0.

    Args:
      targets: integers (...).
      n: number of categories.
      weights: numbers (...), or of an axis of size 1 more.
    """
    beyond = targets >= n
    if weights is not None and weights.numel() == targets.numel():
        beyond = beyond & (weights.reshape(targets.shape) != 0)
    n_beyond = int(beyond.sum())
    if n_beyond:
        highest = int(targets[beyond].max())
        _tell(
            f"The model tells {n} categories apart, numbered from 0, and {n_beyond} of "
            f"{targets.numel()} targets are {n} or more, up to {highest}: they cost nothing, and "
            f"nothing is learnt from them. Build the model for {highest + 1} categories, such as a "
            f"vocab_size of {highest + 1}, or look at how targets are made."
        )


def _tell(said: str) -> None:
    if torch.is_anomaly_enabled():
        raise ValueError(said)
    find = "To find the batches: with torch.autograd.detect_anomaly(): loop.run(...)"
    warnings.warn(f"{said} {find}", stacklevel=5)
