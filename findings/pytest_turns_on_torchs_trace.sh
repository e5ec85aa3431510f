#!/usr/bin/env bash
# pytest 9.2.0 and torch 2.13.0: under pytest, torch.compile writes its structured trace.
#
# torch keeps that trace, graphs and guards as text and JSON, for logger "torch.__trace", if it has a
# handler; by itself it has none once nobody asked for it. pytest 9 adds its handlers to every logger
# that does not propagate, and this is one. So each compilation in a test makes the trace, and a test
# that fails prints it all, thousands of lines of level DEBUG, as "captured log". Outside pytest there
# is none, and with pytest 8.3.4, which listens to the root logger alone, neither.
#
# Seen: records of the trace, for one function compiled
#   9.2.0 some
#   8.3.4 none
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.1
cat > "$place/test_look.py" <<'PY'
import pytest
import torch


def test_compiling_a_function(caplog):
    torch.compile(lambda x: x.sin() + 1, backend="eager")(torch.ones(3))
    n = sum(record.name == "torch.__trace" for record in caplog.records)
    with open("seen", "a") as f:
        print(pytest.__version__, "some" if n else "none", file=f)
PY
cd "$place"
for version in 9.2.0 8.3.4; do
  "$place/venv/bin/pip" install -q "pytest==$version"
  "$place/venv/bin/python" -m pytest -q test_look.py
done
cat seen
diff seen - <<'SEEN'
9.2.0 some
8.3.4 none
SEEN
echo "as described"
