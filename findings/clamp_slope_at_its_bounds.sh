#!/usr/bin/env bash
# torch 2.14 changed what models learn whose activations lie on a bound of clamp, without an error.
#
# The gradient of clamp at a bound given as a number is 1 in torch 2.13.0, and 0 in 2.14.1; at a bound
# given as a tensor it is 1 in 2.13.0 and 0.5 in 2.14.1. So after an upgrade a layer that starts from
# zeros before clamp(0, 1) has no gradient at all, and the same clamp written with tensors has half.
#
# Seen:
#   2.13.0 numbers [1.0, 1.0] tensors [1.0, 1.0]
#   2.14.1 numbers [0.0, 0.0] tensors [0.5, 0.5]
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cat > "$place/look.py" <<'PY'
import torch

def slopes(low, high):
    x = torch.tensor([0.0, 1.0], requires_grad=True)
    x.clamp(low, high).sum().backward()
    return x.grad.tolist()

version = torch.__version__.split("+")[0]
numbers, tensors = slopes(0, 1), slopes(torch.tensor(0.0), torch.tensor(1.0))
print(version, "numbers", numbers, "tensors", tensors)
PY
for version in 2.13.0 2.14.1; do
  python3 -m venv "$place/$version"
  "$place/$version/bin/pip" install -q "torch==$version" numpy==2.4.1
  "$place/$version/bin/python" "$place/look.py" | tee -a "$place/seen"
done
diff "$place/seen" - <<'SEEN'
2.13.0 numbers [1.0, 1.0] tensors [1.0, 1.0]
2.14.1 numbers [0.0, 0.0] tensors [0.5, 0.5]
SEEN
echo "as described"
