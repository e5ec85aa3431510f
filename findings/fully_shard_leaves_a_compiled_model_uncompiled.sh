#!/usr/bin/env bash
# torch.compile of a model that fully_shard has cut compiles nothing, in any order, and does not say so.
#
# fully_shard hangs hooks on the modules it is given, which the compiler is told to leave alone; it then gives up the
# whole frame that calls them, model and all, and the model runs as it is. The model trains, the numbers are right, and no
# warning is seen: only that no graph ever reaches the backend tells, or fullgraph=True. It is so for torch.compile(model)
# and model.compile(), after fully_shard, and for block.compile() of each block, before it or after. What compiles is a
# model whose blocks were replaced by torch.compile(block), each of which is then given to fully_shard: the hooks are
# then outside of what is compiled.
#
# Seen (the same under 2.14.1), one rank:
#   compiled, not cut: 1 graphs, 8 operations
#   fully_shard, then torch.compile(model): 0 graphs, 0 operations
#   fully_shard, then model.compile(): 0 graphs, 0 operations
#   fully_shard, then block.compile(): 0 graphs, 0 operations
#   block.compile(), then fully_shard: 0 graphs, 0 operations
#   torch.compile(block) in its place, then fully_shard: 2 graphs, 4 operations
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cat > "$place/look.py" <<'PY'
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
x = torch.randn(2, 8)
sizes = []


def backend(graph, inputs):
    sizes.append(sum(node.op.startswith("call") for node in graph.graph.nodes))
    return graph.forward


def blocks():
    return [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)]


def cut(model):
    for each in (*model, model):
        fully_shard(each, mesh=mesh)
    return model


def blocks_then_cut():
    model = nn.Sequential(*blocks())
    for block in model:
        block.compile(backend=backend)
    return cut(model)


def cut_then_blocks():
    model = cut(nn.Sequential(*blocks()))
    for block in model:
        block.compile(backend=backend)
    return model


def cut_then_model():
    model = cut(nn.Sequential(*blocks()))
    model.compile(backend=backend)
    return model


ways = {
    "compiled, not cut": lambda: torch.compile(nn.Sequential(*blocks()), backend=backend),
    "fully_shard, then torch.compile(model)": lambda: torch.compile(
        cut(nn.Sequential(*blocks())), backend=backend
    ),
    "fully_shard, then model.compile()": cut_then_model,
    "fully_shard, then block.compile()": cut_then_blocks,
    "block.compile(), then fully_shard": blocks_then_cut,
    "torch.compile(block) in its place, then fully_shard": lambda: cut(
        nn.Sequential(*[torch.compile(block, backend=backend) for block in blocks()])
    ),
}
for name, made in ways.items():
    torch.compiler.reset()
    sizes.clear()
    model = made()
    for _ in range(2):
        model(x).sum().backward()
    print(f"{name}: {len(sizes)} graphs, {sum(sizes)} operations")
dist.destroy_process_group()
PY
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.1
"$place/venv/bin/python" -W ignore "$place/look.py" | tee "$place/seen"
diff "$place/seen" - <<'SEEN'
compiled, not cut: 1 graphs, 8 operations
fully_shard, then torch.compile(model): 0 graphs, 0 operations
fully_shard, then model.compile(): 0 graphs, 0 operations
fully_shard, then block.compile(): 0 graphs, 0 operations
block.compile(), then fully_shard: 0 graphs, 0 operations
torch.compile(block) in its place, then fully_shard: 2 graphs, 4 operations
SEEN
echo "as described"
