"""A longer run of many small steps, which is killed at a step, in one of several places."""

import os
import signal

from toys import line_loop, train_task

from trax_torch.supervised._checkpoint import storage

N_STEPS = 2000


def train(folder, kill_at=0, place="step"):
    """Trains to step `N_STEPS` from wherever the folder says; dies in or after step `kill_at`."""
    loop = line_loop(
        folder,
        dropout=0.3,
        task=train_task(n_steps_per_checkpoint=20, n_steps_per_permanent_checkpoint=500),
        eval_at=lambda step: step % 100 == 0,
        checkpoint_low_metric="L2Loss",
        keep_last=2,
    )
    optimizer = loop._parts.trainers[0].optimizer
    update, forward, write = optimizer.step, loop.model.forward, storage._write

    def die(where):
        if place == where and kill_at and loop.step + (where != "save") >= kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def hooked(where, call):
        def wrapped(*args, **kwargs):
            die(where)
            return call(*args, **kwargs)

        return wrapped

    optimizer.step = hooked("update", update)
    loop.model.forward = hooked("step", forward)
    storage._write = hooked("save", write)
    loop.run(N_STEPS - loop.step)
