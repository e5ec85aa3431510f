"""precision='fp16': steps are those of a bare loop with torch's GradScaler, skipped ones too."""

import dataclasses
import functools
import itertools

import pytest
import ranks
import torch
from torch import nn
from toys import state_of

from trax_torch import optimizers
from trax_torch.optimizers._loss_scale import LossScale
from trax_torch.supervised import EvalTask, Loop, TrainTask
from trax_torch.supervised._loop import LoopConfig

N_STEPS = 12
INTERVAL = 3  # good steps in a row, after which the scale grows
KINDS = {
    "SGD": lambda params: torch.optim.SGD(params, 0.01, momentum=0.9),
    "fused Adam": lambda params: torch.optim.Adam(params, 0.01, fused=True),
    "a recipe": lambda params: optimizers.RMSProp(0.001).bind(params),
}


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def make_batches(n=N_STEPS, far=(1, 6, 7)):
    """Some have targets so far away that gradients overflow under a large scale."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for i in range(n):
        x = torch.randn(8, 4, generator=generator)
        made.append((x, 0.3 * x.sum(1, keepdim=True) + (30.0 if i in far else 0.0)))
    return made


def bare(kind, n_parts=1, max_norm=None):
    """Returns weights, scales after each step, and how many steps the scaler skipped."""
    model = make_model()
    optimizer = KINDS[kind](list(model.parameters()))
    scaler = torch.amp.GradScaler("cpu", growth_interval=INTERVAL)
    scales = []
    for x, y in make_batches():
        optimizer.zero_grad()
        for part in zip(x.chunk(n_parts), y.chunk(n_parts), strict=True):
            with torch.autocast("cpu", dtype=torch.float16):
                loss = nn.functional.mse_loss(model(part[0]), part[1])
            scaler.scale(loss / n_parts).backward()
        scaler.unscale_(optimizer)
        if max_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    n_skipped = sum(b < a for a, b in itertools.pairwise([2.0**16, *scales]))
    return [p.detach() for p in model.parameters()], scales, n_skipped


def make_loop(data, kind="SGD", model=None, optimizer=None, **settings):
    model = model or make_model()
    optimizer = optimizer or KINDS[kind](list(model.parameters()))
    task = TrainTask(data, nn.MSELoss(), optimizer, sample_batch=data[0], n_steps_per_checkpoint=1)
    settings = {"precision": "fp16", "device": "cpu", "progress": False} | settings
    loop = Loop(model, task, random_seed=0, **settings)
    for trainer in loop._parts.trainers:
        trainer.loss_scale._growth_interval = INTERVAL
    return loop


def shown(loop, name):
    return [value for _, value in loop.history.get("train", f"training/{name}")]


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_of_a_bare_loop_with_a_scaler_bit_for_bit(kind):
    weights, scales, n_skipped = bare(kind)
    assert 3 <= n_skipped < N_STEPS
    assert any(b > a for a, b in itertools.pairwise(scales))  # it grows, too

    loop = make_loop(make_batches(), kind)
    loop.run(N_STEPS)

    assert all(map(torch.equal, loop.model.parameters(), weights))
    assert shown(loop, "loss scale") == scales
    assert shown(loop, "steps skipped by the loss scale")[-1] == n_skipped
    assert "training/skipped steps" not in loop.history.metrics_for_mode("train")


@pytest.mark.parametrize("settings", [{"n_parts": 2}, {"max_norm": 0.5}])
def test_parts_add_up_and_clipping_looks_at_what_is_divided_again(settings):
    weights, scales, _ = bare("SGD", **settings)
    loop = make_loop(
        make_batches(),
        n_accumulation_steps=settings.get("n_parts", 1),
        clip_grad_norm=settings.get("max_norm"),
    )
    loop.run(N_STEPS)

    torch.testing.assert_close(
        [p.detach() for p in loop.model.parameters()], weights, rtol=1e-4, atol=1e-5
    )
    assert shown(loop, "loss scale") == scales


def test_loss_and_norm_are_reported_as_they_are_without_scale():
    data = make_batches(far=())
    found = []
    for precision in ("fp16", "fp32"):
        model = make_model()
        task = TrainTask(
            data,
            nn.MSELoss(),
            torch.optim.SGD(model.parameters(), 1e-3),
            sample_batch=data[0],
            n_steps_per_checkpoint=1,
        )
        loop = Loop(model, task, random_seed=0, progress=False, device="cpu", precision=precision)
        loop.run(N_STEPS)
        found.append([shown(loop, "loss"), shown(loop, "gradients_l2")])

    for mine, wanted in zip(*found, strict=True):
        assert mine == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize("at", [3, 7])
def test_a_run_that_is_resumed_is_the_one_that_never_ended(tmp_path, at):
    """The scale, and the good steps since it changed, go on."""
    whole = make_loop(make_batches())
    whole.run(N_STEPS)

    make_loop(make_batches(), output_dir=str(tmp_path)).run(at)
    resumed = make_loop(make_batches(), output_dir=str(tmp_path))
    assert resumed.step == at
    resumed.run(N_STEPS - at)

    wanted, found = state_of(whole), state_of(resumed)
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []
    for name in ("loss scale", "steps skipped by the loss scale"):
        assert shown(resumed, name) == shown(whole, name)


def test_a_run_goes_on_in_another_precision(capsys, tmp_path):
    make_loop(make_batches(), output_dir=str(tmp_path)).run(3)
    model = make_model()
    task = TrainTask(make_batches(), nn.MSELoss(), KINDS["SGD"](list(model.parameters())))
    Loop(model, task, output_dir=str(tmp_path), progress=False, device="cpu").run(1)
    assert "saved with precision='fp16', and goes on with precision=None" in capsys.readouterr().out

    loop = make_loop(make_batches(), output_dir=str(tmp_path))
    loop.run(1)
    assert loop.step == 5


def test_a_loss_that_is_not_finite_is_no_matter_of_the_scale():
    data = make_batches(far=())
    data[2] = (data[2][0] / 0, data[2][1])
    loop = make_loop(data)

    with pytest.raises(optimizers.NonFiniteError, match="Step 3: the loss is nan"):
        loop.run(5)

    skipping = make_loop(data, on_nonfinite="skip")
    skipping.run(5)
    assert shown(skipping, "skipped steps") == [1.0] * 3
    assert shown(skipping, "steps skipped by the loss scale")[-1] == 0


class Edge(nn.Module):
    """Its loss is finite, and its gradient is not, whatever the scale."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x * self.weight.abs().sqrt()


def test_gradients_that_no_scale_makes_finite_are_an_error():
    data = [(torch.ones(2, 1), torch.ones(2, 1))]
    loop = make_loop(data, model=Edge())

    with pytest.raises(optimizers.NonFiniteError, match="the loss is 1.0 and the gradients' norm"):
        loop.run(100)

    assert 25 < loop.step < 40


class Norm(nn.Module):
    """Keeps statistics of what it sees."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 1)

    def forward(self, x):
        self.dtype = torch.get_autocast_dtype("cpu")
        return self.head(self.norm(x))


def test_a_step_that_is_skipped_changes_nothing_but_the_scale():
    """No slot and no statistics either."""
    loop = make_loop(make_batches(far=(0,)), model=Norm())
    before = state_of(loop)

    loop.run(1)

    assert [
        k for k, v in state_of(loop).items() if k in before and not torch.equal(before[k], v)
    ] == []
    assert shown(loop, "steps skipped by the loss scale") == [1.0]
    loop.run(3)
    assert not torch.equal(state_of(loop)["norm.running_mean"], before["norm.running_mean"])


def test_evals_compute_in_float16_too():
    model = Norm()
    task = TrainTask(make_batches(), nn.MSELoss(), torch.optim.SGD(model.parameters(), 0.01))
    evals = EvalTask(make_batches(), nn.MSELoss())
    loop = Loop(model, task, eval_tasks=evals, precision="fp16", device="cpu", progress=False)
    model.dtype = None
    loop.run_evals()

    assert model.dtype == torch.float16


def test_each_task_has_a_scale_of_its_own(tmp_path):
    """For each has a loss, and gradients, of its own size."""

    def two():
        model = make_model()
        tasks = [
            TrainTask(data, nn.MSELoss(), torch.optim.SGD(model.parameters(), 0.01))
            for data in (make_batches(far=range(N_STEPS)), make_batches(far=()))
        ]
        return Loop(
            model,
            tasks,
            random_seed=0,
            precision="fp16",
            device="cpu",
            progress=False,
            output_dir=str(tmp_path),
        )

    loop = two()
    loop.run(8)

    far, near = (trainer.loss_scale.state_dict() for trainer in loop._parts.trainers)
    assert far["value"] < near["value"]
    assert near["n_skipped"] < far["n_skipped"]
    assert [t.loss_scale.state_dict() for t in two()._parts.trainers] == [far, near]
    assert shown(loop, "loss scale of task 1")[-1] == near["value"]


@pytest.mark.parametrize("far", [(1, 6, 7), ()])
def test_a_device_may_decide_on_steps_that_overflow(far, monkeypatch):
    """As on CUDA with fused kernels, where no step waits for the verdict."""
    wanted = make_loop(make_batches(far=far), "fused Adam")
    loop = make_loop(make_batches(far=far), "fused Adam")
    trainer = loop._parts.trainers[0]
    monkeypatch.setattr(trainer, "_on_cpu", False)
    elsewhere = dataclasses.replace(trainer._gradients, on_cpu=False)
    monkeypatch.setattr(trainer, "_gradients", elsewhere)
    monkeypatch.setattr(trainer, "_decides_on_device", True)
    scale = LossScale(torch.device("cpu"), growth_interval=INTERVAL)
    monkeypatch.setattr(trainer, "loss_scale", scale)
    for each in (loop, wanted):
        each.run(N_STEPS)

    assert isinstance(scale.value, torch.Tensor)
    assert shown(loop, "loss scale") == shown(wanted, "loss scale")
    assert scale.state_dict() == wanted._parts.trainers[0].loss_scale.state_dict()
    assert all(map(torch.equal, loop.model.parameters(), wanted.model.parameters()))
    assert trainer.n_skipped == 0


def test_a_device_tells_a_bad_loss_from_an_overflow(monkeypatch):
    data = make_batches(far=(0,))
    data[2] = (data[2][0] / 0, data[2][1])
    loop = make_loop(data, "fused Adam", checkpoint_at=lambda step: False, save_at_end=False)
    trainer = loop._parts.trainers[0]
    monkeypatch.setattr(trainer, "_on_cpu", False)
    elsewhere = dataclasses.replace(trainer._gradients, on_cpu=False)
    monkeypatch.setattr(trainer, "_gradients", elsewhere)
    monkeypatch.setattr(trainer, "_decides_on_device", True)
    monkeypatch.setattr(trainer, "loss_scale", LossScale(torch.device("cpu")))

    loop.run(5)
    with pytest.raises(optimizers.NonFiniteError, match="Step 3: the loss is nan"):
        loop._stepper.check_finite()


# Ranks


def on_ranks(rank, strategy, far):
    data = [tuple(item[rank::2].clone() for item in batch) for batch in make_batches(far=far)]
    if rank == 1 and far:  # one overflows on this rank alone
        x, y = make_batches(far=())[6]
        data[6] = (x[0::2].clone(), y[0::2].clone())
    loop = make_loop(data, optimizer=functools.partial(torch.optim.SGD, lr=0.01), strategy=strategy)
    if not far:
        loop._parts.trainers[0].loss_scale.value = 2.0**8
    loop.run(N_STEPS)
    weights = [p.full_tensor() if strategy == "fsdp" else p for p in loop.model.parameters()]
    state = loop._parts.trainers[0].loss_scale.state_dict()
    return [p.detach() for p in weights], shown(loop, "loss scale"), state


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("far", [(), (1, 6)])
def test_ranks_share_one_scale(strategy, far, tmp_path):
    """A step that overflows on one is skipped on all; else they are one process."""
    found = ranks.values(tmp_path, 2, functools.partial(on_ranks, strategy=strategy, far=far))

    assert found[0][1:] == found[1][1:]
    assert all(map(torch.equal, found[0][0], found[1][0]))
    assert bool(found[0][2]["n_skipped"]) == bool(far)
    if not far:
        alone = make_loop(
            make_batches(far=()), optimizer=functools.partial(torch.optim.SGD, lr=0.01)
        )
        alone._parts.trainers[0].loss_scale.value = 2.0**8
        alone.run(N_STEPS)
        wanted = [p.detach() for p in alone.model.parameters()]
        torch.testing.assert_close(found[0][0], wanted, rtol=2e-2, atol=2e-3)


def bad_loss_on_one(rank):
    data = [tuple(item[rank::2].clone() for item in batch) for batch in make_batches(far=())]
    if rank == 1:
        data[2] = (data[2][0] / 0, data[2][1])
    loop = make_loop(data)
    with pytest.raises(optimizers.NonFiniteError, match="Step 3") as raised:
        loop.run(5)
    return raised.value.__notes__[-1]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_a_loss_that_is_not_finite_on_one_rank_is_told_on_all(tmp_path):
    for note in ranks.values(tmp_path, 2, bad_loss_on_one):
        assert "not finite: 1." in note


# What does not go together


def test_weights_in_float16_are_refused():
    model = make_model().half()
    task = TrainTask(make_batches(), nn.MSELoss(), torch.optim.SGD(model.parameters(), 0.01))

    with pytest.raises(ValueError, match=r"keeps weights in float32 .* model\.float\(\)"):
        Loop(model, task, precision="fp16", device="cpu", progress=False)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (
            {"use_memory_efficient_trainer": True},
            "overflow is known when other weights are updated",
        ),
        ({"loss_chunk_size": 4}, "loss_chunk_size computes gradients in the forward pass"),
    ],
)
def test_what_does_not_go_with_fp16_is_refused(settings, why):
    with pytest.raises(ValueError, match=why):
        LoopConfig(precision="fp16", **settings)
