#!/usr/bin/env bash
# torch 2.13.0: forward and reverse mode give PReLU two slopes at 0.
#
# Where its input is 0, the derivative of torch.nn.functional.prelu is its weight by backward() and by
# torch.func.jacrev, and 1 by torch.func.jvp and jacfwd. A Jacobian by jacfwd is not the one by jacrev,
# on ordinary input: what a ReLU before it has cut off is exactly 0. leaky_relu has one slope in both.
#
# Seen:
#   2.13.0 prelu jacrev 0.25 jacfwd 1.0
#   2.13.0 leaky_relu jacrev 0.25 jacfwd 0.25
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.1
cat > "$place/look.py" <<'PY'
import torch
from torch.nn import functional as F

version = torch.__version__.split("+")[0]
functions = {
    "prelu": lambda x: F.prelu(x, torch.tensor([0.25])),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.25),
}
for name, function in functions.items():
    x = torch.zeros(1)
    by_rows, by_columns = (
        jacobian(function)(x).item() for jacobian in (torch.func.jacrev, torch.func.jacfwd)
    )
    print(version, name, "jacrev", by_rows, "jacfwd", by_columns)
PY
"$place/venv/bin/python" "$place/look.py" | tee "$place/seen"
diff "$place/seen" - <<'SEEN'
2.13.0 prelu jacrev 0.25 jacfwd 1.0
2.13.0 leaky_relu jacrev 0.25 jacfwd 0.25
SEEN
echo "as described"
