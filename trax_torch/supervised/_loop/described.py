"""What a Loop is, for people: a few lines, and what it would do next."""

import itertools
from typing import Any

from torch import nn

from trax_torch import _tables
from trax_torch.supervised import _checkpoint

_FAR = 10_000  # how many steps are looked at for what is due


class Described:
    """A Loop that says what it is; it asks ranks nothing, so each may be asked by itself."""

    def __repr__(self: Any) -> str:
        name = type(self).__name__
        if "_after" not in vars(self):
            return f"<{name} that was not built>"
        where = "" if self._config.output_dir is None else f", saved in {self._config.output_dir}"
        head = f"{_of_model(self._parts.model)}, at step {self._state.step:,}{where}"
        lines = [head, *map(str, (*self._tasks, *self._eval_tasks))]
        return f"{name}[\n" + "".join(f"  {line}\n" for line in lines) + "]"

    def summary(self: Any) -> _tables.Text:
        """Returns what the run is, line by line: device, ranks, tasks, and what is due next.

        Returns:
          A text to print, which shows itself at a prompt. What is due next is found by asking the
          functions of a step, such as `checkpoint_at`, of the 10,000 steps to come.
        """
        config, world, step = self._config, self._world, self._state.step
        names = {"fp16": "float16 with a scaled loss", "bf16": "bfloat16 by autocast"}
        precision = names.get(config.precision, config.precision or "that of the weights")
        if config.stays_in_float32(world.device):
            precision = "float32, as this processor does not multiply bfloat16"
        lines = [
            ("model", _of_model(self._parts.model)),
            ("step", f"{step:,}"),
            ("device", str(world.device)),
            ("ranks", f"{world.size}" + (f", this is {world.rank}" if world.size > 1 else "")),
            ("precision", str(precision)),
            *([("settings", str(config))] if str(config) else []),
            *(("task", str(task)) for task in self._tasks),
            *(("eval task", str(task)) for task in self._eval_tasks),
            ("seed", str(self._state.seed)),
            ("output_dir", str(config.output_dir)),
        ]
        if config.output_dir is not None:
            saved = self._saver.saved_step
            lines.append(("last checkpoint", "none" if saved is None else f"of step {saved:,}"))
            lines.append(("next checkpoint", self._next_checkpoint()))
        lines.append(("next evals", self._next("evals") + self._at_end()))
        return _tables.items(lines)

    def _next_checkpoint(self: Any) -> str:
        step = self._state.step
        for later in range(step + 1, step + 1 + _FAR):
            names = self._after.due_at(later).names
            if names:
                return f"step {later:,}: {', '.join(names)}{self._at_end()}"
        return f"none in {_FAR:,} steps{self._at_end()}"

    def _next(self: Any, what: str) -> str:
        step = self._state.step
        due = (s for s in range(step + 1, step + 1 + _FAR) if getattr(self._after.due_at(s), what))
        found = next(itertools.islice(due, 1), None)
        return f"none in {_FAR:,} steps" if found is None else f"step {found:,}"

    def _at_end(self: Any) -> str:
        return ", and the end of a run" if self._config.save_at_end else ""


def _of_model(layer: Any) -> str:
    model: nn.Module = _checkpoint.bare(layer)
    parameters = list(model.parameters())
    n = sum(p.numel() for p in parameters)
    frozen = sum(p.numel() for p in parameters if not p.requires_grad)
    size = _tables.amount(sum(p.numel() * p.element_size() for p in parameters))
    name = getattr(layer, "name", type(model).__name__)
    return f"{name} of {n:,} weights ({size})" + (f", {frozen:,} of them frozen" if frozen else "")
