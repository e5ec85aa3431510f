#!/usr/bin/env bash
# torch.optim with lr as a tensor: all parameter groups hold that one tensor, and schedulers write over it in turn.
#
# A tensor is what fused, capturable and compiled optimizers want for a rate that changes. Groups without an lr of their
# own are given the default, which for a tensor is the same object in each; a scheduler changes it in place, group after
# group. So where groups should have unlike rates, all have the last one's, and get_last_lr() says so, too; and
# ReduceLROnPlateau multiplies the one rate once for each group: with two, by factor squared. Nothing warns. It is right
# with a float, or with a tensor in each group.
#
# Seen (the same under 2.14.1), rates of two groups from lr=0.1, a float, a tensor, and a tensor in each group:
#   LambdaLR, 1 and 0.5 times: [0.1, 0.05] [0.05, 0.05] [0.1, 0.05]
#   OneCycleLR, up to 0.1 and 0.2: [0.004, 0.008] [0.008, 0.008] [0.004, 0.008]
#   CyclicLR, from 0.01 and 0.02: [0.01, 0.02] [0.02, 0.02] [0.01, 0.02]
#   SWALR, to 0.05 and 0.02: [0.05, 0.02] [0.02, 0.02] [0.05, 0.02]
#   ReduceLROnPlateau, by 0.5: [0.05, 0.05] [0.025, 0.025] [0.05, 0.05]
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cat > "$place/look.py" <<'PY'
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

SCHEDULERS = {
    "LambdaLR, 1 and 0.5 times": lambda o: lr_scheduler.LambdaLR(o, [lambda _: 1.0, lambda _: 0.5]),
    "OneCycleLR, up to 0.1 and 0.2": lambda o: lr_scheduler.OneCycleLR(o, [0.1, 0.2], total_steps=10),
    "CyclicLR, from 0.01 and 0.02": lambda o: lr_scheduler.CyclicLR(
        o, [0.01, 0.02], [0.1, 0.2], cycle_momentum=False
    ),
    "SWALR, to 0.05 and 0.02": lambda o: SWALR(o, [0.05, 0.02], anneal_epochs=0),
    "ReduceLROnPlateau, by 0.5": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0),
}


def groups(**kwargs):
    return [{"params": [nn.Parameter(torch.zeros(1))], **{k: v() for k, v in kwargs.items()}} for _ in range(2)]


def tensor():
    return torch.tensor(0.1)


def rates(optimizer, scheduled):
    scheduler = scheduled(optimizer)
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        for _ in range(2):
            optimizer.step()
            scheduler.step(1.0)
    elif isinstance(scheduler, SWALR):
        optimizer.step()
        scheduler.step()
    return [round(float(group["lr"]), 4) for group in optimizer.param_groups]


for name, scheduled in SCHEDULERS.items():
    ways = (
        torch.optim.Adam(groups(), lr=0.1),
        torch.optim.Adam(groups(), lr=tensor()),
        torch.optim.Adam(groups(lr=tensor), lr=tensor()),
    )
    print(f"{name}:", *(rates(optimizer, scheduled) for optimizer in ways))
PY
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.1
"$place/venv/bin/python" "$place/look.py" | tee "$place/seen"
diff "$place/seen" - <<'SEEN'
LambdaLR, 1 and 0.5 times: [0.1, 0.05] [0.05, 0.05] [0.1, 0.05]
OneCycleLR, up to 0.1 and 0.2: [0.004, 0.008] [0.008, 0.008] [0.004, 0.008]
CyclicLR, from 0.01 and 0.02: [0.01, 0.02] [0.02, 0.02] [0.01, 0.02]
SWALR, to 0.05 and 0.02: [0.05, 0.02] [0.02, 0.02] [0.05, 0.02]
ReduceLROnPlateau, by 0.5: [0.05, 0.05] [0.025, 0.025] [0.05, 0.05]
SEEN
echo "as described"
