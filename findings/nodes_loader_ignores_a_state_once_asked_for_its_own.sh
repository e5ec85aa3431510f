#!/usr/bin/env bash
# A torchdata.nodes.Loader that was asked for its state before ignores the state that is loaded into it.
#
# What saves in regular steps, and looks for an older state when it starts, asks a new loader for its state (to
# see whether it has one, to compare, to save step 0) and then loads: the pass that follows begins at the first
# item, without an error. The state is taken where nothing was asked before, and in the middle of a pass. The cause
# is one flag: state_dict() makes an iterator to ask, and the next iter() goes on with that one.
#
# Seen:
#   loaded into a new loader: [4, 5, 6, 7, 8, 9]
#   loaded after state_dict(): [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
#   loaded in the middle of a pass: [4, 5, 6, 7, 8, 9]
#   loaded after iter(): [4, 5, 6, 7, 8, 9]
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cat > "$place/look.py" <<'PY'
from torchdata import nodes


def loader():
    return nodes.Loader(nodes.IterableWrapper(range(10)))


source = loader()
items = iter(source)
for _ in range(4):
    next(items)
state = source.state_dict()

new = loader()
new.load_state_dict(state)
print("loaded into a new loader:", list(new))

asked = loader()
asked.state_dict()
asked.load_state_dict(state)
print("loaded after state_dict():", list(asked))

midway = loader()
next(iter(midway))
midway.load_state_dict(state)
print("loaded in the middle of a pass:", list(midway))

begun = loader()
iter(begun)
begun.load_state_dict(state)
print("loaded after iter():", list(begun))
PY
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.13.0 torchdata==0.11.0
"$place/venv/bin/python" -W ignore "$place/look.py" | tee "$place/seen"
diff "$place/seen" - <<'SEEN'
loaded into a new loader: [4, 5, 6, 7, 8, 9]
loaded after state_dict(): [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
loaded in the middle of a pass: [4, 5, 6, 7, 8, 9]
loaded after iter(): [4, 5, 6, 7, 8, 9]
SEEN
echo "as described"
