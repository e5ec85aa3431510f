"""The compiler: its errors, its programs, its sizes."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from trax_torch import _torch_private as private
from trax_torch import layers as tl
from trax_torch import models
from trax_torch.supervised import decoding


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


def test_programs_are_compiled_ahead_and_loaded_without_the_compiler():
    """`decoding.warmup(folder=)` fails; `test_kept_programs` runs what it makes."""
    import torch._inductor

    assert callable(torch._inductor.aoti_compile_and_package)
    assert callable(torch._C._aoti.AOTIModelPackageLoader)
