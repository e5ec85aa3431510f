#!/usr/bin/env bash
# A DTensor that is changed in place between forward and backward gives wrong gradients where forward used to_local().
#
# Autograd counts in-place changes of what it has kept, through views too, and raises in backward where there were some.
# What to_local() returns is the DTensor's own memory, but has a count of its own, which a change of the DTensor does not
# raise; so do full_tensor()'s values on a mesh of one rank. An optimizer's step between a forward pass and its backward
# (a second loss, or a stale graph) that raises with plain weights goes through, and derivatives are taken at the new
# values. Operations on the DTensor itself raise, as does a module that fully_shard has cut.
#
# Seen (the same under 2.14.1), a sum of squares of 1 and 2, to each of which 1 is added before backward; its gradient is
# 2 and 4:
#   a plain weight: raises
#   a view of a plain weight: raises
#   a DTensor: raises
#   a DTensor's to_local(): [4.0, 6.0]
#   a DTensor's full_tensor(): [4.0, 6.0]
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cat > "$place/look.py" <<'PY'
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))


def plain():
    return torch.tensor([1.0, 2.0])


def cut():
    return distribute_tensor(plain(), mesh, [Shard(0)])


ways = {
    "a plain weight": (plain, lambda w: w),
    "a view of a plain weight": (plain, lambda w: w.view(2, 1)),
    "a DTensor": (cut, lambda w: w),
    "a DTensor's to_local()": (cut, lambda w: w.to_local()),
    "a DTensor's full_tensor()": (cut, lambda w: w.full_tensor()),
}
for name, (made, seen_as) in ways.items():
    weight = nn.Parameter(made())
    loss = (seen_as(weight) ** 2).sum()
    with torch.no_grad():
        weight.add_(1.0)
    try:
        loss.backward()
        grad = weight.grad
        print(f"{name}: {getattr(grad, 'full_tensor', lambda: grad)().tolist()}")
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
        print(f"{name}: raises")
dist.destroy_process_group()
PY
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.1
"$place/venv/bin/python" -W ignore "$place/look.py" | tee "$place/seen"
diff "$place/seen" - <<'SEEN'
a plain weight: raises
a view of a plain weight: raises
a DTensor: raises
a DTensor's to_local(): [4.0, 6.0]
a DTensor's full_tensor(): [4.0, 6.0]
SEEN
echo "as described"
