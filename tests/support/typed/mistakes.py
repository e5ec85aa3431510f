"""A user's program with mistakes that a type checker is to find; each has its line."""

import functools
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from trax_torch import layers as tl
from trax_torch import models, optimizers
from trax_torch.supervised import EvalTask, Loop, TrainTask, callbacks, decoding

Batch = tuple[torch.Tensor, torch.Tensor]


def batches() -> Iterator[Batch]:
    while True:
        yield torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(x)
        return out


class Watch(callbacks.TrainingStepCallback):
    def on_step_end(self, step: int) -> None:
        print(self._loop.stepp)  # mistake: the loop has a step


net = Net()
sgd = torch.optim.SGD(net.parameters(), 0.1)
task = TrainTask(batches(), nn.CrossEntropyLoss(), sgd)

Loop(task, net)  # mistake: the model comes first
Loop(net, batches())  # mistake: data is no task
Loop(net, [3])  # mistake: nor is a number
Loop([net], task)  # mistake: a list is no model
Loop(net, task, eval_tasks=task)  # mistake: to measure takes an EvalTask
TrainTask(3, nn.CrossEntropyLoss(), sgd)  # mistake: a number is no data
TrainTask(batches(), "mse", sgd)  # mistake: a word is no loss
TrainTask(batches(), nn.CrossEntropyLoss(), "adam")  # mistake: nor an optimizer
TrainTask(batches(), nn.CrossEntropyLoss(), optimizers.Adam(0.1), 0.1)  # mistake: nor a schedule
EvalTask(batches(), 3)  # mistake: a number is no metric
EvalTask(batches(), nn.CrossEntropyLoss(), n_eval_batches="4")  # mistake: a word is no number
Loop(net, task, strategy="dpp")  # mistake: a slip of the pen
Loop(net, task, precision="bf61")  # mistake: likewise
Loop(net, task, best_at="end")  # mistake: no such time
Loop(net, task, on_nonfinite="ignore")  # mistake: no such way
Loop(net, task, resume_data="again")  # mistake: likewise
Loop(net, task, max_epochs=3)  # mistake: no such argument
Loop(net, task, callbacks=[Watch(Loop(net, task))])  # mistake: made already
Loop(net, task, callbacks=[functools.partial(callbacks.EarlyStopping, mode="low")])  # mistake: mode
loop = Loop(net, task)
loop.fit(3)  # mistake: a loop runs
loop.run(epochs=3)  # mistake: it counts steps
loop.run("3")  # mistake: a word is no number
text: str = loop.model  # mistake: the model is a Net
tl.Dropout(0.1, mode="training")  # mistake: a mode is 'train'
lm = models.TransformerLM(12, mode="test")  # mistake: and not 'test'
decoding.autoregressive_sample(lm, temperature="hot")  # mistake: a word is no number
decoding.autoregressive_sample(lm, np.array([[1]]), max_new_tokens=3)  # mistake: no such argument
print(decoding.autoregressive_sample(lm).shpae)  # mistake: samples are a tensor
pair = decoding.autoregressive_sample(lm, return_log_probs=True).shape  # mistake: a pair
decoding.beam_search(lm, num_beams=3)  # mistake: no such argument
