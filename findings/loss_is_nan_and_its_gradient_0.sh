#!/usr/bin/env bash
# torch's cross-entropy over a batch of which nothing counts is NaN, and its gradient is 0.
#
# The mean over no labels is 0 / 0. Written out, with weights of 0, the loss is NaN and so are all gradients;
# cross_entropy and nll_loss, where all labels are ignore_index, give a loss that is NaN and gradients of
# exactly 0. So what looks at gradients (a GradScaler, clipping, a check for gradients that are not finite)
# sees nothing and the step goes on, with momentum and weight decay; what adds losses up, over the parts of a
# batch or for a log, has NaN for the rest of its life. Which of the two a loop looks at decides what it does
# with a padded last batch. mse_loss over no rows is NaN in the loss, too.
#
# Seen (the same under 2.14.1):
#   cross_entropy: loss nan, gradient 0.0; scaler skips the step: False
#   nll_loss: loss nan, gradient 0.0; scaler skips the step: False
#   written out: loss nan, gradient nan; scaler skips the step: True
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cat > "$place/look.py" <<'PY'
import torch
from torch.nn import functional as F

labels = torch.full((3,), -100)


def written_out(logits):
    each = F.cross_entropy(logits, torch.zeros(3, dtype=torch.long), reduction="none")
    counts = (labels != -100).float()
    return (each * counts).sum() / counts.sum()


losses = {
    "cross_entropy": lambda logits: F.cross_entropy(logits, labels),
    "nll_loss": lambda logits: F.nll_loss(logits.log_softmax(-1), labels),
    "written out": written_out,
}
for name, loss_of in losses.items():
    logits = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4))
    optimizer = torch.optim.SGD([logits], lr=1.0, weight_decay=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    loss = loss_of(logits)
    scaler.scale(loss).backward()
    gradient = logits.grad.abs().max().item()
    before = logits.detach().clone()
    scaler.step(optimizer)
    skips = torch.equal(before, logits)
    print(f"{name}: loss {loss.item()}, gradient {gradient}; scaler skips the step: {skips}")
PY
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.1
"$place/venv/bin/python" "$place/look.py" | tee "$place/seen"
diff "$place/seen" - <<'SEEN'
cross_entropy: loss nan, gradient 0.0; scaler skips the step: False
nll_loss: loss nan, gradient 0.0; scaler skips the step: False
written out: loss nan, gradient nan; scaler skips the step: True
SEEN
echo "as described"
