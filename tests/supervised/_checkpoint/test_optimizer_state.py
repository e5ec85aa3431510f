"""Optimizers and schedulers of all kinds go on where a checkpoint left them, to the last bit.

Two runs of one process are compared: one that goes on, and one that is built anew from its
checkpoint. Optimizers of other packages are tried where they are installed.
"""

import functools

import pytest
import torch
from torch import nn

from trax_torch import optimizers
from trax_torch._errors import CheckpointError, MismatchError
from trax_torch._memory_order import order_of
from trax_torch.supervised import Loop, TrainingStepCallback, TrainTask
from trax_torch.supervised._checkpoint import verify

optim = torch.optim
S = optim.lr_scheduler
LAYOUTS = ("contiguous", "channels_last", "transposed", "with gaps")
TYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)


def laid(tensor, layout):
    """Returns a tensor of the same values that lies in memory in a way."""
    if layout == "channels_last":
        four = tensor.dim() == 4
        return tensor.contiguous(memory_format=torch.channels_last) if four else tensor.clone()
    if layout == "transposed":
        axes = list(reversed(range(tensor.dim())))
        return tensor.permute(axes).contiguous().permute(axes)
    if layout == "with gaps":
        wide = torch.zeros(*tensor.shape[:-1], 2 * tensor.shape[-1], dtype=tensor.dtype)
        wide[..., ::2] = tensor
        return wide[..., ::2]
    return tensor.clone()


class Net(nn.Module):
    """Weights of 4, 2 and 1 axes, in a type and a layout; it computes in float64."""

    def __init__(self, layout="contiguous", dtype=torch.float32):
        super().__init__()
        g = torch.Generator().manual_seed(1)
        for name, shape in (("kernel", (4, 3, 2, 2)), ("matrix", (4, 4)), ("bias", (4,))):
            values = (0.3 * torch.randn(shape, generator=g)).to(dtype)
            self.register_parameter(name, nn.Parameter(laid(values, layout)))

    def forward(self, x):
        kernel, matrix, bias = (p.double() for p in (self.kernel, self.matrix, self.bias))
        hidden = torch.tanh(x.double().flatten(1) @ kernel.flatten(1).T)
        return hidden @ matrix + bias


def data():
    g = torch.Generator().manual_seed(2)
    x = torch.randn(8, 3, 2, 2, generator=g, dtype=torch.float64)
    return [(x, torch.randn(8, 4, generator=g, dtype=torch.float64))]


def loop_of(folder, make, net=None, **settings):
    """Returns a loop; `make` makes an optimizer, or a recipe, of a list of parameters."""
    net = net or Net()
    settings.setdefault("save_at_end", False)  # "model" is what a test saves half way
    schedule = settings.pop("lr_schedule", None)
    task = TrainTask(
        data(),
        nn.MSELoss(),
        make(list(net.parameters())),
        lr_schedule=schedule,
        n_steps_per_checkpoint=None,
    )
    settings = {"save_at_end": False, "random_seed": 1, "progress": False, **settings}
    return Loop(net, task, output_dir=str(folder), **settings)


def tensors_in(nest):
    if isinstance(nest, torch.Tensor):
        yield nest
    elif isinstance(nest, dict):
        for value in nest.values():
            yield from tensors_in(value)
    elif isinstance(nest, (list, tuple)):
        for value in nest:
            yield from tensors_in(value)


def forms_of(loop):
    """Types, shapes and orders in memory of all that an optimizer keeps."""
    content = loop.optimizers[0].state_dict()
    return [(t.dtype, tuple(t.shape), order_of(t)) for t in tensors_in(content)]


def check_resumes(folder, make_loop, n_steps=2):
    """Checks that a run that is built anew is the one that went on; returns the two."""
    whole = make_loop(folder)
    whole.run(n_steps)
    whole.save_checkpoint("model")
    forms = forms_of(whole)
    whole.run(n_steps)
    whole.save_checkpoint("whole")
    cut = make_loop(folder)
    assert cut.step == n_steps
    assert forms_of(cut) == forms
    cut.run(n_steps)
    for (name, mine), theirs in zip(
        whole.model.named_parameters(), cut.model.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs), name
    cut.save_checkpoint("cut")
    mine, theirs = (verify.contents(str(folder), name) for name in ("whole", "cut"))
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not verify.is_equal(mine[name], theirs[name])] == []
    return whole, cut


# Optimizers


class WithGlobal(optim.Optimizer):
    """Its rate falls with a count of its own, and its slots have names of all kinds."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        shared = self.state["global"]
        shared["k"] = shared.get("k", 0) + 1
        for group in self.param_groups:
            for p in group["params"]:
                slots = self.state[p]
                if not slots:
                    slots |= {0: torch.zeros_like(p), "a.b": [torch.zeros_like(p), (1, None)]}
                    slots |= {"word": "sum", "counts": {3: torch.zeros((), dtype=torch.int64)}}
                slots[0].add_(p.grad)
                slots["a.b"][0].lerp_(p.grad, 0.25)
                slots["counts"][3] += 1
                p.add_(slots["a.b"][0], alpha=-group["lr"] / shared["k"])
                p.add_(slots[0], alpha=-0.01 / float(slots["counts"][3]))


class Lookahead(optim.Optimizer):
    """Wraps another, with weights of its own that stand in its state_dict alone."""

    def __init__(self, inner, k=2):
        self.inner, self.k, self.n = inner, k, 0
        super().__init__(inner.param_groups, {})
        self.slow = [p.detach().clone() for p in self.params()]

    def params(self):
        return [p for group in self.inner.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        self.inner.step()
        self.n += 1
        if self.n % self.k == 0:
            for slow, p in zip(self.slow, self.params(), strict=True):
                p.copy_(slow.lerp_(p, 0.5))

    def state_dict(self):
        return {"inner": self.inner.state_dict(), "n": self.n, "slow": list(self.slow)}

    def load_state_dict(self, state_dict):
        self.inner.load_state_dict(state_dict["inner"])
        self.n = state_dict["n"]
        for mine, theirs in zip(self.slow, state_dict["slow"], strict=True):
            mine.copy_(theirs)


def recipe(make, **numbers):
    return lambda params: make(**numbers)


def of(name, **numbers):
    return lambda params: getattr(optim, name)(params, **numbers)


def of_pytorch_optimizer(name, **numbers):
    def make(params):
        package = pytest.importorskip("pytorch_optimizer")
        return getattr(package, name)(params, **numbers)

    return make


def free_of_schedules(name, **numbers):
    def make(params):
        optimizer = getattr(pytest.importorskip("schedulefree"), name)(params, **numbers)
        optimizer.train()
        return optimizer

    return make


def lookahead_of_pytorch_optimizer(params):
    package = pytest.importorskip("pytorch_optimizer")
    return package.Lookahead(optim.NAdam(params, lr=0.01, eps=1e-3), k=2)


OPTIMIZERS = {
    "Adadelta": of("Adadelta", lr=0.5),
    "Adafactor": of("Adafactor", lr=0.01),
    "Adagrad fused": of("Adagrad", lr=0.01, fused=True),
    "Adam amsgrad": of("Adam", lr=0.01, eps=1e-3, amsgrad=True),
    "AdamW fused": of("AdamW", lr=0.01, eps=1e-3, fused=True),
    "Adamax": of("Adamax", lr=0.01, eps=1e-3),
    "ASGD": of("ASGD", lr=0.01, t0=2, lambd=0.1),
    "Muon": lambda params: optim.Muon([p for p in params if p.dim() == 2], lr=0.01),
    "NAdam": of("NAdam", lr=0.01, eps=1e-3),
    "RAdam": of("RAdam", lr=0.01, eps=1e-3),
    "RMSprop": of("RMSprop", lr=0.01, eps=1e-3, momentum=0.9, centered=True),
    "Rprop": of("Rprop", lr=0.01),
    "SGD fused": of("SGD", lr=0.01, momentum=0.9, fused=True),
    "our Adafactor": recipe(optimizers.Adafactor, learning_rate=0.01, do_momentum=True),
    "our Adam": recipe(optimizers.Adam, learning_rate=0.01, eps=1e-3),
    "our Momentum": recipe(optimizers.Momentum, learning_rate=0.01),
    "our RMSProp": recipe(optimizers.RMSProp, learning_rate=0.01, eps=1e-3),
    "our SGD": recipe(optimizers.SGD, learning_rate=0.01),
    "our SM3": recipe(optimizers.SM3, learning_rate=0.01),
    "a count for all": WithGlobal,
    "a wrapper": lambda params: Lookahead(optim.NAdam(params, lr=0.01, eps=1e-3)),
    "Lookahead": lookahead_of_pytorch_optimizer,
    "AdEMAMix": of_pytorch_optimizer("AdEMAMix", lr=0.01, eps=1e-3),
    "Lion": of_pytorch_optimizer("Lion", lr=0.01),
    "Prodigy": of_pytorch_optimizer("Prodigy", lr=1.0, eps=1e-3),
    "Ranger21": of_pytorch_optimizer("Ranger21", num_iterations=20, lr=0.01),
    "Shampoo": of_pytorch_optimizer("Shampoo", lr=0.01),
    "SOAP": of_pytorch_optimizer("SOAP", lr=0.01, eps=1e-3),
    "AdamWScheduleFree": free_of_schedules("AdamWScheduleFree", lr=0.01, eps=1e-3),
    "SGDScheduleFree": free_of_schedules("SGDScheduleFree", lr=0.01),
}


UNFIT = {
    # torch's kernel loses the momentum of types of 16 bits on a CPU
    "SGD fused": (torch.bfloat16, torch.float16),
    "Prodigy": (torch.float16,),  # its sums of products are too small for it
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_resume_in_all_layouts_and_types(tmp_path, name):
    """Weights, slots, their types and their order in memory are those of a run not cut."""
    n_tried = 0
    for layout in LAYOUTS:
        for dtype in TYPES:
            folder = tmp_path / f"{layout} {dtype}"

            def make_loop(folder, layout=layout, dtype=dtype):
                return loop_of(folder, OPTIMIZERS[name], Net(layout, dtype))

            if dtype not in UNFIT.get(name, ()):
                check_resumes(folder, make_loop)
                n_tried += 1
    assert n_tried == 16 - len(UNFIT.get(name, ())) * len(LAYOUTS)


class Complex(nn.Module):
    """A complex weight."""

    def __init__(self, layout, dtype):
        super().__init__()
        g = torch.Generator().manual_seed(1)
        weight = 0.3 * torch.randn(4, 12, generator=g, dtype=torch.complex128).to(dtype)
        self.weight = nn.Parameter(laid(weight, layout))

    def forward(self, x):
        return (x.flatten(1).to(self.weight.dtype) @ self.weight.T).abs().double()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_complex_weights_resume(tmp_path, layout, dtype):
    for name in ("Adam", "SGD", "Adagrad", "RMSprop"):
        numbers = {"SGD": {"momentum": 0.9}}.get(name, {})
        make = of(name, lr=0.01, **numbers)
        check_resumes(
            tmp_path / name, lambda folder, make=make: loop_of(folder, make, Complex(layout, dtype))
        )


def test_slots_come_to_lie_as_weights_that_lie_otherwise_now(tmp_path):
    """Fused kernels walk weights and slots in the order of memory, so the two must agree."""
    make = OPTIMIZERS["AdamW fused"]
    whole = loop_of(tmp_path, make, Net("channels_last", torch.float64))
    whole.run(2)
    whole.save_checkpoint("model")
    whole.run(2)
    for layout in ("contiguous", "transposed"):
        cut = loop_of(tmp_path, make, Net(layout, torch.float64))
        cut.run(2)
        for mine, theirs in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_going_back_in_one_process_is_going_on_from_there(tmp_path):
    loop = loop_of(tmp_path, OPTIMIZERS["our Adam"], Net("channels_last"))
    loop.run(2)
    loop.save_checkpoint("there")
    loop.run(2)
    after = [p.detach().clone() for p in loop.model.parameters()]
    loop.load_checkpoint(filename="there")
    loop.run(2)
    assert all(torch.equal(a, p) for a, p in zip(after, loop.model.parameters(), strict=True))


@pytest.mark.parametrize("settings", [{"background_saves": True}, {"device": "cpu"}])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_memory_order_survives_each_way_to_save_and_train(tmp_path, settings, level):
    check_resumes(
        tmp_path,
        lambda folder: loop_of(
            folder,
            OPTIMIZERS["our Adam"],
            Net("channels_last"),
            use_memory_efficient_trainer=level,
            **settings,
        ),
    )


# What cannot be saved or put back


class Odd(optim.SGD):
    """Keeps something from its first step on."""

    kept = staticmethod(lambda: None)

    def step(self, closure=None):
        super().step(closure)
        self.state[self.param_groups[0]["params"][0]]["odd"] = self.kept()


class Tagged(torch.Tensor):
    """A class of tensors that does not say what it is made of."""


KEPT = {
    "an object": (object, "A object cannot be saved in 0.module.kernel.odd"),
    "a function": (lambda: len, "A builtin_function_or_method cannot be saved"),
    "a class of tensors": (lambda: torch.ones(2).as_subclass(Tagged), "A Tagged cannot be saved"),
    "sparse": (lambda: torch.eye(2).to_sparse(), "kernel.odd cannot be saved: its layout is"),
}


@pytest.mark.parametrize("kind", KEPT)
def test_what_cannot_be_saved_is_refused_at_the_first_step_by_name(tmp_path, kind):
    """Not at the first save, which may be hours later."""
    keep, words = KEPT[kind]

    def make(params):
        odd = Odd(params, lr=0.1)
        odd.kept = keep
        return odd

    loop = loop_of(tmp_path, make, checkpoint_at=lambda step: step == 3)
    with pytest.raises(CheckpointError, match=f"the optimizer of task 0 keeps, a Odd, .*{words}"):
        loop.run(2)
    assert loop.step == 1


def test_an_optimizer_that_cannot_tell_its_state_is_refused_before_the_first_step(tmp_path):
    class Mute(optim.SGD):
        def state_dict(self):
            raise AttributeError("no such thing")

    loop = loop_of(tmp_path, lambda params: Mute(params, lr=0.1))
    with pytest.raises(CheckpointError, match="a Mute, cannot be saved. no such thing"):
        loop.run(2)
    assert loop.step == 0


def test_an_optimizer_that_does_not_take_back_what_it_gave_is_not_gone_on_with(tmp_path):
    class Forgetful(Lookahead):
        def load_state_dict(self, state_dict):
            super().load_state_dict({**state_dict, "slow": self.slow})

    make = functools.partial(loop_of, tmp_path, lambda p: Forgetful(optim.SGD(p, lr=0.1)))
    loop = make()
    loop.run(3)
    loop.save_checkpoint("model")
    with pytest.raises(MismatchError, match="Forgetful .* did not take slow.0 back"):
        make()


DENSE = "complex64 complex128 float8_e4m3fn float8_e5m2 uint16 uint32 uint64 bool int8 float64"


@pytest.mark.parametrize("name", [*DENSE.split(), "uint4", "sparse"])
def test_buffers_of_all_types_come_back_or_are_refused_before_the_first_step(tmp_path, name):
    def make_loop(folder):
        net = Net()
        dtype = getattr(torch, name, torch.float32)
        buffer = torch.eye(3).to_sparse() if name == "sparse" else torch.empty(3, dtype=dtype)
        if name in DENSE.split():
            buffer = torch.tensor([0, 1, 3]).to(dtype)
        net.register_buffer("kept", buffer)
        return loop_of(folder, OPTIMIZERS["our SGD"], net)

    if name in DENSE.split():
        whole, cut = check_resumes(tmp_path, make_loop)
        assert verify.is_equal(whole.model.kept, cut.model.kept)
    else:
        with pytest.raises(CheckpointError, match="kept of the state cannot be saved"):
            loop = make_loop(tmp_path)
            loop.run(1)


# Groups


class Halve(TrainingStepCallback):
    """Halves the rate at step 2."""

    in_place = True

    def on_step_end(self, step):
        if step == 2:
            for group in self._loop.optimizers[0].param_groups:
                if self.in_place:
                    group["lr"].mul_(0.5)
                else:
                    group["lr"] = group["lr"] * 0.5


@pytest.mark.parametrize("in_place", [True, False])
def test_rates_that_a_callback_changed_stay_changed(tmp_path, monkeypatch, in_place):
    monkeypatch.setattr(Halve, "in_place", in_place)
    _, cut = check_resumes(
        tmp_path,
        lambda folder: loop_of(
            folder, lambda p: optim.SGD(p, lr=torch.tensor(0.1)), callbacks=[Halve]
        ),
        n_steps=3,
    )
    assert float(cut.optimizers[0].param_groups[0]["lr"]) == pytest.approx(0.05)


def test_going_back_before_a_change_takes_the_change_back(tmp_path):
    loop = loop_of(
        tmp_path,
        lambda p: optim.SGD(p, lr=torch.tensor(0.1)),
        callbacks=[Halve],
        checkpoint_at=lambda step: step == 1,
    )
    loop.run(3)
    assert float(loop.optimizers[0].param_groups[0]["lr"]) == pytest.approx(0.05)
    loop.load_checkpoint()
    assert loop.step == 1
    assert float(loop.optimizers[0].param_groups[0]["lr"]) == pytest.approx(0.1)


# Classes of tensors


class Scaled(torch.Tensor):
    """A tensor that is made of two, as those of quantized optimizers are."""

    @staticmethod
    def __new__(cls, values, scale, dtype):
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=dtype)

    def __init__(self, values, scale, dtype):
        self.values, self.scale = values, scale

    def __tensor_flatten__(self):
        return ["values", "scale"], {"dtype": self.dtype}

    @classmethod
    def __tensor_unflatten__(cls, pieces, context, size, strides):
        return cls(pieces["values"], pieces["scale"], context["dtype"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.detach.default):
            one = args[0]
            return cls(one.values.clone(), one.scale.clone(), one.dtype)
        raise NotImplementedError(func)


class OfScaled(optim.Optimizer):
    """Momentum kept as integers of 16 bits and a scale."""

    def __init__(self, params, lr=0.05):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for p in (p for group in self.param_groups for p in group["params"]):
            kept = self.state[p].get("m")
            m = p.grad if kept is None else kept.values * kept.scale * 0.9 + p.grad
            scale = m.abs().max() / 30000 + 1e-12
            values = (m / scale).round().to(torch.int16)
            self.state[p]["m"] = Scaled(values, scale, p.dtype)
            p.sub_(values * scale, alpha=0.05)


def test_slots_of_a_class_of_tensors_resume(tmp_path):
    _, cut = check_resumes(tmp_path, lambda folder: loop_of(folder, OfScaled))
    assert {type(t) for t in tensors_in(cut.optimizers[0].state_dict()["state"])} == {Scaled}


def test_slots_of_eight_bits_of_torchao_resume(tmp_path):
    ao = pytest.importorskip("torchao.optim")

    def make_loop(folder):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 128))
        x, y = torch.randn(8, 64), torch.randn(8, 128)
        task = TrainTask(
            [(x, y)],
            nn.MSELoss(),
            ao.AdamW8bit(net.parameters(), lr=0.01),
            n_steps_per_checkpoint=None,
        )
        settings = {"save_at_end": False, "random_seed": 1, "progress": False}
        return Loop(net, task, output_dir=str(folder), **settings)

    check_resumes(tmp_path, make_loop)


# Schedulers


class Ramp:
    """A rate with a state of its own, which torch's LambdaLR keeps."""

    def __init__(self):
        self.n_calls = 0

    def __call__(self, step):
        self.n_calls += 1
        return 1 / (1 + 0.1 * self.n_calls)


def in_turn(optimizer):
    parts = [S.LinearLR(optimizer, 0.5, total_iters=2), S.CosineAnnealingLR(optimizer, 8)]
    return S.SequentialLR(optimizer, parts, milestones=[3])


P = functools.partial
SCHEDULERS = {
    "LambdaLR": P(S.LambdaLR, lr_lambda=lambda step: 0.9**step),
    "LambdaLR of an object": lambda o: S.LambdaLR(o, Ramp()),
    "MultiplicativeLR": P(S.MultiplicativeLR, lr_lambda=lambda step: 0.95),
    "StepLR": P(S.StepLR, step_size=2),
    "MultiStepLR": P(S.MultiStepLR, milestones=[1, 3], gamma=0.5),
    "ConstantLR": P(S.ConstantLR, factor=0.5, total_iters=3),
    "LinearLR": P(S.LinearLR, total_iters=4),
    "ExponentialLR": P(S.ExponentialLR, gamma=0.9),
    "PolynomialLR": P(S.PolynomialLR, total_iters=5, power=2.0),
    "CosineAnnealingLR": P(S.CosineAnnealingLR, T_max=5),
    "CosineAnnealingWarmRestarts": P(S.CosineAnnealingWarmRestarts, T_0=2, T_mult=2),
    "CyclicLR": P(S.CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=3),
    "CyclicLR exp_range": P(
        S.CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=2, mode="exp_range", gamma=0.9
    ),
    "OneCycleLR": P(S.OneCycleLR, max_lr=0.1, total_steps=20),
    "OneCycleLR of three phases": P(S.OneCycleLR, max_lr=0.1, total_steps=20, three_phase=True),
    "SequentialLR": in_turn,
    "ChainedScheduler": lambda o: S.ChainedScheduler(
        [S.ConstantLR(o, 0.5, 3), S.ExponentialLR(o, 0.9)], o
    ),
    "SWALR": P(optim.swa_utils.SWALR, swa_lr=0.001, anneal_epochs=5),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_resume(tmp_path, name):
    """Rates and weights of the run that is built anew are those of the run that goes on."""
    rates = []

    class Note(TrainingStepCallback):
        def on_step_end(self, step):
            group = self._loop.optimizers[0].param_groups[0]
            rates.append((step, group["lr"], group["momentum"]))

    make = P(optim.SGD, lr=0.1, momentum=0.9)
    check_resumes(
        tmp_path,
        lambda folder: loop_of(
            folder, lambda _: make, lr_schedule=SCHEDULERS[name], callbacks=[Note]
        ),
        n_steps=4,
    )
    assert [step for step, *_ in rates] == [*range(1, 9), *range(5, 9)]
    assert rates[4:8] == rates[8:]
    assert len({rate for _, rate, _ in rates}) > 1
