"""Who else is running: rank, size and device.

One process is a world of size 1. Ranks that share the work come with `torchrun`.
"""

import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class World:
    """The processes that train together, seen from one of them.

    Attributes:
      rank: this process's number, from 0.
      size: how many processes there are.
      device: where this process computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_chief(self) -> bool:
        """Whether this process speaks, and writes files, for all."""
        return self.rank == 0


def join(n_devices: int | None = None, device: str | torch.device | None = None) -> World:
    """Returns the world that the launcher made.

    Args:
      n_devices: how many processes the caller counts on, one device each; None takes what is there.
      device: where to compute; by default CUDA if there is any, else the CPU.

    Raises:
      ValueError: if more, or fewer, processes are wanted than the launcher started.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1:
        raise ValueError(
            f"The launcher started {size} processes (WORLD_SIZE), but Loop trains in one process "
            f"so far. Start the script with python, without torchrun."
        )
    if n_devices is not None and n_devices != size:
        raise ValueError(
            f"n_devices={n_devices}, but there is {size} process, with one device. More devices "
            f"come from the launcher: torchrun --nproc-per-node={n_devices} SCRIPT.py"
        )
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return World(rank=0, size=1, device=torch.device(device))
