"""Torch's process-wide modes around a run: those it refuses, and those it sets for a while."""

import contextlib
from collections.abc import Generator
from typing import Any

import torch

from trax_torch.supervised._loop.settings import LoopConfig

_LEVELS = {"fp32": "highest", "tf32": "high"}


def refuse_modes(device: torch.device) -> None:
    """Raises RuntimeError if training cannot be right in the modes that torch is in."""
    if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        raise RuntimeError(
            "Training needs gradients, and torch.no_grad() or torch.inference_mode() is on around "
            "run(). Call run() outside of it."
        )
    for kind in {"cpu", device.type}:
        if torch.is_autocast_enabled(kind):
            raise RuntimeError(
                f"torch.autocast({kind!r}) is on around run(); it would keep its copies of the "
                f"weights from step to step, as they were before the first. Call run() outside of "
                f"it, and build Loop(precision='bf16') to compute in bfloat16."
            )


@contextlib.contextmanager
def float32_precision(config: LoopConfig) -> Generator[None]:
    """Has float32 multiplied as 'fp32' or 'tf32' says, and puts torch's settings back after."""
    if config.precision not in _LEVELS:
        yield
        return
    level = _LEVELS[config.precision]
    places = _places()
    before = [place.fp32_precision for place in places]
    for_matmul, for_cudnn = _for_matmul(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(level)
    torch.backends.cudnn.allow_tf32 = level == "high"
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = for_cudnn
        if for_matmul is not None:
            torch.set_float32_matmul_precision(for_matmul)
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


def _places() -> list[Any]:
    """Returns what has torch's settings of one library each; the first setters set several."""
    backends: Any = torch.backends
    return [backends.cuda.matmul, backends.mkldnn.matmul, backends.cudnn.conv, backends.cudnn.rnn]


def _for_matmul() -> str | None:
    """Returns torch's setting of all libraries, or None where they differ."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None
