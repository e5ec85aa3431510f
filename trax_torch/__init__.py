"""trax_torch: the supervised API of Trax on PyTorch."""

from trax_torch import interop, layers, models, optimizers, shapes, supervised
from trax_torch._version import __version__

__all__ = ["__version__", "interop", "layers", "models", "optimizers", "shapes", "supervised"]
