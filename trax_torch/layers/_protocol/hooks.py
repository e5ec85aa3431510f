"""What users put on modules of their own: hooks, and forwards."""

from torch import nn

from trax_torch import _torch_private


def has_hooks(module: nn.Module) -> bool:
    """Tells whether calling a module as a whole is more than what its class does.

    Someone wants to be told then, or gave it a forward of its own: it is not taken apart.
    """
    return "forward" in vars(module) or _torch_private.call_hooks(module)
