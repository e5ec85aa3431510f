#!/usr/bin/env bash
# torch 2.14.1: no derivative by forward mode can be taken where FutureWarnings are errors.
#
# torch.func.jvp, and all else that takes a derivative by forward mode, has torch load a module of its
# own that calls torch.jit.script, which torch deprecates. Until 2.13 that was a DeprecationWarning,
# which Python hides; in 2.14.1 it is a FutureWarning, which every user sees, and past which a test
# suite that makes errors of FutureWarnings (as many do) cannot go: the module is not loaded then, so
# each further call tries again, and raises again.
#
# Seen:
#   2.14.1 first FutureWarning: `torch.jit.script` is deprecated.
#   2.14.1 second FutureWarning: `torch.jit.script` is deprecated.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.14.1 numpy==2.4.1
cat > "$place/look.py" <<'PY'
import warnings

import torch

version = torch.__version__.split("+")[0]
warnings.simplefilter("error", FutureWarning)
one = torch.ones(1)
for call in ("first", "second"):
    try:
        torch.func.jvp(torch.sin, (one,), (one,))
        print(version, call, "silent")
    except FutureWarning as warning:
        print(version, call, "FutureWarning:", str(warning).split(" Please")[0])
PY
"$place/venv/bin/python" "$place/look.py" | tee "$place/seen"
diff "$place/seen" - <<'SEEN'
2.14.1 first FutureWarning: `torch.jit.script` is deprecated.
2.14.1 second FutureWarning: `torch.jit.script` is deprecated.
SEEN
echo "as described"
