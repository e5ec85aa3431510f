"""The run whose checkpoints of format version 1 lie in tests/golden/checkpoint_v1."""

import functools

import numpy as np
import torch
from torch import nn

from trax_torch import layers as tl
from trax_torch import optimizers
from trax_torch.supervised import callbacks, lr_schedules, training


def batches(seed):
    rng = np.random.default_rng(seed)
    while True:
        x = rng.normal(size=(8, 4)).astype(np.float32)
        yield x, (x.sum(axis=1) > 0).astype(np.int64)


def loop(output_dir, **settings):
    """Returns the Loop; after `run(13)` its weights are those of after_13_steps.safetensors."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)
    )
    first = training.TrainTask(
        batches(1),
        nn.CrossEntropyLoss(),
        functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
        lr_schedule=functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=20),
        n_steps_per_checkpoint=4,
        n_steps_per_permanent_checkpoint=4,
        loss_name="first",
    )
    second = training.TrainTask(
        batches(2),
        nn.CrossEntropyLoss(),
        optimizers.Adam(0.01),
        lr_schedule=lr_schedules.warmup(5, 0.01),
        loss_name="second",
    )
    evals = training.EvalTask(
        batches(3),
        [nn.CrossEntropyLoss(), tl.CategoryAccuracy()],
        ["loss", "accuracy"],
        n_eval_batches=2,
    )
    return training.Loop(
        model,
        [first, second],
        eval_tasks=evals,
        output_dir=output_dir,
        random_seed=7,
        checkpoint_low_metric="loss",
        callbacks=[functools.partial(callbacks.ExponentialMovingAverage, decay=0.9)],
        progress=False,
        **settings,
    )
