"""Clipping by `Loop`: any optimizer takes the steps of a bare loop that clips with torch's own."""

import functools

import pytest
import ranks
import torch
from torch import nn

from trax_torch import optimizers
from trax_torch.supervised import Loop, TrainTask

N_STEPS = 6
LIMITS = {
    "norm": {"clip_grad_norm": 0.7},
    "value": {"clip_grad_value": 0.1},
    "both": {"clip_grad_norm": 0.7, "clip_grad_value": 0.2},
}


class Foreign(torch.optim.Optimizer):
    """A third party's rule: descent along the gradient, with a momentum of its own."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                p -= group["lr"] * mean.mul_(0.5).add_(p.grad)


KINDS = {
    "a class of torch": lambda m: torch.optim.Adagrad,
    "a partial": lambda m: functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "an instance": lambda m: torch.optim.AdamW(m.parameters(), lr=0.05),
    "a fused one": lambda m: torch.optim.Adam(m.parameters(), lr=0.05, fused=True),
    "a recipe": lambda m: optimizers.Momentum(0.1),
    "a recipe's class": lambda m: optimizers.Adam,
    "a bound recipe": lambda m: optimizers.RMSProp(0.01).bind(m.parameters()),
    "a third party's": lambda m: Foreign(m.parameters()),
    "a third party's class": lambda m: Foreign,
}


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))


def make_batches():
    """Whose gradients' norms are now above the limit, now below."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for i in range(N_STEPS):
        x = torch.randn(12, 3, generator=generator) * (0.2 if i % 2 else 2.0)
        made.append((x, x.sum(1, keepdim=True) * (0.5 if i % 2 else 3.0)))
    return made


def bare(kind, clip_grad_norm=None, clip_grad_value=None):
    """Returns the weights, and the norms before clipping, of a plain loop."""
    model = make_model()
    optimizer = KINDS[kind](model)
    if not isinstance(optimizer, torch.optim.Optimizer):
        optimizer = optimizers.base.bind(optimizer, model.parameters())
    norms = []
    for x, y in make_batches():
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        norms.append(float(nn.utils.get_total_norm([p.grad for p in model.parameters()])))
        if clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip_grad_norm)
        if clip_grad_value is not None:
            nn.utils.clip_grad_value_(model.parameters(), clip_grad_value)
        optimizer.step()
    return [p.detach() for p in model.parameters()], norms


def looped(rank, size, kind, **settings):
    model = make_model()
    data = [tuple(item[rank::size].clone() for item in batch) for batch in make_batches()]
    task = TrainTask(
        data,
        nn.MSELoss(),
        KINDS[kind](model),
        sample_batch=data[0],  # one of the data would not be trained on
        n_steps_per_checkpoint=1,
    )
    loop = Loop(model, task, random_seed=0, progress=False, device="cpu", **settings)
    loop.run(N_STEPS)
    if settings.get("strategy") == "fsdp":
        weights = [p.full_tensor().detach() for p in loop.model.parameters()]
    else:
        weights = [p.detach() for p in loop.model.parameters()]
    return weights, [v for _, v in loop.history.get("train", "training/gradients_l2")]


def assert_alike(found, wanted):
    torch.testing.assert_close(found[0], wanted[0], rtol=2e-5, atol=2e-6)
    assert found[1] == pytest.approx(wanted[1], rel=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("n_parts", [1, 3])
def test_steps_are_those_of_a_bare_loop_that_clips(kind, limits, n_parts):
    """And what is reported is the norm before clipping."""
    wanted = bare(kind, **limits)
    unclipped = bare(kind)

    found = looped(0, 1, kind, n_accumulation_steps=n_parts, **limits)

    assert_alike(found, wanted)
    assert not torch.allclose(found[0][0], unclipped[0][0], rtol=1e-3)


def all_kinds(rank, **settings):
    settings.setdefault("strategy", "ddp")
    made = {}
    for kind in KINDS:
        is_instance = isinstance(KINDS[kind](make_model()), torch.optim.Optimizer)
        if settings["strategy"] != "fsdp" or not is_instance:
            made[kind] = looped(rank, 2, kind, **settings)
    return made


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_clip_the_gradients_of_all_of_them(limits, strategy, tmp_path):
    found = ranks.values(tmp_path, 2, functools.partial(all_kinds, strategy=strategy, **limits))

    assert len(found[0]) >= 4
    for kind in found[0]:
        assert_alike(found[0][kind], bare(kind, **limits))
        assert_alike(found[1][kind], bare(kind, **limits))


def test_each_task_clips_by_its_own_gradients():
    made, model = make_batches(), make_model()
    tasks = [
        TrainTask([made[0]], nn.MSELoss(), torch.optim.SGD(model.parameters(), 0.1)),
        TrainTask([made[1]], nn.L1Loss(), torch.optim.SGD(model.parameters(), 0.1)),
    ]
    Loop(model, tasks, random_seed=0, progress=False, clip_grad_norm=0.3).run(4)
    by_hand = make_model()
    optimizer = torch.optim.SGD(by_hand.parameters(), 0.1)
    for step in range(1, 5):
        (x, y), loss = (made[1], nn.L1Loss()) if step % 2 else (made[0], nn.MSELoss())
        optimizer.zero_grad()
        loss(by_hand(x), y).backward()
        nn.utils.clip_grad_norm_(by_hand.parameters(), 0.3)
        optimizer.step()

    torch.testing.assert_close(
        list(model.parameters()), list(by_hand.parameters()), rtol=2e-5, atol=2e-6
    )


def test_sparse_gradients_are_clipped_as_what_they_add_up_to():
    """An item of a batch that comes twice has one gradient."""
    ids, targets = torch.tensor([[0], [0], [3]]), torch.tensor([[5.0], [5.0], [-5.0]])
    found = []
    for sparse in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(5, 1, sparse=sparse), nn.Flatten())
        task = TrainTask([(ids, targets)], nn.MSELoss(), torch.optim.SGD(model.parameters(), 0.1))
        loop = Loop(
            model, task, random_seed=0, progress=False, clip_grad_norm=3.0, clip_grad_value=1.5
        )
        loop.run(2)
        found.append(model[0].weight.detach())

    torch.testing.assert_close(*found)
    assert (found[0] != 0).all()


def test_memory_efficient_training_clips_by_value():
    """Each element by itself, so it matters not that blocks are updated one by one."""
    limits = LIMITS["value"]

    found = looped(0, 1, "an instance", use_memory_efficient_trainer=True, **limits)

    assert_alike(found, bare("an instance", **limits))


def test_a_limit_that_recipe_and_loop_share_is_one():
    model, other = make_model(), make_model()
    for m, recipe, settings in (
        (model, optimizers.SGD(0.1, clip_grad_norm=0.7), {"clip_grad_norm": 0.7}),
        (other, optimizers.SGD(0.1, clip_grad_norm=0.7), {}),
    ):
        task = TrainTask(make_batches(), nn.MSELoss(), recipe)
        Loop(m, task, random_seed=0, progress=False, **settings).run(N_STEPS)

    assert all(map(torch.equal, model.parameters(), other.parameters()))


@pytest.mark.parametrize("is_bound", [False, True])
def test_two_limits_that_differ_are_refused(is_bound):
    model = make_model()
    recipe = optimizers.Adam(0.1, clip_grad_norm=0.5)
    optimizer = recipe.bind(model.parameters()) if is_bound else recipe
    task = TrainTask(make_batches(), nn.MSELoss(), optimizer)

    with pytest.raises(ValueError, match=r"given twice: 1.0, and 0.5 by the optimizer"):
        Loop(model, task, progress=False, clip_grad_norm=1.0)


def test_a_class_of_recipes_that_clips_by_default_does():
    class Careful(optimizers.SGD):
        def __init__(self):
            super().__init__(0.1, clip_grad_norm=1e-3)

    model = make_model()
    before = [p.detach().clone() for p in model.parameters()]
    task = TrainTask(make_batches(), nn.MSELoss(), Careful)
    Loop(model, task, random_seed=0, progress=False).run(1)

    moved = nn.utils.get_total_norm(
        [p - q for p, q in zip(model.parameters(), before, strict=True)]
    )
    assert float(moved) == pytest.approx(1e-4, rel=1e-3)


@pytest.mark.parametrize("name", ["clip_grad_norm", "clip_grad_value"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "1.0", True])
def test_a_limit_is_a_positive_number(name, value):
    task = TrainTask(make_batches(), nn.MSELoss(), torch.optim.SGD)

    with pytest.raises(ValueError, match=f"{name} is .*, or None for no clipping; got"):
        Loop(make_model(), task, progress=False, **{name: value})


def test_a_run_that_goes_on_with_another_limit_says_so(capsys, tmp_path):
    for limit in (1.0, 2.0):
        task = TrainTask(make_batches(), nn.MSELoss(), optimizers.SGD)
        Loop(
            make_model(),
            task,
            output_dir=str(tmp_path),
            random_seed=0,
            progress=False,
            clip_grad_norm=limit,
        ).run(1)

    said = capsys.readouterr().out
    assert "It was saved with clip_grad_norm=1.0, and goes on with clip_grad_norm=2.0." in said


def test_an_error_of_a_step_that_is_not_finite_names_the_line_to_write():
    x, y = make_batches()[0]
    model = make_model()
    task = TrainTask([(x / 0, y)], nn.MSELoss(), torch.optim.Adam(model.parameters()))

    with pytest.raises(optimizers.NonFiniteError, match=r"or clip: Loop\(clip_grad_norm=1.0\)"):
        Loop(model, task, progress=False).run(1)
