"""Weights of which each rank keeps a part: torch's `fully_shard`, and how it is asked.

This room knows how parts are cut and brought together, never which weights go together.
"""

import contextlib
import warnings
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import nn

from trax_torch import _distributed

Apart = Callable[[], contextlib.AbstractContextManager[None]]


def shard(
    world: _distributed.World,
    module: nn.Module,
    groups: Sequence[nn.Module] = (),
    whole: Sequence[nn.Parameter] = (),
    n_replicas: int = 1,
    parts_ways: bool = False,
) -> Apart:
    """Has each rank keep a part of every weight of a module, and of its gradient and slots.

    Weights become the chief's. Those on the meta device stay there, each as this rank's part.

    Args:
      world: the ranks.
      module: is changed in place: its weights become `DTensor`s.
      groups: modules inside, the inner ones first; the weights of each, but for those of groups in
        it, are brought together while it computes. The rest is while all of `module` does.
      whole: weights that every rank keeps whole; their gradients are not added up.
      parts_ways: whether ranks may use other weights than each other: gradients of those that a
        rank does not use are 0 then.
      n_replicas: into how many sets of neighbours the ranks are divided, of which each holds all.

    Returns:
      What makes a context in which backward passes stay with their rank.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    tensors = [*module.parameters(), *module.buffers()]
    world.copy_from_chief_([tensor for tensor in tensors if not tensor.is_meta])
    for p in module.parameters():
        p.data = p.data.contiguous()  # fully_shard takes no other order in memory
    # It warns of outputs that are views, since what is done to them in place goes wrong. Where that
    # is done, there is no group; see `shard_groups`.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
    if n_replicas == 1:
        mesh = init_device_mesh(world.device.type, (world.size,))
    else:
        sizes, names = (n_replicas, world.size // n_replicas), ("replicate", "shard")
        mesh = init_device_mesh(world.device.type, sizes, mesh_dim_names=names)
    for each in (*groups, module):
        fully_shard(each, mesh=mesh, ignored_params=set(whole))
    outermost: Any = module
    if parts_ways:
        if not hasattr(outermost, "set_reduce_scatter_unused_params"):
            raise ValueError(
                f"Ranks use different weights, and torch {torch.__version__} adds up no gradients "
                f"then where each holds parts of them. Take torch 2.13 or later, or "
                f"strategy='ddp'."
            )
        outermost.set_reduce_scatter_unused_params(True)
    module.register_forward_hook(_part_again)

    @contextlib.contextmanager
    def apart() -> Generator[None]:
        outermost.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            outermost.set_requires_gradient_sync(True)

    return apart


def _part_again(module: Any, args: Any, outputs: Any) -> None:
    """Frees the whole weights of the outermost group where no backward pass does it."""
    if not torch.is_grad_enabled():
        module.reshard()
