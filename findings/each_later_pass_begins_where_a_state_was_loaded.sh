#!/usr/bin/env bash
# datasets 5.2: after load_state_dict, each later pass over an IterableDataset begins where the state was, not at the start.
#
# The documentation says that the next iteration goes on after the last example. So do all that follow: the state is kept,
# and taken again by each pass of the same epoch number, which set_epoch alone changes; its documentation is about the
# order of shuffled data. A run over data in a fixed order that was saved after nine tenths of a pass, and resumed, sees
# the last tenth from then on, again and again; one that was saved at the end of a pass sees no example at all. So through a
# DataLoader, and through torchdata's StatefulDataLoader, which by workers is right.
#
# Seen, six examples, a state after four (or all), loaded into a new one, then three passes:
#   alone: [4, 5] [4, 5] [4, 5]
#   saved at the end of a pass: [] [] []
#   with set_epoch before each: [4, 5] [0, 1, 2, 3, 4, 5] [0, 1, 2, 3, 4, 5]
#   in a DataLoader: [4, 5] [4, 5] [4, 5]
#   in a StatefulDataLoader, 0 workers: [4, 5] [4, 5] [4, 5]
#   in a StatefulDataLoader, 1 workers: [4, 5] [0, 1, 2, 3, 4, 5] [0, 1, 2, 3, 4, 5]
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cat > "$place/look.py" <<'PY'
from itertools import islice

from datasets import Dataset
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader


def examples():
    return Dataset.from_dict({"x": list(range(6))}).to_iterable_dataset()


def state_after(n, data):
    passing = iter(data)
    list(islice(passing, n))
    return data.state_dict()


def loaded(n, made=examples):
    data = made()
    data.load_state_dict(state_after(n, made()))
    return data


def show(title, data, told=None):
    passes = []
    for epoch in range(3):
        if told is not None:
            told.set_epoch(epoch)
        passes.append([int(row["x"]) for row in data])
    print(f"{title}:", *passes)


if __name__ == "__main__":
    show("alone", loaded(4))
    show("saved at the end of a pass", loaded(7))
    data = loaded(4)
    show("with set_epoch before each", data, told=data)
    show("in a DataLoader", DataLoader(loaded(4), batch_size=None))
    for n in (0, 1):
        made = lambda: StatefulDataLoader(examples(), batch_size=None, num_workers=n)  # noqa: E731
        show(f"in a StatefulDataLoader, {n} workers", loaded(4, made))
PY
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.13.0 datasets==5.2.0 torchdata==0.11.0 numpy==2.4.1
HF_HOME="$place/cache" "$place/venv/bin/python" -W ignore "$place/look.py" | tee "$place/seen"
diff "$place/seen" - <<'SEEN'
alone: [4, 5] [4, 5] [4, 5]
saved at the end of a pass: [] [] []
with set_epoch before each: [4, 5] [0, 1, 2, 3, 4, 5] [0, 1, 2, 3, 4, 5]
in a DataLoader: [4, 5] [4, 5] [4, 5]
in a StatefulDataLoader, 0 workers: [4, 5] [4, 5] [4, 5]
in a StatefulDataLoader, 1 workers: [4, 5] [0, 1, 2, 3, 4, 5] [0, 1, 2, 3, 4, 5]
SEEN
echo "as described"
