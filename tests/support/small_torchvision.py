"""torchvision beside torch's small build: its own build for GPUs loads no kernels there.

It then fails to import, since it describes two of them, which are not there; and so do timm, and
models of transformers that look whether it is installed. No test here calls them: with their names
known, the rest works.
"""

import importlib.util
from pathlib import Path

import torch


def install():
    """Makes torchvision, if it is installed, importable."""
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return
    for kernels in Path(found.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(kernels)
        except OSError:
            signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            for name in ("nms", "qnms"):
                torch.library.define(f"torchvision::{name}", signature)
