#!/usr/bin/env bash
# torchmetrics 1.9's MetricCollection takes metrics whose first batch came out alike for one metric, for good.
#
# To spare work it compares states after the first update(), and from then on updates only the first of those that are
# equal, for all of them. Equal once is not equal: an accuracy at threshold 0.5 and one at 0.3 count alike while no
# probability lies between; with ignore_index=0 and without, while no label is 0; small or easy first batches are so. All
# further batches are then counted by the first metric's settings, under each name. forward() does not merge, nor does
# compute_groups=False, which reads as a matter of speed.
#
# Seen, two batches, of two and of three or four rows:
#   update(): {'at_30': 1.0, 'at_50': 1.0} {'all': 0.8333, 'but_0': 0.8333}
#   forward(): {'at_30': 1.0, 'at_50': 0.6} {'all': 0.8333, 'but_0': 1.0}
#   update(), compute_groups=False: {'at_30': 1.0, 'at_50': 0.6} {'all': 0.8333, 'but_0': 1.0}
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cat > "$place/look.py" <<'PY'
import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy


def at_thresholds():
    return {"at_50": BinaryAccuracy(threshold=0.5), "at_30": BinaryAccuracy(threshold=0.3)}


def with_and_without_0():
    whole = {"num_classes": 3, "average": "micro"}
    return {"all": MulticlassAccuracy(**whole), "but_0": MulticlassAccuracy(**whole, ignore_index=0)}


PROBABILITIES = [
    (torch.tensor([0.9, 0.1]), torch.tensor([1, 0])),
    (torch.tensor([0.4, 0.4, 0.6]), torch.tensor([1, 1, 1])),
]
CLASSES = [
    (torch.tensor([1, 1]), torch.tensor([1, 1])),
    (torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 0, 0])),
]


def computed(metrics, batches, forward=False, **kwargs):
    collection = MetricCollection(metrics(), **kwargs)
    for batch in batches:
        collection(*batch) if forward else collection.update(*batch)
    return {name: round(value.item(), 4) for name, value in collection.compute().items()}


for title, how in {
    "update()": {},
    "forward()": {"forward": True},
    "update(), compute_groups=False": {"compute_groups": False},
}.items():
    print(f"{title}:", computed(at_thresholds, PROBABILITIES, **how), computed(with_and_without_0, CLASSES, **how))
PY
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.13.0 torchmetrics==1.9.0 numpy==2.4.1
"$place/venv/bin/python" "$place/look.py" | tee "$place/seen"
diff "$place/seen" - <<'SEEN'
update(): {'at_30': 1.0, 'at_50': 1.0} {'all': 0.8333, 'but_0': 0.8333}
forward(): {'at_30': 1.0, 'at_50': 0.6} {'all': 0.8333, 'but_0': 1.0}
update(), compute_groups=False: {'at_30': 1.0, 'at_50': 0.6} {'all': 0.8333, 'but_0': 1.0}
SEEN
echo "as described"
