#!/usr/bin/env bash
# Over gloo, the MAX or MIN of a NaN and a number is either of them: it depends on which rank has the NaN, and where.
#
# torch.max says NaN wherever one is. gloo compares in the order in which a ring of ranks adds up, and what is compared
# with NaN stays as it was: of a tensor, each rank's NaN comes through in one part alone; of a single number, rank 0's
# alone. All ranks agree, so nothing tells. What is reduced so hides it too: a DTensor's amax, and the norm that
# clip_grad_norm_ takes of cut gradients by norm_type=inf, which error_if_nonfinite=True then lets pass. SUM is right.
#
# Seen (the same under 2.14.1), two ranks, 1.0 in all places but one rank's, which are NaN:
#   MAX of 8, NaN on rank 0: [nan, nan, nan, nan, 1.0, 1.0, 1.0, 1.0]
#   MAX of 8, NaN on rank 1: [1.0, 1.0, 1.0, 1.0, nan, nan, nan, nan]
#   MIN of 8, NaN on rank 1: [1.0, 1.0, 1.0, 1.0, nan, nan, nan, nan]
#   SUM of 8, NaN on rank 1: [nan, nan, nan, nan, nan, nan, nan, nan]
#   NaN in the last of 8 cut weights: amax of the whole nan, of the DTensor 1.0
#   its gradient clipped by norm_type=inf, error_if_nonfinite: whole raises, cut norm 1.0
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
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

RANKS, N = 2, 8


def number(x):
    return (x.full_tensor() if isinstance(x, DTensor) else x).item()


def clipped(weight, grad):
    weight = nn.Parameter(weight)
    weight.grad = grad
    try:
        return f"norm {number(nn.utils.clip_grad_norm_([weight], 1.0, float('inf'), error_if_nonfinite=True))}"
    except RuntimeError as error:
        assert "is non-finite" in str(error)
        return "raises"


def main(rank, store):
    dist.init_process_group("gloo", store=dist.FileStore(store, RANKS), rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    lines = []
    for op, which in (("MAX", 0), ("MAX", 1), ("MIN", 1), ("SUM", 1)):
        values = torch.full((N,), float("nan") if rank == which else 1.0)
        dist.all_reduce(values, getattr(dist.ReduceOp, op))
        lines.append(f"{op} of {N}, NaN on rank {which}: {values.tolist()}")
    whole = torch.ones(N)
    whole[-1] = float("nan")
    cut = distribute_tensor(whole, mesh, [Shard(0)])
    lines.append(
        f"NaN in the last of {N} cut weights: amax of the whole {number(whole.amax())}, "
        f"of the DTensor {number(cut.amax())}"
    )
    zeros = torch.zeros(N)
    lines.append(
        f"its gradient clipped by norm_type=inf, error_if_nonfinite: whole {clipped(zeros, whole.clone())}, "
        f"cut {clipped(distribute_tensor(zeros, mesh, [Shard(0)]), cut)}"
    )
    everyones = [None] * RANKS
    dist.all_gather_object(everyones, lines)
    assert all(each == lines for each in everyones)
    if rank == 0:
        print(*lines, sep="\n", flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(main, (sys.argv[1],), nprocs=RANKS)
PY
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.1
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore "$place/look.py" "$place/store" | tee "$place/seen"
diff "$place/seen" - <<'SEEN'
MAX of 8, NaN on rank 0: [nan, nan, nan, nan, 1.0, 1.0, 1.0, 1.0]
MAX of 8, NaN on rank 1: [1.0, 1.0, 1.0, 1.0, nan, nan, nan, nan]
MIN of 8, NaN on rank 1: [1.0, 1.0, 1.0, 1.0, nan, nan, nan, nan]
SUM of 8, NaN on rank 1: [nan, nan, nan, nan, nan, nan, nan, nan]
NaN in the last of 8 cut weights: amax of the whole nan, of the DTensor 1.0
its gradient clipped by norm_type=inf, error_if_nonfinite: whole raises, cut norm 1.0
SEEN
echo "as described"
