"""What the evals of a step find: each eval task's values, and what layers showed meanwhile."""

from collections.abc import Iterator
from typing import Any

from trax_torch import _distributed, _seeds
from trax_torch.supervised import _logging
from trax_torch.supervised._loop.build import Parts


def measured(
    parts: Parts, world: _distributed.World, seed: int, step: int
) -> Iterator[tuple[dict[str, float], dict[str, Any]]]:
    """Yields each eval task's metrics, and what summary layers saw in its batches, by name.

    Args:
      parts: what runs.
      world: the ranks that measure together.
      seed: the run's.
      step: the last one that was taken.
    """
    world.sum([])  # that all are here
    model = parts.renew_measured()
    world.copy_from_chief_(list(model.buffers()))
    for index, evaluator in enumerate(parts.evaluators):
        means = evaluator.means(_seeds.derive(seed, "eval", step, index, world.rank))
        yield means, _logging.summaries_of(model)
