"""Tensors in parts, many in one call, as operations see them; what a CPU multiplies."""

import re
import sys
import types
from pathlib import Path

import pytest
import ranks
import torch
import torch.distributed as dist
from torch import nn

import trax_torch
from trax_torch import _torch_private as private
from trax_torch import optimizers
from trax_torch._torch_private.tensors import _one_by_one

PACKAGE = Path(trax_torch.__file__).parent
SOURCES = {path: path.read_text() for path in PACKAGE.rglob("*.py")}

USED = sorted({n for s in SOURCES.values() for n in re.findall(r"\bforeach\.(\w+)\(", s)})


def arguments(name):
    """What a function of many tensors takes beside them: lists, numbers, or both."""
    a = [torch.tensor([3.0, 4.0]), torch.tensor([[0.5]])]
    b = [torch.tensor([2.0, 8.0]), torch.tensor([[0.25]])]
    match name.removesuffix("_"):
        case "add" | "sub" | "div" | "minimum":
            return [(a,), (2.0,)] if name.startswith(("add", "div")) else [(a,)]
        case "mul":
            return [(a,), (2.0,), (torch.tensor(3.0),), ([torch.tensor(2.0), torch.tensor(3.0)],)]
        case "addcmul" | "addcdiv":
            return [(a, b), (a, b, -0.5)]
        case "lerp":
            return [(a, 0.25)]
        case "copy":
            return [(a,)]
        case "clamp_min" | "clamp_max":
            return [(1.0,)]
        case "norm" | "sqrt" | "rsqrt" | "reciprocal":
            return [()]
    raise AssertionError(f"{name}: say what it takes")


@pytest.mark.parametrize("name", USED)
def test_foreach_is_there_and_means_what_one_tensor_does(name):
    """`torch._foreach_*` has gone, or computes something else."""
    assert hasattr(torch, f"_foreach_{name}")
    for args in arguments(name):
        results = []
        for function in (
            getattr(torch, f"_foreach_{name}"),
            lambda *a, name=name: _one_by_one(name, *a),
        ):
            tensors = [torch.tensor([1.0, 9.0]), torch.tensor([[4.0]])]
            results.append([*tensors, *(function(tensors, *args) or [])])
        for one, other in zip(results[0], results[1][: len(results[0])], strict=True):
            torch.testing.assert_close(one, other)


def test_without_foreach_optimizers_go_tensor_by_tensor_and_say_so_once(monkeypatch, said):
    def run(make):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        optimizer = make().bind(model.parameters())
        for step in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 3) * (step + 1)).square().sum().backward()
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    recipes = [
        lambda: optimizers.Adafactor(0.1),
        lambda: optimizers.SM3(0.1),
        lambda: optimizers.RMSProp(0.1),
    ]
    want = [run(make) for make in recipes]
    for name in USED:
        monkeypatch.delattr(torch, f"_foreach_{name}")
    for known in [n for n in vars(private.foreach)]:
        monkeypatch.delattr(private.foreach, known)

    for make, weights in zip(recipes, want, strict=True):
        torch.testing.assert_close(run(make), weights)

    assert len(said()) == len(set(said())) > 5
    assert all("has no _foreach_" in text for text in said())
    vars(private.foreach).clear()


def test_a_tensors_version_counts_what_is_written_into_it():
    """`Tensor._version` has gone: nothing tells that an input was changed in place."""
    x = torch.ones(2)
    before = private.version(x)
    x.add_(1)
    with torch.inference_mode():
        unknown = torch.ones(2)

    assert private.version(x) > before
    assert private.version(unknown) == 0


def test_operands_are_seen_in_all_that_is_computed():
    """torch shows operations otherwise: groups of weights cannot be told, and there are none."""
    w, seen = torch.ones(2, 2), []
    with private.operands_seen(seen.append) as is_known, torch.no_grad():
        torch.cat([torch.nn.functional.linear(torch.ones(1, 2), w), w.T])

    assert is_known
    assert any(x is w for x in seen)
    storage = w.untyped_storage().data_ptr()
    assert sum(x.untyped_storage().data_ptr() == storage for x in seen) >= 3  # views, too


def test_where_operands_cannot_be_seen_that_is_said(monkeypatch, said):
    monkeypatch.setitem(sys.modules, "torch.utils._python_dispatch", None)
    with private.operands_seen(print) as is_known:
        assert not is_known
    assert any("fsdp brings all weights of a model together" in line for line in said())


def test_the_operation_that_keeps_a_tensor_in_memory_is_there():
    """`prims.inductor_force_stride_order` has gone: compiled steps compute norms over and over."""
    private.load_stride_order()
    x = torch.arange(6.0).view(2, 3)

    assert hasattr(torch.ops.prims, "inductor_force_stride_order")
    assert torch.equal(private.contiguous_in_memory(x.t()), x.t())


def _places(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    dist.init_process_group("gloo")
    found = []
    for shape, placements in (((3,), [Shard(0)]), ((3,), [Shard(1)]), ((3, 1), [Replicate()] * 2)):
        whole = torch.arange(20).reshape(4, 5)
        mesh = init_device_mesh("cpu", shape)
        cut = distribute_tensor(whole, mesh, placements, src_data_rank=None)
        without = types.SimpleNamespace(
            dim=cut.dim, shape=cut.shape, device_mesh=mesh, placements=cut.placements
        )
        places = private.place_in_whole(cut), private.place_in_whole(without)
        own = cut.to_local()
        box = whole[places[0][0] :, places[0][1] :][: own.shape[0], : own.shape[1]]
        found.append((*places, bool(torch.equal(box, own))))
    dist.barrier()  # the first rank has the store by which others make their groups
    return found


def test_where_a_part_belongs_is_known_by_torch_and_by_hand(tmp_path):
    for found in ranks.values(tmp_path, 3, _places):
        for place, by_hand, is_there in found:
            assert place == by_hand
            assert is_there


def test_torch_tells_whether_the_cpu_multiplies_bfloat16(monkeypatch, said):
    assert isinstance(private.cpu_multiplies_bfloat16.__wrapped__(), bool)
    monkeypatch.setattr(torch.ops, "mkldnn", None)
    assert private.cpu_multiplies_bfloat16.__wrapped__()
    assert "computes in bfloat16 on any CPU" in said()[0]


def test_onednn_multiplies_as_torch_does(monkeypatch):
    """Decoding's large matrices go there; without it, they go where all others do."""
    multiply = private.onednn_linear()
    x, w, b = (torch.arange(n, dtype=torch.float32) for n in (6, 12, 4))
    x, w = x.view(2, 3), w.view(4, 3)
    for bias in (b, None):
        found = multiply(x, w, bias, "none", [], "")
        assert torch.equal(found, nn.functional.linear(x, w, bias))
    monkeypatch.setattr(torch.ops, "mkldnn", None)
    assert private.onednn_linear() is None
