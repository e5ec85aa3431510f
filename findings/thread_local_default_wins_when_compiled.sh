#!/usr/bin/env bash
# torch 2.11 reads the class's default of a thread-local object instead of the value that was set.
#
# A subclass of threading.local with an attribute in its class, set to another value in this thread: a
# function that reads it gives the value; compiled, it gives the default, in silence, with fullgraph and
# the eager backend too. torch 2.12 gives the value. With the attribute set in __init__, both do.
#
# Seen:
#   2.11.0 default in the class: 3.0, compiled 1.0; set in __init__: 3.0, compiled 3.0
#   2.12.0 default in the class: 3.0, compiled 3.0; set in __init__: 3.0, compiled 3.0
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cat > "$place/look.py" <<'PY'
import threading

import torch


class InClass(threading.local):
    scale = 1.0


class InInit(threading.local):
    def __init__(self):
        self.scale = 1.0


def seen(local):
    local.scale = 3.0

    def scaled(x):
        return x * local.scale

    fast = torch.compile(scaled, backend="eager", fullgraph=True)
    x = torch.ones(1)
    return f"{scaled(x).item()}, compiled {fast(x).item()}"


version = torch.__version__.split("+")[0]
print(version, f"default in the class: {seen(InClass())}; set in __init__: {seen(InInit())}")
PY
for version in 2.11.0 2.12.0; do
  python3 -m venv "$place/$version"
  "$place/$version/bin/pip" install -q "torch==$version" numpy==2.4.1
  "$place/$version/bin/python" "$place/look.py" | tee -a "$place/seen"
  rm -rf "${place:?}/$version" # some gigabytes
done
diff "$place/seen" - <<'SEEN'
2.11.0 default in the class: 3.0, compiled 1.0; set in __init__: 3.0, compiled 3.0
2.12.0 default in the class: 3.0, compiled 3.0; set in __init__: 3.0, compiled 3.0
SEEN
echo "as described"
