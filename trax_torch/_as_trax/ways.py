"""Where Trax's code does else than its documentation says: programs rest on what it does.

`trax_torch` follows the documentation; under the name `trax` these stand in its place.
"""

import functools
import inspect
from collections.abc import Iterator
from typing import Any

from trax_torch.supervised import decoding, trainer_lib, training


@functools.wraps(decoding.autoregressive_sample_stream)
def autoregressive_sample_stream(*args: Any, **kwargs: Any) -> Iterator[Any]:
    """Yields the tokens of each position as (batch,), as Trax's code does; see `decoding`.

    Trax's documentation, and `trax_torch.supervised.decoding`, say (batch, 1).
    """
    stream = decoding.autoregressive_sample_stream(*args, **kwargs)
    return (
        tuple(x[:, 0] for x in item) if isinstance(item, tuple) else item[:, 0] for item in stream
    )


@functools.wraps(decoding.beam_search)
def beam_search(*args: Any, **kwargs: Any) -> Any:
    """Returns a pair for each beam, as Trax's code does: its tokens (batch, length), and its score.

    The score is the sum of the tokens' log-probabilities, in nats, (batch,). Beams go on to
    `max_length`: `eos_id` and `length_penalty` are taken, and have no effect, as in Trax's code.
    Trax's documentation, and `trax_torch.supervised.decoding`, say (batch, n_beams, length).
    """
    asked = inspect.signature(decoding.beam_search).bind(*args, **kwargs).arguments
    settings: dict[str, Any] = {**asked, "eos_id": -1, "length_penalty": 0.0, "return_scores": True}
    sequences, scores = decoding.beam_search(**settings)
    return [(sequences[:, k], scores[:, k]) for k in range(sequences.shape[1])]


class Loop(training.Loop[training.Model]):
    """A `Loop` whose checkpoint 'model' has a `model.pkl.gz` to look for, fill from and remove.

    The file is small and stands for the checkpoint. Where it was removed, a run begins afresh, and
    what was saved is put aside. Generators that a notebook has drawn from since the checkpoint go
    on with what comes next, as in Trax, whose checkpoints know no place in the data.
    """

    def _build(self, config: Any, model: Any, eval_model: Any, *given: Any) -> None:
        super()._build(config.in_traxs_ways(), model, eval_model, *given)

    @property
    def _task(self) -> Any:
        """The task, as Trax 1.3.4 called it; programs of courses look at it."""
        return self.tasks[0]

    @property
    def _eval_task(self) -> Any:
        """The eval task, likewise; None if there is none."""
        return self.eval_tasks[0] if self.eval_tasks else None


class Trainer(trainer_lib.Trainer):
    """A `Trainer` that trains with such a `Loop`."""

    loop_class = Loop


@functools.wraps(trainer_lib.train)
def train(*args: Any, **kwargs: Any) -> Any:
    """Trains with such a `Loop`; see `trainer_lib`."""
    asked = inspect.signature(trainer_lib.train).bind_partial(*args, **kwargs).arguments
    if "trainer_class" not in asked:
        kwargs["trainer_class"] = Trainer
    return trainer_lib.train(*args, **kwargs)


def of(address: str) -> dict[str, Any]:
    """Returns the names that a module of Trax's has from here."""
    if address == "trax.supervised.training":
        return {"Loop": Loop}
    if address == "trax.supervised":
        return {"Loop": Loop, "Trainer": Trainer}
    if address == "trax.supervised.trainer_lib":
        return {"Trainer": Trainer, "train": train}
    if address == "trax.supervised.decoding":
        return {
            "autoregressive_sample_stream": autoregressive_sample_stream,
            "beam_search": beam_search,
        }
    return {}
