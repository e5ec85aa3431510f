#!/usr/bin/env bash
# torch 2.13's DataLoader with workers asks a batch sampler for two orders a pass, and goes by the second.
#
# A batch sampler (or, with batch_size=None, a sampler) that draws its order when it is asked, from a seeded
# generator of its own, is asked once a pass without workers and twice with them: the first order is thrown
# away unread. So the same seed gives other batches for num_workers=0 than for num_workers=2, a sampler that
# counts its passes counts two, and whoever keeps the generator's state across a pass keeps another one.
# Where batch_size= makes the batches the sampler is asked once either way, since torch's own BatchSampler
# asks only when its first batch is fetched.
#
# Seen (the same under 2.14.1):
#   workers 0: asked 2 times in 2 passes, first order [2, 5, 3, 0, 1, 4]
#   workers 2: asked 4 times in 2 passes, first order [3, 0, 5, 4, 2, 1]
#   workers 2, batch_size=6: asked 2 times in 2 passes, first order [2, 5, 3, 0, 1, 4]
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cat > "$place/look.py" <<'PY'
import torch
from torch.utils.data import DataLoader


class Orders:
    def __init__(self, batched):
        self.generator = torch.Generator().manual_seed(0)
        self.batched = batched
        self.n_asked = 0

    def __iter__(self):
        self.n_asked += 1
        order = torch.randperm(6, generator=self.generator).tolist()
        return iter([order] if self.batched else order)

    def __len__(self):
        return 1 if self.batched else 6


def look(title, orders, **kwargs):
    loader = DataLoader(range(6), **kwargs)
    passes = [[batch.tolist() for batch in loader] for _ in range(2)]
    print(f"{title}: asked {orders.n_asked} times in 2 passes, first order {passes[0][0]}")


for n_workers in (0, 2):
    orders = Orders(batched=True)
    look(f"workers {n_workers}", orders, batch_sampler=orders, num_workers=n_workers)
orders = Orders(batched=False)
look("workers 2, batch_size=6", orders, sampler=orders, batch_size=6, num_workers=2)
PY
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.1
"$place/venv/bin/python" "$place/look.py" | tee "$place/seen"
diff "$place/seen" - <<'SEEN'
workers 0: asked 2 times in 2 passes, first order [2, 5, 3, 0, 1, 4]
workers 2: asked 4 times in 2 passes, first order [3, 0, 5, 4, 2, 1]
workers 2, batch_size=6: asked 2 times in 2 passes, first order [2, 5, 3, 0, 1, 4]
SEEN
echo "as described"
