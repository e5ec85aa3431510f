"""One training step: forward, loss, backward, clip, update."""

import contextlib
import math
from typing import Any

import torch

from trax_torch import _seeds
from trax_torch import layers as tl
from trax_torch.optimizers import base

Stats = dict[str, Any]  # floats on a CPU, else scalar tensors on the device


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
        self.optimizer = base.bind(optimizer, self.params, model_with_loss.parameters())
        self._clip_grad_norm = base.clip_norm_of(optimizer)
        # On a CPU nothing is waited for when a number is read. Elsewhere numbers stay on the
        # device, and fused kernels take the verdict on a step there, so that no step waits for it.
        self._on_cpu = all(p.device.type == "cpu" for p in self.params)
        self._decides_on_device = not self._on_cpu and bool(self.optimizer.defaults.get("fused"))
        self._bad_steps: torch.Tensor | None = None
        self._keyed = _seeds.Keyed(self.params[0].device if self.params else None)

    def one_step(
        self,
        batch: Any,
        rng: Any = None,
        step: int = 0,
        learning_rate: float | None = None,
        *,
        measure_weights: bool = True,
    ) -> tuple[Any, Stats]:
        """Updates the weights by the gradient of one batch.

        Args:
          batch: a tuple of tensors on the model's device.
          rng: a seed for this step's random numbers; None draws from the default generators.
          step: the step's number, for messages.
          learning_rate: the rate for this step; None leaves the optimizer's own.
          measure_weights: False leaves out `weights_l2`, which takes a pass over all weights.

        Returns:
          `(loss, stats)`: stats holds `loss`, `gradients_l2` before clipping, and `weights_l2`
          before the update; floats on a CPU, else scalar tensors on the device.

        Raises:
          NonFiniteError: if the loss or the gradients' norm is not finite; no weight has changed.
            On CUDA with fused kernels the step is skipped and `check` raises.
        """
        if learning_rate is not None:
            if not math.isfinite(learning_rate):
                raise ValueError(
                    f"Step {step}: the learning rate is {learning_rate}; a rate is a finite number."
                )
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
        for p in self.params:  # all of them: the optimizer may hold but a few
            p.grad = None
        with self._random_numbers(rng):
            loss = self.model_with_loss(batch)
            loss.backward()
        grads = [p.grad for p in self.params if p.grad is not None]
        stats = {
            "loss": loss.item() if self._on_cpu else loss.detach(),
            "gradients_l2": self._norm(grads),
        }
        if measure_weights:
            with torch.no_grad():
                stats["weights_l2"] = self._norm(self.params)
        self._update(grads, stats, step)
        return stats["loss"], stats

    def check(self) -> None:
        """Raises NonFiniteError if a step was skipped on the device since the last check."""
        if self._bad_steps is not None and bool(self._bad_steps):
            count = int(self._bad_steps)
            self._bad_steps.zero_()
            raise NonFiniteError(f"{count} steps had a loss or gradient that is not finite.")

    def _random_numbers(self, rng: Any) -> Any:
        return contextlib.nullcontext() if rng is None else self._keyed(_seeds.as_seed(rng))

    def _norm(self, tensors: list[Any]) -> Any:
        """Returns the L2 norm of all tensors together."""
        tensors = [t.coalesce().values() if t.is_sparse else t for t in tensors]
        norms = torch._foreach_norm(tensors) if tensors else ()
        if self._on_cpu:
            return math.hypot(*[n.item() for n in norms])
        if not norms:
            return torch.zeros((), device=self.params[0].device)
        return torch.linalg.vector_norm(torch.stack([n.float() for n in norms]))

    def _update(self, grads: list[torch.Tensor], stats: Stats, step: int) -> None:
        """Clips the gradients and moves the weights, if loss and gradients are finite."""
        verdict = stats["loss"] + stats["gradients_l2"]  # finite if both are
        if self._decides_on_device:
            bad = torch.logical_not(torch.isfinite(verdict)).float()
            self._bad_steps = bad if self._bad_steps is None else self._bad_steps + bad
            self.optimizer.found_inf = bad  # type: ignore[attr-defined]
        elif not math.isfinite(verdict):
            raise NonFiniteError(
                f"Step {step}: the loss is {float(stats['loss'])} and the gradients' norm "
                f"{float(stats['gradients_l2'])}, so the step was not taken. Look at this batch, "
                f"lower the learning rate, or clip: clip_grad_norm=1.0."
            )
        self._clip(grads, stats["gradients_l2"])
        self.optimizer.step()

    def _clip(self, grads: list[torch.Tensor], gradients_l2: Any) -> None:
        limit = self._clip_grad_norm
        if limit is None or (self._on_cpu and gradients_l2 < limit):
            return
        if self._on_cpu:
            factor = limit / gradients_l2
        else:
            factor = torch.where(gradients_l2 >= limit, limit / gradients_l2, 1.0)
        torch._foreach_mul_(grads, factor)
