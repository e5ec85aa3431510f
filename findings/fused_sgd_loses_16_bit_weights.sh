#!/usr/bin/env bash
# torch 2.13's fused SGD with momentum leaves 16-bit weights on a CPU as they were, in silence.
#
# Three steps with gradients of 1, rate 1 and momentum 0.5 bring a weight from 0 to -4.25, which every
# type holds exactly. With fused=True, bfloat16 or float16 and 40 weights, some weights stay 0 whatever
# the number of steps, and their momentum is not 1.75; 4 weights, and float32, are right. torch 2.14.1 is.
#
# Seen (x86-64, with AVX2 and with ATEN_CPU_CAPABILITY=default):
#   2.13.0 fused: float32 right, bfloat16 wrong, float16 wrong; not fused: all right
# Under 2.14.1 the same program tells that all are right; it is not installed here.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cat > "$place/look.py" <<'PY'
import torch


def is_right(dtype, fused):
    weights = torch.nn.Parameter(torch.zeros(40, dtype=dtype))
    optimizer = torch.optim.SGD([weights], lr=1.0, momentum=0.5, fused=fused)
    for _ in range(3):
        weights.grad = torch.ones_like(weights)
        optimizer.step()
    return bool((weights == -4.25).all())


names = ("float32", "bfloat16", "float16")
right = {fused: [is_right(getattr(torch, name), fused) for name in names] for fused in (True, False)}
told = ", ".join(f"{n} {'right' if ok else 'wrong'}" for n, ok in zip(names, right[True]))
rest = "all right" if all(right[False]) else "some wrong"
print(torch.__version__.split("+")[0], f"fused: {told}; not fused: {rest}")
PY
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.1
"$place/venv/bin/python" "$place/look.py" | tee "$place/seen"
diff "$place/seen" - <<'SEEN'
2.13.0 fused: float32 right, bfloat16 wrong, float16 wrong; not fused: all right
SEEN
echo "as described"
