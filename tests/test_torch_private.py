"""What of torch is leaned on without a promise: one test for each thing, and one for its absence.

If one fails under a new release, its docstring says what has changed, and `_torch_private` is the
room to mend.
"""

import ast
import logging
import re
import sys
import types
from pathlib import Path

import pytest
import ranks
import torch
import torch.distributed as dist
from torch import nn
from torch.autograd import forward_ad
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.checkpoint import checkpoint

import trax_torch
from trax_torch import _torch_private as private
from trax_torch import layers as tl
from trax_torch import models, optimizers
from trax_torch._last_words import Words
from trax_torch.supervised import decoding

PACKAGE = Path(trax_torch.__file__).parent
SOURCES = {path: path.read_text() for path in PACKAGE.rglob("*.py")}


@pytest.fixture(autouse=True)
def _as_if_nothing_was_compiled_or_said():
    torch.compiler.reset()
    private._say.cache_clear()


@pytest.fixture
def said(caplog):
    """What the logger says."""
    caplog.set_level(logging.WARNING, "trax_torch")
    return lambda: [record.getMessage() for record in caplog.records]


# One room.


def test_nobody_else_names_what_torch_does_not_promise():
    """No `torch._...`, and none of the names that the room knows, in any other file."""
    room = PACKAGE / "_torch_private.py"
    names = set(re.findall(r'"(_[a-z]\w+)"', SOURCES[room])) | {"_orig_mod", "_version"}
    own = {"_parameters", "_buffers", "_modules", "_load_from_state_dict"}  # a Layer's, a Module
    for path, source in SOURCES.items():
        if path == room:
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute):
                text = ast.unparse(node)
                assert not re.match(r"torch(\.\w+)*\._[a-z]", text), f"{path}: {text}"
                assert node.attr not in names - own, f"{path}: {text}"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.fullmatch(r"torch\.[\w.]*_\w+", node.value), f"{path}: {node.value}"


# Many tensors in one call.

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
            lambda *a, name=name: private._one_by_one(name, *a),
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


# The compiler.


def test_an_error_of_the_compiler_is_told_from_the_functions_own():
    """Its exceptions come from other modules now."""

    def breaks(x):
        torch._dynamo.graph_break()
        return x + 1

    with pytest.raises(Exception) as of_the_compiler:  # noqa: PT011
        torch.compile(breaks, backend="eager", fullgraph=True)(torch.ones(2))

    assert private.is_of_the_compiler(of_the_compiler.value)
    assert private.is_a_signal(of_the_compiler.value)
    assert not private.is_of_the_compiler(ValueError("mine"))
    assert not private.is_a_signal(ValueError("mine"))


def test_what_checkpoints_say_to_themselves_passes_through():
    """`torch.utils.checkpoint` has its exceptions elsewhere."""
    shapes = iter([2, 3])

    def changes(x):
        return (x * torch.ones(next(shapes))).sin()

    y = checkpoint(changes, torch.ones(1, requires_grad=True), use_reentrant=False)
    with pytest.raises(Exception) as error:  # noqa: PT011
        y.sum().backward()

    assert private.is_a_signal(error.value)


def test_a_function_of_too_many_programs_is_known_by_its_error():
    """`FailOnRecompileLimitHit` has another name."""

    def sized(x):
        return x * x.shape[0]

    compiled = torch.compile(sized, backend="eager", fullgraph=True, dynamic=False)
    with torch._dynamo.config.patch(recompile_limit=1):
        compiled(torch.ones(2))
        with pytest.raises(Exception) as error:  # noqa: PT011
            compiled(torch.ones(3))

    assert private.is_full(error.value)
    assert private.is_of_the_compiler(error.value)
    assert not private.is_full(ValueError())


def test_each_copy_of_a_function_has_programs_of_its_own():
    """Programs are kept by something else than the code object."""

    def sized(x):
        return x * x.shape[0]

    with torch._dynamo.config.patch(recompile_limit=1):
        for n in (2, 3, 4):
            own = private.with_a_cache_of_its_own(sized)
            compiled = torch.compile(own, backend="eager", fullgraph=True, dynamic=False)
            assert compiled(torch.ones(n)).tolist() == [n] * n


def test_each_copy_of_a_function_has_sizes_and_numbers_of_its_own():
    """Names of code no longer tell copies apart: what differs between them becomes an argument."""

    def scaled(layer, x):
        return x * layer.scale

    arguments = []

    def backend(graph, inputs):
        arguments.append(len(inputs))
        return graph.forward

    for n in (2, 3, 4):
        layer = nn.Identity()
        layer.scale = 1.5 * n
        own = private.with_a_cache_of_its_own(scaled)
        assert torch.compile(own, backend=backend)(layer, torch.ones(n)).tolist() == [1.5 * n] * n
    assert arguments == [1, 1, 1]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_backend_is_found_by_its_name(backend):
    """`torch._dynamo.lookup_backend` has gone."""
    assert callable(private.graph_compiler(backend, {}))
    assert private.graph_compiler(print, {}) is print


def notes_of(function, *args, backend="inductor"):
    """What a program was called with, and gave."""
    noted = []
    compiler = private.graph_compiler(backend, {"size_asserts": False})

    def noting(graph, inputs):
        program = compiler(graph, inputs)

        def run(*given):
            noted.append((given, program(*given)))
            return noted[-1][1]

        return run

    with torch.no_grad():
        torch.compile(function, backend=noting, fullgraph=True)(*args)
    return noted


def test_inductor_makes_a_program_that_takes_tensors_and_gives_a_list_of_one():
    """`torch._inductor.compile` has gone, or its programs are called in another way."""
    x, w = torch.ones(2, 3), torch.full((3,), 2.0)

    ((args, outputs),) = notes_of(lambda x, w: (x * w).sum(-1), x, w)

    assert all(any(a is t for t in (x, w)) for a in args)
    assert private.can_be_repeated(args, outputs)
    assert outputs[0].tolist() == [6, 6]


def test_sizes_that_change_reach_a_program_as_integers():
    """Sizes are handed to programs in another way."""
    x = torch.ones(5)
    private.expect_other_sizes(x, 0, must=True)

    ((args, outputs),) = notes_of(lambda x: x * x.shape[0], x, backend="aot_eager")

    assert {type(a) for a in args} == {int, torch.Tensor}
    assert private.can_be_repeated(args, outputs)


def test_a_call_of_another_kind_is_not_repeated(said):
    x = torch.ones(1)

    assert not private.can_be_repeated(([x],), (x,))
    assert not private.can_be_repeated((x,), x)
    assert not private.can_be_repeated((x,), (x, x))
    assert len(said()) == 1


def small_model():
    model = models.TransformerLM(8, 8, 8, 1, 2, max_len=80, mode="eval")
    model.init(torch.zeros(1, 1, dtype=torch.int64), rng=0)
    return model


def tokens_of(model, **settings):
    return decoding.autoregressive_sample(
        model, torch.tensor([[1, 2]]), temperature=0.0, eos_id=-1, max_length=30, **settings
    ).tolist()


def test_without_a_way_to_a_backend_steps_go_by_the_front_door(monkeypatch, said):
    model = tl.Accelerate(small_model(), backend="eager")
    want = tokens_of(model, accelerate=False)
    monkeypatch.delattr(torch._inductor, "compile")
    for _ in range(2):
        assert private.graph_compiler("inductor", {}) is None
    monkeypatch.setattr(private, "graph_compiler", lambda backend, options: None)

    assert tokens_of(model, accelerate=True) == want
    (text,) = said()
    assert "has no way to a backend" in text


def test_without_marks_for_sizes_steps_are_compiled_anew(monkeypatch, said):
    model = tl.Accelerate(small_model(), backend="eager")
    want = tokens_of(model, accelerate=False)
    monkeypatch.delattr(torch._dynamo, "mark_dynamic")
    monkeypatch.delattr(torch._dynamo, "maybe_mark_dynamic")

    assert tokens_of(model, accelerate=True) == want
    (text,) = said()
    assert "has no mark_dynamic" in text


def test_a_program_that_is_called_in_another_way_goes_by_the_front_door(monkeypatch):
    model = tl.Accelerate(small_model(), backend="eager")
    want = tokens_of(model, accelerate=False)
    monkeypatch.setattr(private, "can_be_repeated", lambda args, outputs: False)

    assert tokens_of(model, accelerate=True) == want


def test_a_size_that_is_marked_compiles_nothing_anew():
    """`torch._dynamo.mark_dynamic` has gone, or does something else."""
    compiled = torch.compile(lambda x: x * x.shape[0], backend="eager", fullgraph=True)
    for must in (True, False):
        torch.compiler.reset()
        for n in (5, 6, 9):
            x = torch.ones(n)
            private.expect_other_sizes(x, 0, must=must)
            with torch.compiler.set_stance("default" if n == 5 else "fail_on_recompile"):
                assert compiled(x).tolist() == [n] * n


def test_the_module_inside_a_compiled_one_is_found():
    """`torch.compile(module)` keeps it by another name."""
    model = nn.Linear(2, 3)

    assert private.uncompiled(torch.compile(model, backend="eager")) is model
    assert private.uncompiled(model) is model
    assert private.uncompiled(len) is len


def test_the_operation_that_keeps_a_tensor_in_memory_is_there():
    """`prims.inductor_force_stride_order` has gone: compiled steps compute norms over and over."""
    private.load_stride_order()
    x = torch.arange(6.0).view(2, 3)

    assert hasattr(torch.ops.prims, "inductor_force_stride_order")
    assert torch.equal(private.contiguous_in_memory(x.t()), x.t())


# Gradients, and who waits for them.


def test_transforms_and_forward_mode_are_noticed():
    """`torch._C._are_functorch_transforms_active` or `forward_ad._current_level` has gone."""
    seen = []

    def look(x):
        seen.append((private.is_transformed(), private.is_forward_mode()))
        return x.sum()

    look(torch.ones(2))
    torch.func.grad(look)(torch.ones(2))
    torch.func.vmap(look)(torch.ones(2, 2))
    with forward_ad.dual_level():
        look(forward_ad.make_dual(torch.ones(2), torch.ones(2)))

    assert seen == [(False, False), (True, False), (True, False), (False, True)]


@pytest.mark.parametrize(
    ("owner", "name"),
    [(torch._C, "_are_functorch_transforms_active"), (forward_ad, "_current_level")],
)
def test_where_they_cannot_be_noticed_reversible_layers_keep_activations(
    owner, name, monkeypatch, said
):
    torch.manual_seed(0)
    layer = tl.Serial(tl.ReversibleHalfResidual(tl.Dense(3)), tl.ReversibleSwap())
    xs = tuple(torch.randn(2, 3, requires_grad=True) for _ in range(2))
    layer.init(xs)

    def gradients():
        return torch.autograd.grad(sum((y**2).sum() for y in layer(xs)), xs)

    want = gradients()
    monkeypatch.delattr(owner, name)

    torch.testing.assert_close(gradients(), want)
    assert len(said()) == 1


def test_a_tensors_version_counts_what_is_written_into_it():
    """`Tensor._version` has gone: nothing tells that an input was changed in place."""
    x = torch.ones(2)
    before = private.version(x)
    x.add_(1)
    with torch.inference_mode():
        unknown = torch.ones(2)

    assert private.version(x) > before
    assert private.version(unknown) == 0


@pytest.mark.parametrize(
    "register",
    [
        lambda m: m.register_forward_hook(print),
        lambda m: m.register_forward_pre_hook(print),
        lambda m: m.register_full_backward_hook(print),
        lambda m: m.register_full_backward_pre_hook(print),
    ],
)
def test_a_modules_hooks_are_seen(register):
    """`nn.Module` keeps its hooks by other names."""
    module = nn.Linear(1, 1)
    assert not private.call_hooks(module)

    handle = register(module)
    assert private.call_hooks(module)

    handle.remove()
    assert not private.call_hooks(module)


def test_a_module_whose_hooks_cannot_be_seen_is_not_taken_apart(said):
    module = nn.Linear(1, 1)
    del module._backward_hooks

    assert private.call_hooks(module)
    assert not private.call_hooks(module, backward=False)
    assert len(said()) == 1


@pytest.mark.parametrize("kind", ["forward", "forward_pre"])
def test_a_hook_is_taken_off_without_its_handle(kind):
    """`nn.Module` keeps its hooks by other names. Others' hooks stay."""
    module = nn.Linear(1, 1)
    calls = []

    def mine(*_):
        calls.append("mine")

    def other(*_):
        calls.append("other")

    for hook in (mine, other, mine):
        getattr(module, f"register_{kind}_hook")(hook, with_kwargs=hook is other)
    private.remove_hook(module, mine)
    module(torch.ones(1))

    assert calls == ["other"]


def test_without_hooks_where_they_were_none_is_taken_off():
    """Its handle does it then, as ever."""
    private.remove_hook(object(), print)


def test_a_gradients_hooks_are_seen():
    """A tensor keeps its hooks by other names."""
    x, y = (nn.Parameter(torch.ones(1)) for _ in range(2))
    x.register_hook(lambda grad: grad)
    y.register_post_accumulate_grad_hook(lambda p: None)

    assert private.gradient_hooks(x) == (True, False)
    assert private.gradient_hooks(y) == (False, True)
    assert private.gradient_hooks(nn.Parameter(torch.ones(1))) == (False, False)


def test_the_leaf_of_a_node_is_found():
    """The node that accumulates a gradient has another name, or tells its leaf in another way."""
    x = torch.ones(1, requires_grad=True)
    node = (x * 2).grad_fn

    assert private.leaf_of(node) is None
    assert private.leaf_of(node.next_functions[0][0]) is x


def test_an_optimizers_step_hooks_are_seen():
    """`torch.optim.Optimizer` keeps its hooks by other names."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    hooks = [lambda *a: None, lambda *a: None]
    optimizer.register_step_pre_hook(hooks[0])
    optimizer.register_step_post_hook(hooks[1])

    assert private.step_hooks(optimizer) == hooks


def one_weight(kind=torch.optim.AdamW, **settings):
    """An optimizer of a weight with a gradient, and the weight."""
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    weight.grad = torch.tensor([0.5, -0.25])
    return kind([weight], lr=0.1, **settings), weight


class OwnStep(torch.optim.SGD):
    """Has a step of its own, which torch puts its things around, too."""

    def step(self, closure=None):
        self.param_groups[0]["lr"] = 0.2
        return super().step(closure)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, OwnStep])
def test_a_step_without_what_is_around_it_is_the_same_step(kind):
    """`Optimizer.step` is wrapped otherwise, or computes otherwise without it."""
    (ours, a), (plain, b) = one_weight(kind), one_weight(kind)
    assert not private.is_step_watched(ours)
    for _ in range(3):
        private.take_step(ours)
        plain.step()

    assert torch.equal(a, b)
    assert torch.is_grad_enabled()


def test_an_optimizers_step_is_one_that_is_known(monkeypatch):
    """`Optimizer.profile_hook_step` does not wrap steps any more: each takes some us longer."""
    optimizer, weight = one_weight()
    monkeypatch.setattr(private, "is_step_watched", lambda optimizer: False)
    monkeypatch.setattr(optimizer, "step", lambda: pytest.fail("went by the front door"))

    private.take_step(optimizer)

    assert weight.tolist() != [1.0, 2.0]


def test_a_step_that_is_not_known_is_taken_by_the_front_door(monkeypatch):
    """Whatever stands there."""
    optimizer, _ = one_weight()
    taken = []
    monkeypatch.setattr(optimizer, "step", lambda: taken.append(1))
    monkeypatch.setattr(private, "is_step_watched", lambda optimizer: False)
    for known in (None, one_weight.__code__):
        monkeypatch.setattr(private, "_CODE_AROUND_STEP", known)
        private.take_step(optimizer)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: taken.append(2))
    private.take_step(optimizer)

    assert taken == [1, 1, 1]


def test_who_watches_an_optimizers_step_sees_it():
    """Hooks of one or all optimizers, a scheduler that counts steps, or a profiler is not seen."""
    seen = []
    for register in (
        lambda o: o.register_step_pre_hook(lambda *a: seen.append("pre")),
        lambda o: o.register_step_post_hook(lambda *a: seen.append("post")),
        lambda o: register_optimizer_step_pre_hook(lambda *a: seen.append("all, pre")),
        lambda o: register_optimizer_step_post_hook(lambda *a: seen.append("all, post")),
    ):
        optimizer, _ = one_weight()
        handle = register(optimizer)
        private.take_step(optimizer)
        handle.remove()
        private.take_step(optimizer)
    assert seen == ["pre", "post", "all, pre", "all, post"]

    optimizer, _ = one_weight()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    private.take_step(optimizer)
    scheduler.step()  # which warns if it saw no step

    optimizer, _ = one_weight()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        private.take_step(optimizer)
    assert "Optimizer.step#AdamW.step" in {event.name for event in profile.events()}


def test_steps_whose_hooks_are_elsewhere_are_taken_as_they_are(said):
    """Once it is said."""
    optimizer, _ = one_weight()
    del optimizer._optimizer_step_pre_hooks
    assert private.is_step_watched(optimizer)
    assert private.is_step_watched(optimizer)

    assert len(said()) == 1
    assert "each step looks for them itself" in said()[0]


@pytest.mark.parametrize("is_known", [True, False])
def test_buffers_that_a_state_dict_holds_are_told_from_others(is_known):
    """`nn.Module` keeps elsewhere which buffers are not saved; then its state_dict is asked."""
    module = nn.Module()
    module.register_buffer("kept", torch.ones(1))
    module.register_buffer("passing", torch.ones(1), persistent=False)
    if is_known:
        assert module._non_persistent_buffers_set == {"passing"}
        assert private.is_lasting(module, "kept")
        assert not private.is_lasting(module, "passing")
        return

    class Elsewhere(nn.Module):
        def state_dict(self):
            return {"kept": 1}

    module = Elsewhere()
    del module._non_persistent_buffers_set
    assert private.is_lasting(module, "kept")
    assert not private.is_lasting(module, "passing")


def test_errors_name_the_layer_inside():
    """The frames in which `nn.Module` calls modules have other names for what they hold."""
    model = tl.Serial(tl.Dense(3), tl.Fn("Bad", lambda x: x.no_such_thing))
    x = torch.ones(2, 3)

    with pytest.raises(tl.LayerError) as error:
        model.init(x)

    assert error.value.layer_name == "Bad"
    assert tuple(error.value.input_signature.shape) == (2, 3)


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.SGD, torch.optim.AdamW])
def test_a_fused_optimizer_obeys_a_verdict_on_the_device(make):
    """Fused kernels no longer ask for `found_inf`: a bad step would change weights."""
    p = nn.Parameter(torch.ones(3))
    optimizer = make([p], lr=0.1, fused=True)
    p.grad = torch.ones(3)
    assert private.verdict_of(optimizer) is None

    private.set_verdict(optimizer, torch.tensor(1.0))
    optimizer.step()
    assert p.tolist() == [1, 1, 1]

    private.set_verdict(optimizer, torch.tensor(0.0))
    optimizer.step()
    assert (p < 1).all()


def test_a_loader_keeps_its_workers_in_its_iterator():
    """Workers that persist lie elsewhere: two streams that share a loader disturb each other."""
    loader = torch.utils.data.DataLoader(range(4), num_workers=1, persistent_workers=True)
    first = iter(loader)

    assert iter(loader) is first
    assert iter(private.loader_without_workers(loader)) is not first


def test_a_module_keeps_its_own_in_three_dicts():
    """`nn.Module` no longer reads `_parameters`, `_buffers` and `_modules`: Layer does."""
    module = nn.Module()
    module._parameters["w"] = nn.Parameter(torch.ones(1))
    module._buffers["b"] = torch.ones(1)
    module._modules["m"] = nn.Linear(1, 1)

    assert [name for name, _ in module.named_parameters()] == ["w", "m.weight", "m.bias"]
    assert [name for name, _ in module.named_buffers()] == ["b"]
    assert module.w is module._parameters["w"]
    assert module.m is module._modules["m"]
    assert module.b is module._buffers["b"]


def test_a_module_may_refuse_what_it_is_loaded_with():
    """`_load_from_state_dict` is no longer asked, or has no list of errors at its end."""

    class Refuses(nn.Linear):
        def _load_from_state_dict(self, state_dict, prefix, *args):
            args[-1].append(f"refused {sorted(state_dict)} at {prefix}")

    outer = nn.Sequential(Refuses(1, 1))
    with pytest.raises(RuntimeError, match="refused .*0.bias.* at 0."):
        outer.load_state_dict(outer.state_dict())


def test_a_tensor_of_a_transform_is_known_where_that_is_set_aside():
    """torch tells a tensor's transform otherwise: recomputed layers may lose gradients."""
    found, met = {}, []

    class Below(torch.autograd.Function):
        @staticmethod
        def forward(x):
            found["below"] = private.is_set_aside(x), private.is_set_aside(met[0])
            return x.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, grad):
            return grad

    def f(x):
        met.append(x)
        found["within"] = private.is_set_aside(x), private.is_set_aside(torch.ones(1))
        return Below.apply(x).sum()

    torch.func.grad(f)(torch.ones(1))

    assert found == {"within": (False, False), "below": (False, True)}


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


# Processes.


def _texts(rank):
    found = {}
    dist.init_process_group("cpu:gloo")
    for_gpus = dist.new_group(backend="cuda:gloo")
    try:
        dist.all_reduce(torch.ones(1), group=for_gpus)
    except RuntimeError as error:
        found["backend"] = private.lacks_a_backend(error), str(error)
    words = Words(private.meeting_store(), rank)
    words.leave(ValueError("mine"))
    found["store"] = words.read()
    words.begin()
    found["store later"] = words.read()
    two = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
    two.forward = lambda x: two[0](x)
    parallel = nn.parallel.DistributedDataParallel(two)
    try:
        for _ in range(2):
            parallel(torch.ones(1)).sum().backward()
    except RuntimeError as error:
        found["unused"] = private.asks_to_find_unused(error), str(error)
    if rank == 1:
        return found
    try:
        for _ in range(1000):
            dist.all_reduce(torch.ones(1))
    except RuntimeError as error:
        found["gone"] = private.is_of_gloo(error), type(error).__name__, str(error)
    return found


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


def test_errors_between_ranks_are_known_by_their_words(tmp_path):
    """torch says in other words that a rank is gone, a weight unused, or a device without a way."""
    first, other = ranks.values(tmp_path, 2, _texts)

    assert first["store"] in ("On rank 0: ValueError: mine ", "On rank 1: ValueError: mine ")
    assert other["store"] == first["store"]
    assert first["store later"] is None
    assert first["backend"][0], first["backend"]
    assert first["unused"][0], first["unused"]
    assert first["gone"][0] or issubclass(getattr(dist, first["gone"][1], int), dist.DistError)


def test_torch_tells_whether_the_cpu_multiplies_bfloat16(monkeypatch, said):
    assert isinstance(private.cpu_multiplies_bfloat16.__wrapped__(), bool)
    monkeypatch.setattr(torch.ops, "mkldnn", None)
    assert private.cpu_multiplies_bfloat16.__wrapped__()
    assert "computes in bfloat16 on any CPU" in said()[0]


def test_numpy_is_refused_a_gradient_while_a_module_is_called():
    """The frames of a call of a module are those of the file that defines it."""

    class Asks(nn.Module):
        def forward(self, x):
            private.refuse_to_lose_gradient(x)
            return x

    wanted = torch.ones(2, requires_grad=True)
    private.refuse_to_lose_gradient(wanted)
    with pytest.raises(
        RuntimeError, match="needed that pass gradients on; numpy was given .* Take"
    ):
        Asks()(wanted)
    assert Asks()(wanted.detach()).sum() == 2
    with torch.no_grad():
        assert Asks()(wanted).sum() == 2
