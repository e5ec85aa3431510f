"""What a run is made of, as it goes: its seed, its first weights, each batch, and who drew.

Two runs that should be one are told apart by it, and why they part. Nothing is changed in either.
"""

import functools
from collections.abc import Callable, Generator
from typing import Any

from trax_torch import _distributed, _generators
from trax_torch._digest import digest
from trax_torch.supervised._checkpoint import state

_WHOSE = {"torch": "torch's", "numpy": "numpy's", "random": "Python's"}


class Witness:
    """Watches a Loop while its block runs.

    Args:
      loop: is not changed, but that its tasks' batches are looked at.

    Attributes:
      seed: the run's random seed.
      step: how many steps had been taken before.
      weights: a digest of each weight and buffer, or of this rank's part, as the run began.
      batches: digests of the batches of each task and eval, in order, by what to call their data.
      drew: by the same names, which process-wide generators moved while batches were drawn; and
        for "", which moved in between.
    """

    def __init__(self, loop: Any):
        self.seed, self.step = loop.random_seed, loop.step
        tensors = state.weights_of(loop.model) | state.buffers_of(loop.model)
        self.weights = {n: digest(_distributed.local(tensor)) for n, tensor in tensors.items()}
        self.batches: dict[str, list[str]] = {}
        self.drew: dict[str, set[str]] = {"": set()}
        self._last = _generators.take()
        self._watched: list[tuple[Any, str, Any]] = [
            *((task, "next_batch", f"task {i}") for i, task in enumerate(loop.tasks)),
            *((task, "batches", f"eval {i}") for i, task in enumerate(loop.eval_tasks)),
        ]

    def __enter__(self) -> "Witness":
        for task, method, name in self._watched:
            watch = self._watch_next if method == "next_batch" else self._watch_all
            setattr(task, method, functools.partial(watch, name, getattr(task, method)))
        return self

    def __exit__(self, *_: object) -> None:
        for task, method, name in self._watched:
            delattr(task, method)
            self.drew.setdefault(name, set()).update(task.stream.draws_from)
        self._watched.clear()

    def _watch_next(self, name: str, draw: Callable[[], Any]) -> Any:
        self._note("")
        try:
            batch = draw()
        finally:  # the end of an eval's batches is a draw, too
            self._note(name)
        self.batches.setdefault(name, []).append(digest(batch))
        return batch

    def _watch_all(
        self, name: str, batches: Callable[[], Generator[Any, None, None]]
    ) -> Generator[Any, None, None]:
        drawn = batches()
        try:
            while True:
                yield self._watch_next(name, functools.partial(next, drawn))
        except StopIteration:
            return
        finally:
            drawn.close()

    def _note(self, name: str) -> None:
        """Notes which generators moved since the last note, while `name` was drawn."""
        now = _generators.take(self._last)
        self.drew.setdefault(name, set()).update(self._last.moved(now))
        self._last = now


def why(whole: Witness, first: Witness, rest: Witness) -> str:
    """Returns why a run that was resumed is not one that was not stopped, as far as that shows.

    Args:
      whole: of the run in one go; first: of its like, as far as it went; rest: of the latter's
        resumption.
    """
    return _why_begun_otherwise(whole, first) or _why_gone_on_otherwise(whole, first, rest)


def _why_begun_otherwise(whole: Witness, first: Witness) -> str:
    """Returns why two runs differ that both began anew; "" if they do not."""
    reasons = []
    if whole.seed != first.seed:
        reasons.append(
            f"random_seed is missing: two new runs drew {whole.seed} and {first.seed}, from "
            f"torch's generator, which nobody seeded. Give Loop a random_seed, or call "
            f"torch.manual_seed(0) where make_loop begins."
        )
    other = [name for name in whole.weights if whole.weights[name] != first.weights.get(name)]
    if other:
        reasons.append(
            f"The model is another each time that make_loop builds it: {other[0]} "
            f"({len(other)} of {len(whole.weights)} tensors). Call torch.manual_seed(0) where "
            f"make_loop begins."
        )
    for name, batches in first.batches.items():
        i = _first_other(whole.batches.get(name, []), batches)
        if i is not None and not (name.startswith("eval") and reasons):
            reasons.append(
                f"The data of {name} is another each time that make_loop builds it, from batch "
                f"{i + 1} of the run on{_by(whole, name)}. Seed it where make_loop begins, and "
                f"give a shuffling DataLoader a generator of its own."
            )
    return " ".join(reasons)


def _why_gone_on_otherwise(whole: Witness, first: Witness, rest: Witness) -> str:
    """Returns why a run goes on otherwise than one that began alike."""
    for name, batches in rest.batches.items():
        n = len(first.batches.get(name, []))
        i = _first_other(whole.batches.get(name, [])[n:], batches)
        if i is not None:
            return (
                f"The data of {name} goes on elsewhere: batch {i + 1} after the resume is not "
                f"batch {n + i + 1} of the run{_by(whole, name)}. Give it a generator of its own, "
                f"or a state_dict and a load_state_dict that bring back the next batch."
            )
    drew = _named(whole.drew[""] - {"torch"})  # evals and steps run on torch's own, keyed
    if drew:
        return (
            f"All batches are the same. Beside the data, the model or a callback draws from "
            f"{drew} process-wide generator, whose place no checkpoint keeps. Draw from torch's "
            f"in forward, and from Loop.new_rng() elsewhere."
        )
    return (
        "All batches are the same, and no process-wide generator moved but for data. So the model, "
        "the optimizer, a scheduler or a callback keeps something that no checkpoint holds, or "
        "computes otherwise each time. Keep state in buffers, get_extra_state or a state_dict, "
        "and see torch.use_deterministic_algorithms."
    )


def _first_other(one: list[str], other: list[str]) -> int | None:
    """Returns which is the first that differs of as many as both have; None if none does."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), None)


def _by(witness: Witness, name: str) -> str:
    drew = _named(witness.drew.get(name, set()))
    return f"; it draws from {drew} process-wide generator" if drew else ""


def _named(generators: set[str]) -> str:
    return " and ".join(_WHOSE[name] for name in sorted(generators, reverse=True))
