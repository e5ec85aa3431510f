"""A user's program without mistakes, in which a type checker is to find none."""

import functools
import pathlib
from collections.abc import Iterator
from typing import assert_type

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from trax_torch import layers as tl
from trax_torch import models, optimizers
from trax_torch.supervised import (
    EvalTask,
    Loop,
    TrainingStepCallback,
    TrainTask,
    callbacks,
    decoding,
    lr_schedules,
    share_of,
)

Array = npt.NDArray[np.float32]


def batches() -> Iterator[tuple[Array, Array, Array]]:
    while True:
        x = np.zeros((4, 2), np.float32)
        yield x, x, np.ones(x.shape, np.float32)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(x)
        return out


class Double(tl.Layer):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return 2 * tokens


class Watch(TrainingStepCallback):
    def __init__(self, loop: Loop, every: int = 10):
        super().__init__(loop)
        self.every = every

    def call_at(self, step: int) -> bool:
        return step % self.every == 0

    def on_step_end(self, step: int) -> None:
        if self._loop.is_chief:
            print(step, self._loop.history.get("eval", "metrics/L2Loss"))


def rate(step: int) -> float:
    return 0.1 / step


net = Net()
x, y = torch.zeros(8, 2), torch.zeros(8, dtype=torch.int64)
loader = DataLoader(TensorDataset(x, y), batch_size=4)
ce = nn.CrossEntropyLoss()
sgd = torch.optim.SGD(net.parameters(), 0.1)
cosine = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=10)
tasks = [
    TrainTask(loader, ce, sgd),
    TrainTask(loader, ce, sgd, cosine),
    TrainTask(loader, ce, torch.optim.Adam),
    TrainTask(loader, ce, functools.partial(torch.optim.AdamW, lr=0.1)),
    TrainTask(share_of(loader), ce, optimizers.Adam(0.01), lr_schedules.warmup(3, 0.1)),
    TrainTask([(x, y)], ce, optimizers.Adam, rate),
    TrainTask(loader, functional.cross_entropy, sgd),
    TrainTask(({"x": x} for _ in range(3)), "model", sgd),
    TrainTask(batches(), tl.L2Loss(), optimizers.SGD(0.1), n_steps_per_checkpoint=None),
]
loop = Loop(
    net,
    tasks[0],
    eval_tasks=[EvalTask(loader, [ce, tl.CategoryAccuracy()], metric_names=("loss", "right"))],
    output_dir=pathlib.Path("run"),
    checkpoint_at=lambda step: step % 100 == 0,
    callbacks=[
        Watch,
        functools.partial(Watch, every=5),
        callbacks.Monitor,
        functools.partial(callbacks.EarlyStopping, metric="loss", patience=3, mode="max"),
    ],
    precision="bf16",
    strategy="fsdp",
    on_nonfinite=3,
    resume_data="restart",
    best_at="checkpoints",
)
loop.run(10)
loop.run(until=20)
assert_type(loop.model, Net)
assert_type(loop.model.last, nn.Linear)
assert_type(loop.run_evals(), dict[str, float])
assert_type(loop.tasks, list[TrainTask])
Loop(net, tasks).run()
Loop(tl.Serial(tl.Dense(3), Double()), tasks[0], eval_tasks=EvalTask(loader, ce))

tl.Dropout(0.1, mode="eval")
lm = models.TransformerLM(12, d_model=8, mode="predict")
prompt = torch.tensor([[1, 2]])
assert_type(decoding.autoregressive_sample(lm, prompt, max_length=3), torch.Tensor)
symbols: npt.NDArray[np.int64] = decoding.autoregressive_sample(lm, np.array([[1]]), max_length=3)
tokens, log_probs = decoding.autoregressive_sample(lm, batch_size=2, return_log_probs=True)
assert_type(log_probs, torch.Tensor)
for each in decoding.autoregressive_sample_stream(lm, max_length=3):
    assert_type(each, torch.Tensor)
asked = decoding.autoregressive_sample(
    lm,
    prompt,
    max_length=3,
    n_samples=2,
    stop=[[3, 4], [5]],
    banned=[7],
    forced={0: 6, -1: [2]},
    logits_processor=[lambda tokens, logits: logits - tokens.shape[1]],
)
assert_type(asked, torch.Tensor)
assert_type(decoding.beam_search(lm, prompt, n_beams=3), torch.Tensor)
best: npt.NDArray[np.int64] = decoding.beam_search(lm, [[1, 2]], n_beams=3)[:, 0]
hypotheses, scores = decoding.beam_search(lm, return_scores=True)
assert_type(scores, torch.Tensor)
