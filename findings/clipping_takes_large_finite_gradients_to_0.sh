#!/usr/bin/env bash
# clip_grad_norm_ makes zeros of finite gradients whose squares are too large for their type.
#
# The norm is taken in the gradients' own type (float16) or with squares in it (float32), so that it is infinite from
# 65504 in float16, and from the square root of float32's largest number, some 1.8e19, where gradients and their norm
# could both be told. Gradients are then multiplied by max_norm / inf, which is 0: nothing says so, unless
# error_if_nonfinite is given, whose name is of norms that are not finite. An optimizer's step goes on, by its momentum
# and its decay alone. Likewise a norm of gradients below 1e-23 is 0. bfloat16 is rounded, and not lost.
#
# Seen (the same under 2.14.1), gradients that are all alike, clipped to a norm of 1, where each should be 0.1 or 0.7071:
#   float16, 100 of 7000.0: norm inf, gradients 0.0
#   bfloat16, 100 of 7000.0: norm 70144.0, gradients 0.09961
#   float32, 2 of 1e+20: norm inf, gradients 0.0
#   float64, 2 of 1e+20: norm 1.41421e+20, gradients 0.7071
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cat > "$place/look.py" <<'PY'
import torch
from torch import nn

for dtype, n, value in (
    (torch.float16, 100, 7e3),
    (torch.bfloat16, 100, 7e3),
    (torch.float32, 2, 1e20),
    (torch.float64, 2, 1e20),
):
    weight = nn.Parameter(torch.zeros(n, dtype=dtype))
    weight.grad = torch.full((n,), value, dtype=dtype)
    assert weight.grad.isfinite().all()
    norm = nn.utils.clip_grad_norm_([weight], 1.0)
    name = str(dtype).removeprefix("torch.")
    print(f"{name}, {n} of {value}: norm {norm:.6}, gradients {weight.grad.double().max():.4}")
PY
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.1
"$place/venv/bin/python" "$place/look.py" | tee "$place/seen"
diff "$place/seen" - <<'SEEN'
float16, 100 of 7000.0: norm inf, gradients 0.0
bfloat16, 100 of 7000.0: norm 70144.0, gradients 0.09961
float32, 2 of 1e+20: norm inf, gradients 0.0
float64, 2 of 1e+20: norm 1.41421e+20, gradients 0.7071
SEEN
echo "as described"
