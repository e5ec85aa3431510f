#!/usr/bin/env bash
# torchdata 0.11's StatefulDataLoader resumes an epoch exactly, and then draws other epochs.
#
# A loader that shuffles by a generator of its own, without workers, is saved in its first epoch, and
# its state is loaded into a new one. The rest of that epoch is right, batch by batch. The next one is
# not the second epoch of a loader that went on, though the generator is part of what is shuffled by.
#
# Seen:
#   the rest of the first epoch: equal; the second epoch: other batches
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cat > "$place/look.py" <<'PY'
import warnings

warnings.simplefilter("ignore")
import torch
from torchdata.stateful_dataloader import StatefulDataLoader


def loader():
    generator = torch.Generator().manual_seed(0)
    return StatefulDataLoader(list(range(64)), batch_size=8, shuffle=True, generator=generator)


def epoch(batches):
    return [batch.tolist() for batch in batches]


whole = loader()
first, second = epoch(whole), epoch(whole)
cut = loader()
batches = iter(cut)
next(batches)
resumed = loader()
resumed.load_state_dict(cut.state_dict())
rest, after = epoch(resumed), epoch(resumed)
print(
    "the rest of the first epoch:", "equal" if rest == first[1:] else "other batches",
    "\nthe second epoch:", "equal" if after == second else "other batches",
)
PY
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.13.0 torchdata==0.11.0 numpy==2.4.1
"$place/venv/bin/python" "$place/look.py" | tee "$place/seen"
diff "$place/seen" - <<'SEEN'
the rest of the first epoch: equal 
the second epoch: other batches
SEEN
echo "as described"
