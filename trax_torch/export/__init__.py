"""A checkpoint's weights as a file for anybody: `trax_torch.export`, the function and the command.

`python -m trax_torch.export RUN OUT` writes OUT, one plain safetensors file.
"""

from trax_torch.supervised._checkpoint import export

__all__ = ["export"]
