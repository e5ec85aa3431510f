#!/usr/bin/env bash
# torch.optim.Muon steps weights that fully_shard has cut, unless one has fewer rows than there are ranks: that raises.
#
# Muon multiplies whole matrices, and DTensor gathers what that takes; weights whose rows do not divide among the ranks
# go to where whole weights go (up to the bfloat16 in which Muon multiplies), and so do those of one column. A weight of
# fewer rows than ranks, such as that of a head with one or two outputs, raises at the first step, in add_, of "placement
# changes". So a script that trains on two ranks ends on three. AdamW takes them all. The error names no weight.
#
# Seen (the same under 2.14.1), three ranks, three steps:
#   6 x 8: Muon steps, AdamW steps
#   7 x 8: Muon steps, AdamW steps
#   8 x 1: Muon steps, AdamW steps
#   3 x 8: Muon steps, AdamW steps
#   2 x 8: Muon raises RuntimeError, AdamW steps
#   1 x 8: Muon raises RuntimeError, AdamW steps
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cat > "$place/look.py" <<'PY'
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

RANKS = 3


def steps(kind, rows, columns, mesh):
    """Three steps of a cut layer, beside those of a whole one."""
    whole, cut = (nn.Linear(columns, rows, bias=False) for _ in range(2))
    cut.load_state_dict(whole.state_dict())
    fully_shard(cut, mesh=mesh)
    for model in (whole, cut):
        optimizer = kind(model.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, columns)).square().sum().backward()
            try:
                optimizer.step()
            except RuntimeError as error:
                assert "placement changes are not supported" in str(error)
                return "raises RuntimeError"
    apart = (cut.weight.full_tensor() - whole.weight).abs().max()
    assert apart < 5e-3, apart
    return "steps"


def main(rank, store):
    torch.manual_seed(0)
    dist.init_process_group("gloo", store=dist.FileStore(store, RANKS), rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    for rows, columns in ((6, 8), (7, 8), (8, 1), (3, 8), (2, 8), (1, 8)):
        seen = [
            f"{kind.__name__} {steps(kind, rows, columns, mesh)}"
            for kind in (torch.optim.Muon, torch.optim.AdamW)
        ]
        if rank == 0:
            print(f"{rows} x {columns}: {', '.join(seen)}", flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(main, (sys.argv[1],), nprocs=RANKS)
PY
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.1
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore "$place/look.py" "$place/store" | tee "$place/seen"
diff "$place/seen" - <<'SEEN'
6 x 8: Muon steps, AdamW steps
7 x 8: Muon steps, AdamW steps
8 x 1: Muon steps, AdamW steps
3 x 8: Muon steps, AdamW steps
2 x 8: Muon raises RuntimeError, AdamW steps
1 x 8: Muon raises RuntimeError, AdamW steps
SEEN
echo "as described"
