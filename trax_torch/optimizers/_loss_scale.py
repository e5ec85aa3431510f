"""Loss scaling: what losses are multiplied by, so that gradients in float16 do not vanish.

This room knows how the factor follows what happened; it decides on no step.
"""

from typing import Any

import torch

from trax_torch._torch_private import foreach

_LEAST = 2.0**-14  # a factor below it has no more to give: the gradients themselves are too large
_MOST = torch.finfo(torch.float32).max


class LossScale:
    """The factor, by the rule of `torch.amp.GradScaler`.

    It is halved when gradients are not finite, and the step is skipped; it is doubled after so many
    steps in a row whose gradients were.

    Args:
      device: where the factor is, where steps are decided on there and nobody waits; None keeps it
        on the host.
      value: the factor to begin with.
      growth_factor: by which it grows.
      backoff_factor: by which it shrinks.
      growth_interval: after how many good steps it grows.

    Attributes:
      value: the factor; a number, or a scalar on the device.
      n_good: how many steps in a row were good, since it changed.
      n_skipped: how many steps were skipped since the first.

    Source: Micikevicius et al. 2017, arXiv:1710.03740.
    """

    def __init__(
        self,
        device: torch.device | None = None,
        value: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
    ):
        self._device = device
        self._growth_factor = growth_factor
        self._backoff_factor = backoff_factor
        self._growth_interval = growth_interval
        self.value: Any = None
        self.n_good: Any = None
        self.n_skipped: Any = None
        self.load_state_dict({"value": value, "n_good": 0, "n_skipped": 0})

    def gradient_of(self, loss: torch.Tensor, share: Any = 1.0) -> torch.Tensor:
        """Returns the gradient to begin a loss's backward pass with; not finite where it is not."""
        gradient: torch.Tensor = loss.detach() * 0.0 + self.value * share
        return gradient.to(loss.dtype)

    def unscale_(self, grads: list[torch.Tensor]) -> None:
        """Divides gradients by the factor."""
        if grads:
            foreach.mul_(grads, 1.0 / self.value)

    def update(self, is_bad: Any, is_loss_good: Any) -> Any:
        """Changes the factor after a step, and counts it if the factor alone is to blame.

        Args:
          is_bad: whether the gradients are not finite; a bool, or one on the device.
          is_loss_good: whether the loss, on all ranks, is.

        Returns:
          Whether the factor is to blame, so that the step is skipped and no error: the gradients
          are not finite, though the loss is, and the factor can go lower.
        """
        if self._device is None:
            n_good = 0 if is_bad else self.n_good + 1
            factor = self._backoff_factor if is_bad else 1.0
            if n_good == self._growth_interval:
                n_good, factor = 0, self._growth_factor
            self.value = self.value * factor if self.value * factor <= _MOST else self.value
            self.n_good = n_good
        else:
            n_good = torch.where(is_bad, 0, self.n_good + 1)
            grows = n_good == self._growth_interval
            grown = torch.where(grows, self.value * self._growth_factor, self.value)
            grown = torch.where(torch.isfinite(grown), grown, self.value)
            self.value = torch.where(is_bad, self.value * self._backoff_factor, grown)
            self.n_good = torch.where(grows, 0, n_good)
        is_to_blame = is_bad & is_loss_good & (self.value >= _LEAST)
        self.n_skipped = self.n_skipped + is_to_blame
        return is_to_blame

    def state_dict(self) -> dict[str, Any]:
        """Returns what it remembers, as plain numbers."""
        return {
            "value": float(self.value),
            "n_good": int(self.n_good),
            "n_skipped": int(self.n_skipped),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        for name, kind in (("value", float), ("n_good", int), ("n_skipped", int)):
            number: Any = kind(state[name])
            if self._device is not None:
                dtype = torch.float32 if kind is float else torch.int64
                number = torch.tensor(number, dtype=dtype, device=self._device)
            setattr(self, name, number)
