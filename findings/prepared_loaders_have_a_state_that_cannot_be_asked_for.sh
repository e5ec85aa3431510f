#!/usr/bin/env bash
# Loaders that accelerate 1.15 has prepared have state_dict and load_state_dict, and neither works.
#
# Both are there whether or not a stateful loader was asked for. Without that, which is the default,
# they raise an AttributeError, of an attribute that the wrapper itself has not set. So what looks
# for these two methods, as torchdata's own protocol has it, takes every prepared loader for one that
# keeps its place.
#
# Seen:
#   has both: True; state_dict(): AttributeError; load_state_dict({}): AttributeError
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cat > "$place/look.py" <<'PY'
import accelerate
import torch

loader = accelerate.Accelerator(cpu=True).prepare_data_loader(
    torch.utils.data.DataLoader(torch.arange(8.0), batch_size=2)
)
print("has both:", hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict"))
for name, ask in {"state_dict()": loader.state_dict, "load_state_dict({})": lambda: loader.load_state_dict({})}.items():
    try:
        print(f"{name}:", ask())
    except AttributeError:
        print(f"{name}: AttributeError")
PY
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.13.0 accelerate==1.15.0 numpy==2.4.1
"$place/venv/bin/python" "$place/look.py" | tee "$place/seen"
diff "$place/seen" - <<'SEEN'
has both: True
state_dict(): AttributeError
load_state_dict({}): AttributeError
SEEN
echo "as described"
