"""Steps of a Loop that leave no trace: what they changed is put back, to the last bit."""

import contextlib
import copy
from collections.abc import Callable, Generator
from typing import Any

import torch

from trax_torch import _generators, _nest
from trax_torch.supervised import _tasks
from trax_torch.supervised._loop.ambient import float32_precision

Take = Callable[[Any, int, float], float]  # a batch, a seed and a rate to a loss


@contextlib.contextmanager
def rehearsal(loop: Any, moves_data: bool) -> Generator[Take]:
    """Yields a function that trains the first task for a step, and puts the run back after that.

    Args:
      loop: the `Loop`; its callbacks hear of nothing.
      moves_data: whether the task's data is drawn from meanwhile.

    Raises:
      ValueError: if several ranks train, or the data cannot go back.
    """
    if loop.n_devices > 1:
        raise ValueError(
            f"A search for a learning rate is for one process; {loop.n_devices} train here. Run "
            f"the script alone, with the batch size of all ranks together."
        )
    loop._saver.check_whole()
    loop._stepper.check_finite()
    parts, task = loop._parts, loop.tasks[0]
    trainer, met = parts.trainers[0], parts.meetings[0]
    data_back = _data_back(task) if moves_data else lambda: None
    back = _run_back(loop)

    def take(batch: Any, seed: int, rate: float) -> float:
        moved = met.arranged(_nest.to_tensors(batch, loop._world.device))
        loss, _ = trainer.one_step(moved, rng=seed, learning_rate=rate, measure_weights=False)
        return float(loss)

    try:
        parts.model.train()
        trainer.renew_params()
        with float32_precision(loop._config):
            yield take
    finally:
        trainer.forget_verdicts()
        back()
        data_back()


def _data_back(task: _tasks.TrainTask) -> Callable[[], None]:
    """Returns what has data go back to where it is now."""
    stream = task.stream
    position = copy.deepcopy(stream.position())
    if stream.has_passed({**position, "n_taken": position["n_taken"] - 1}):
        raise ValueError(
            "The task's labeled_data is an iterator without a state, which does not go back to "
            "where it is now. Give data to train on meanwhile, labeled_data=batches(); or build "
            "the task of what can go back: a DataLoader, a list, or what has a state_dict."
        )
    return lambda: stream.seek(position)


def _run_back(loop: Any) -> Callable[[], None]:
    """Returns what puts everything but data back as it is now."""
    members = loop._parts.members(loop.tasks, loop.eval_tasks, [])
    found, info = members.take()
    kept = {part: {n: t.clone() for n, t in tensors.items()} for part, tensors in found.items()}
    tensors, own = members.take_own(0)
    kept["state"] |= tensors
    modules = list(loop._parts.model.modules())
    modes = [module.training for module in modules]
    buffers = [(b, b.clone()) for b in loop._parts.model.buffers()]  # those not saved, too
    grads = [(p, p.grad) for p in loop._parts.model.parameters()]
    trainer = loop._parts.trainers[0]
    is_given, groups = trainer.rate_is_given, trainer.groups()
    generators = _generators.take()

    def back() -> None:
        members.put(kept, info, [own], loop.step, loop._world, exact_data=False)
        trainer.rate_is_given = is_given
        for group, before in zip(trainer.optimizer.param_groups, groups, strict=True):
            group.update(before)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for p, grad in grads:
            p.grad = grad
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        generators.put()

    return back
