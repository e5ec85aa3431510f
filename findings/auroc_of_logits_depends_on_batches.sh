#!/usr/bin/env bash
# torchmetrics 1.9's AUROC of logits is another number for other sizes of batches.
#
# A curve metric stores all outputs and looks at them when it is computed, so how the rows came should
# not matter. But each update() decides for its own batch whether outputs are logits: if one of them
# lies outside [0, 1], the batch goes through a sigmoid, else it stays. A small batch of logits that
# happen to lie within is kept as it is, and ranked among the others' probabilities. Of 64 rows all at
# once, and of probabilities in batches of any size, it is right.
#
# Seen:
#   logits in batches of 64: 0.628, of 4: 0.645, of 1: 0.670
#   probabilities in batches of 64: 0.628, of 4: 0.628, of 1: 0.628
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cat > "$place/look.py" <<'PY'
import torch
from torchmetrics.classification import BinaryAUROC

generator = torch.Generator().manual_seed(0)
logits = torch.randn(64, generator=generator)
targets = (logits + 2 * torch.randn(64, generator=generator) > 0).int()
for name, outputs in (("logits", logits), ("probabilities", logits.sigmoid())):
    told = []
    for size in (64, 4, 1):
        metric = BinaryAUROC()
        for batch in zip(outputs.split(size), targets.split(size)):
            metric.update(*batch)
        told.append(f"of {size}: {metric.compute():.3f}")
    print(f"{name} in batches", ", ".join(told))
PY
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.13.0 torchmetrics==1.9.0 numpy==2.4.1
"$place/venv/bin/python" "$place/look.py" | tee "$place/seen"
diff "$place/seen" - <<'SEEN'
logits in batches of 64: 0.628, of 4: 0.645, of 1: 0.670
probabilities in batches of 64: 0.628, of 4: 0.628, of 1: 0.628
SEEN
echo "as described"
