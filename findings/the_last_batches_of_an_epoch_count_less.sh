#!/usr/bin/env bash
# Gradient accumulation: what is left at an epoch's end is a step by a part of a gradient, or waits for the next epoch.
#
# Lightning and accelerate both divide each batch's loss by the number of batches that a step is made of, and take a
# step at the end of the data, however many are left: the last of 9 batches, 4 a step, counts a quarter of the others.
# Keras takes no step for it: the batch's gradient waits for the next epoch's, or the next fit's, first three.
#
# Seen, 9 batches of one row whose gradient is 1, gradient_accumulation of 4, and torch for all:
#   lightning, the gradients of each step: [1.0, 1.0, 0.25]
#   accelerate, the gradients of each step: [1.0, 1.0, 0.25]
#   keras, steps after each of five epochs: [2, 4, 6, 9, 11]
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cat > "$place/look.py" <<'PY'
import logging

import accelerate
import keras
import lightning
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
N_BATCHES, N_A_STEP = 9, 4


def batches():
    return DataLoader(torch.ones(N_BATCHES, 1), batch_size=1)


class Line(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.slope, self.seen = nn.Parameter(torch.zeros(1)), []

    def training_step(self, batch, batch_idx):
        return (self.slope * batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def on_before_optimizer_step(self, optimizer):
        self.seen.append(self.slope.grad.item())


def by_lightning():
    line, off = Line(), {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        max_epochs=1, accumulate_grad_batches=N_A_STEP, accelerator="cpu", enable_model_summary=False, **off
    )
    trainer.fit(line, batches())
    return line.seen


def by_accelerate():
    accelerator = accelerate.Accelerator(gradient_accumulation_steps=N_A_STEP, cpu=True)
    line, seen = nn.Linear(1, 1, bias=False), []
    line, optimizer, loader = accelerator.prepare(line, torch.optim.SGD(line.parameters(), lr=1.0), batches())
    for batch in loader:
        with accelerator.accumulate(line):
            accelerator.backward(line(batch).mean())
            if accelerator.sync_gradients:
                seen.append(line.weight.grad.item())
            optimizer.step()
            optimizer.zero_grad()
    return seen


def by_keras():
    line = keras.Sequential([keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    line.build((None, 1))
    optimizer = keras.optimizers.SGD(1.0, gradient_accumulation_steps=N_A_STEP)
    line.compile(optimizer, loss=lambda labels, outputs: outputs)
    ones, seen = np.ones((N_BATCHES, 1)), []
    for _ in range(5):
        line.fit(ones, ones, batch_size=1, verbose=0, shuffle=False)
        seen.append(round(-line.get_weights()[0].item()))  # each step is one down the slope
    return seen


torch.set_num_threads(1)
print("lightning, the gradients of each step:", by_lightning())
print("accelerate, the gradients of each step:", by_accelerate())
print("keras, steps after each of five epochs:", by_keras())
PY
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.13.0 lightning==2.6.6 accelerate==1.15.0 keras==3.15.1 numpy==2.4.1
KERAS_BACKEND=torch "$place/venv/bin/python" -W ignore "$place/look.py" 2>"$place/errors" | tee "$place/seen" || cat "$place/errors"
diff "$place/seen" - <<'SEEN'
lightning, the gradients of each step: [1.0, 1.0, 0.25]
accelerate, the gradients of each step: [1.0, 1.0, 0.25]
keras, steps after each of five epochs: [2, 4, 6, 9, 11]
SEEN
echo "as described"
