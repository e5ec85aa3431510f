"""Layers that pass everything on and let a person look at it: PrintShape and the summaries.

Trax keeps them in `layers/core.py`, and so they are shown there.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

from trax_torch.layers.base import Layer, PureLayer


def PrintShape(n_in: int = 1, msg: str = "") -> PureLayer:
    """Returns a layer that prints the shapes of its inputs and passes them on.

    It prints while the model is initialized, too, and not from within compiled code.

    Args:
      n_in: number of inputs.
      msg: what to print before the shapes.

    Example:
      >>> _ = PrintShape(msg='after Dense')(torch.zeros(2, 3))
      PrintShape: after Dense: [(2, 3)[float32]]

    Source: Trax `layers/core.py::PrintShape`.
    """
    f = functools.partial(_print_shape, msg=msg)
    return PureLayer(f, n_in=n_in, n_out=n_in, name=f"PrintShape_{n_in}")


class _Summary(Layer):
    """Keeps what it last saw in a buffer, for `Loop` to write to TensorBoard."""

    def __init__(self, name: str, n_in: int, value: torch.Tensor):
        tag = f"summary_{name}"
        super().__init__(n_in=n_in, n_out=n_in, name=tag)
        self._state_names = {tag: "value"}
        self.value: torch.Tensor
        self.register_buffer("value", value, persistent=False)

    @property
    def last_summary(self) -> tuple[str, torch.Tensor]:
        """`(tag, value)`: under which name to show what was seen last, and what it was."""
        return self._name, self.value

    def _set_own_state(self, attribute: str, value: torch.Tensor) -> None:
        self.value = value.detach().clone()


class SummaryScalar(_Summary):
    """Passes a tensor on, and keeps one number made of it to be shown in TensorBoard.

    The number is under `summary_<name>` in the state, and in `layer.last_summary`; 0 before
    the first call. No gradient flows through it.

    Args:
      name: what it is shown as, after `summary_`.
      aggregation_fun: makes a tensor with one element of the input; its mean by default.

    Raises:
      LayerError: if `aggregation_fun` gives more than one number.

    Example:
      >>> layer = SummaryScalar('activations')
      >>> _ = layer(torch.tensor([1., 3.]))
      >>> layer.last_summary
      ('summary_activations', tensor(2.))

    Source: Trax `layers/core.py::SummaryScalar`.
    """

    def __init__(self, name: str, aggregation_fun: Callable[[torch.Tensor], Any] = torch.mean):
        super().__init__(name, 1, torch.zeros(()))
        self._aggregation_fun = aggregation_fun

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns its input."""
        seen = x.detach() if x.is_floating_point() else x.float()
        value = torch.as_tensor(self._aggregation_fun(seen), device=x.device)
        if value.numel() != 1:
            raise ValueError(
                f"{self._name} shows one number, but its aggregation_fun made a tensor of shape "
                f"{tuple(value.shape)}. Let it reduce all axes, as torch.mean does."
            )
        self.value = value.reshape(()).float()
        return x


class SummaryImage(_Summary):
    """Passes tensors on, and keeps the first of each batch to be shown in TensorBoard as images.

    The images are under `summary_<name>` in the state, and in `layer.last_summary`: a tensor
    (images, n_in * height, width, channels), without images before the first call. An image has
    its inputs one below the other.

    Args:
      name: what it is shown as, after `summary_`.
      n_in: number of inputs, each (batch, height, width, channels).
      num_summaries: how many images of a batch are kept.
      recover_fn: maps one item of the batch to an image; by default it is one.

    Source: Trax `layers/core.py::SummaryImage`, which has an entry for each image, and takes the
      rows of one image for a batch where `n_in` is 1.
    """

    def __init__(
        self,
        name: str,
        n_in: int,
        num_summaries: int = 5,
        recover_fn: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        super().__init__(name, n_in, torch.zeros(0, 1, 1, 1))
        self._num_summaries = num_summaries
        self._recover_fn = recover_fn

    def forward(self, x: Any) -> Any:
        """Returns its inputs."""
        tensors = (x,) if self._n_in == 1 else x[: self._n_in]
        images = []
        for items in zip(*(t.detach()[: self._num_summaries] for t in tensors), strict=True):
            parts = [item if self._recover_fn is None else self._recover_fn(item) for item in items]
            images.append(torch.cat(parts, dim=0))
        if images:
            self.value = torch.stack(images)
        return x


def _print_shape(xs: Any, msg: str) -> Any:
    if not torch.compiler.is_compiling():  # where a print would cut the graph in two
        items = xs if isinstance(xs, (tuple, list)) else (xs,)
        shown = (f"{tuple(x.shape)}[{str(x.dtype).removeprefix('torch.')}]" for x in items)
        print(f"PrintShape: {msg}: [{', '.join(shown)}]")
    return xs
