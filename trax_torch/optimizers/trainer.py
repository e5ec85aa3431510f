"""One training step: forward, loss, backward, clip, update."""

import contextlib
from typing import Any

import torch

from trax_torch import _seeds
from trax_torch import layers as tl
from trax_torch.optimizers import base


class NonFiniteError(ArithmeticError):
    """A loss or a gradient is infinite or not a number; the step has changed no weight."""


class Trainer:
    """Takes training steps of a model and its loss.

    Args:
      model_with_loss: a layer that maps a batch to one scalar, the loss.
      optimizer: a recipe, a torch optimizer of the model's parameters, or a class of either.

    Source: Trax `optimizers/trainer.py::Trainer`.
    """

    def __init__(self, model_with_loss: tl.Layer, optimizer: Any):
        self.model_with_loss = model_with_loss
        self.params = [p for p in model_with_loss.parameters() if p.requires_grad]
        self.optimizer = base.bind(optimizer, self.params)
        self._clip_grad_norm = base.clip_norm_of(optimizer)
        # Fused kernels take the verdict on a step as a tensor, so that no step waits for the device.
        self._on_device = bool(self.optimizer.defaults.get("fused")) and any(
            p.device.type == "cuda" for p in self.params
        )
        self._bad_steps: torch.Tensor | None = None
        self._keyed = _seeds.Keyed(self.params[0].device if self.params else None)

    def one_step(
        self, batch: Any, rng: Any = None, step: int = 0, learning_rate: float | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Updates the weights by the gradient of one batch.

        Args:
          batch: a tuple of tensors on the model's device.
          rng: a seed for this step's random numbers; None draws from the default generators.
          step: the step's number, for messages.
          learning_rate: the rate for this step; None leaves the optimizer's own.

        Returns:
          `(loss, stats)`, scalars on the device: stats holds `loss`, `gradients_l2` before
          clipping, and `weights_l2` before the update.

        Raises:
          NonFiniteError: if the loss or the gradients' norm is not finite; no weight has changed.
            On CUDA with fused kernels the step is skipped and `check` raises.
        """
        if learning_rate is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        with self._random_numbers(rng):
            loss = self.model_with_loss(batch)
            loss.backward()
        stats = self._clip_and_measure(loss.detach())
        if self._stop_bad_step(stats, step):
            self.optimizer.step()
        return stats["loss"], stats

    def check(self) -> None:
        """Raises NonFiniteError if a step was skipped on the device since the last check."""
        if self._bad_steps is not None and bool(self._bad_steps):
            count = int(self._bad_steps)
            self._bad_steps.zero_()
            raise NonFiniteError(f"{count} steps had a loss or gradient that is not finite.")

    def _random_numbers(self, rng: Any) -> Any:
        return contextlib.nullcontext() if rng is None else self._keyed(_seeds.as_seed(rng))

    def _clip_and_measure(self, loss: torch.Tensor) -> dict[str, torch.Tensor]:
        grads = [p.grad for p in self.params if p.grad is not None]
        gradients_l2, weights_l2 = global_norms(grads, self.params)
        limit = self._clip_grad_norm
        if limit is not None and grads:
            factor = torch.where(gradients_l2 >= limit, limit / gradients_l2, 1.0)
            torch._foreach_mul_(grads, factor)
        return {"loss": loss, "gradients_l2": gradients_l2, "weights_l2": weights_l2}

    def _stop_bad_step(self, stats: dict[str, torch.Tensor], step: int) -> bool:
        """Returns whether to update; where the device decides, tells the optimizer what it said."""
        verdict = stats["loss"] + stats["gradients_l2"]  # finite if both are
        if self._on_device:
            bad = torch.logical_not(torch.isfinite(verdict)).float()
            self._bad_steps = bad if self._bad_steps is None else self._bad_steps + bad
            self.optimizer.found_inf = bad  # type: ignore[attr-defined]
        elif not bool(torch.isfinite(verdict)):
            raise NonFiniteError(
                f"Step {step}: the loss is {float(stats['loss'])} and the gradients' norm "
                f"{float(stats['gradients_l2'])}, so the step was not taken. Look at this batch, "
                f"lower the learning rate, or clip: clip_grad_norm=1.0."
            )
        return True


def global_norms(
    grads: list[torch.Tensor], weights: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the L2 norms of all gradients and of all weights, in one pass over both.

    Args:
      grads: tensors of any shapes; an empty list has norm 0.
      weights: likewise, on the same device.
    """
    with torch.no_grad():
        norms = torch._foreach_norm([*grads, *weights])
        if len({n.dtype for n in norms}) > 1:
            norms = [n.float() for n in norms]
        stacked = torch.stack(norms)
        return (
            torch.linalg.vector_norm(stacked[: len(grads)]),
            torch.linalg.vector_norm(stacked[len(grads) :]),
        )
