"""trax_torch: the supervised API of Trax on PyTorch."""

from trax_torch import data, fastmath, interop, layers, models, optimizers, shapes, supervised
from trax_torch._public_names import show_public_names
from trax_torch._version import __version__
from trax_torch.export import export
from trax_torch.supervised._checkpoint import load_weights

__all__ = [
    "__version__",
    "data",
    "export",
    "fastmath",
    "interop",
    "layers",
    "load_weights",
    "models",
    "optimizers",
    "shapes",
    "supervised",
]

show_public_names(__name__)
