"""What tensors take while they live."""

import torch
from torch.utils import _python_dispatch, _pytree
from torch.utils.weak import WeakIdKeyDictionary


class Peak(_python_dispatch.TorchDispatchMode):
    """Counts the bytes of the storages that were made in the block, while they live.

    Tensors on the meta device have none, and those of which ranks have parts, their part's.
    """

    def __init__(self):
        super().__init__()
        self.most = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        for x in _pytree.tree_leaves(outputs):
            if isinstance(x, torch.Tensor) and not (x.is_meta or hasattr(x, "to_local")):
                self._known[x.untyped_storage()] = True
        self.most = max(self.most, sum(storage.nbytes() for storage in self._known))
        return outputs
