#!/usr/bin/env bash
# torch 2.14.1 (and 2.11 to 2.13): a DataLoader's iterator that is part of a reference cycle takes five
# seconds for each of its workers to be collected, and they are killed in the end.
#
# Dropped by itself in the midst of an epoch, an iterator tells its workers to end, and they do, at once.
# In a cycle (an object that holds both it and itself, say) the collector first runs what its queues
# have registered for their own end, which stops the threads that would carry the message; then the
# iterator sends it, waits five seconds for each worker in turn, and terminates them. Nothing is said.
#
# Seen, in seconds, with two workers:
#   2.14.1 alone: less than 2
#   2.14.1 in a cycle: 10 or more
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.14.1 numpy==2.4.1
cat > "$place/look.py" <<'PY'
import gc
import time

import torch


class Holder:
    pass


version = torch.__version__.split("+")[0]
items = torch.utils.data.TensorDataset(torch.arange(100.0))
for kind in ("alone", "in a cycle"):
    holder = Holder()
    holder.iterator = iter(torch.utils.data.DataLoader(items, num_workers=2))
    next(holder.iterator)
    if kind == "in a cycle":
        holder.itself = holder
    start = time.monotonic()
    del holder
    gc.collect()
    seconds = time.monotonic() - start
    span = "less than 2" if seconds < 2 else "10 or more" if seconds >= 10 else f"{seconds:.1f}"
    print(f"{version} {kind}: {span}")
PY
"$place/venv/bin/python" "$place/look.py" | tee "$place/seen"
diff "$place/seen" - <<'SEEN'
2.14.1 alone: less than 2
2.14.1 in a cycle: 10 or more
SEEN
echo "as described"
