"""Optimizers of others: those that free gradients, or find a rate, by themselves."""

import pytest
import torch
from torch import nn

from trax_torch import optimizers
from trax_torch.supervised import Loop, TrainTask


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 4, generator=generator)
    return [(x, (x.sum(1) > 0).long())]


class Gathering(torch.optim.Optimizer):
    """Keeps a copy of gradients beside them, as wrappers do, until its `zero_grad`."""

    def __init__(self, inner):
        self.inner, self.calls, self.kept = inner, [], []
        super().__init__(inner.param_groups, {})
        self.param_groups = inner.param_groups

    def zero_grad(self, set_to_none=True):
        self.calls.append("zero_grad")
        self.kept = []
        self.inner.zero_grad(set_to_none)

    def step(self, closure=None):
        self.calls.append("step")
        if self.kept:
            raise ValueError("the gradients of the last step are still here")
        self.kept = [p.grad for group in self.param_groups for p in group["params"]]
        self.inner.step()


def run_of(make_optimizer, **settings):
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = make_optimizer(model.parameters())
    task = TrainTask(data(), nn.CrossEntropyLoss(), optimizer, n_steps_per_checkpoint=3)
    loop = Loop(model, task, random_seed=0, progress=False, device="cpu", **settings)
    loop.run(6)
    return loop, optimizer


@pytest.mark.parametrize("n_parts", [1, 2])
def test_an_optimizer_frees_gradients_by_its_own_zero_grad(n_parts):
    """Once before each step, so that what it keeps beside them goes, too."""
    loop, optimizer = run_of(
        lambda params: Gathering(torch.optim.SGD(params, 0.1)), n_accumulation_steps=n_parts
    )
    plain, _ = run_of(lambda params: torch.optim.SGD(params, 0.1), n_accumulation_steps=n_parts)

    calls = "".join(optimizer.calls).replace("zero_gradzero_grad", "zero_grad")
    assert calls == "zero_gradstep" * 6
    assert torch.equal(loop.model.weight, plain.model.weight)


def test_a_zero_grad_that_is_hung_on_an_instance_is_called():
    """As wrappers patch it, also after the Loop was built."""
    calls = []
    loop, optimizer = run_of(lambda params: torch.optim.SGD(params, 0.1))
    own = optimizer.zero_grad
    optimizer.zero_grad = lambda *args, **kwargs: (calls.append(1), own(*args, **kwargs))

    loop.run(3)

    assert len(calls) >= 3


def test_plain_optimizers_are_not_asked():
    """Gradients of all weights are dropped in any case, which is all that theirs would do."""
    params = [nn.Parameter(torch.ones(2))]

    for plain in (torch.optim.AdamW(params), optimizers.SM3(0.1).bind(params)):
        assert not optimizers.trainer._gradients.has_own_zero_grad(plain)
    wrapped = Gathering(torch.optim.SGD(params, 0.1))
    assert optimizers.trainer._gradients.has_own_zero_grad(wrapped)


@pytest.mark.filterwarnings("ignore")
def test_opacus_trains_as_in_a_bare_loop():
    """Private gradients of each row, without noise so that numbers compare."""
    opacus = pytest.importorskip("opacus")

    def private():
        torch.manual_seed(0)
        model = nn.Linear(4, 2)
        x, y = data()[0]
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 8)
        return opacus.PrivacyEngine().make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), 0.5),
            data_loader=loader,
            noise_multiplier=0.0,
            max_grad_norm=0.3,
            poisson_sampling=False,
        )

    model, optimizer, loader = private()
    task = TrainTask(loader, nn.CrossEntropyLoss(), optimizer)
    Loop(model, task, random_seed=0, progress=False, device="cpu").run(4)
    bare, optimizer, loader = private()
    for _ in range(4):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(bare(x), y).backward()
            optimizer.step()

    for found, wanted in zip(model.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(found, wanted)


class Relative(torch.optim.Optimizer):
    """Finds a rate by itself, as Adafactor of relative steps does: its `lr` is None."""

    def __init__(self, params):
        super().__init__(params, {"lr": None})

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            n = self.state[p]["step"] = self.state[p].get("step", 0) + 1
            p -= p.grad * 0.1 / n


def test_an_optimizer_without_a_rate_trains_and_none_is_reported(tmp_path):
    """And goes on from a checkpoint."""
    whole, _ = run_of(Relative)
    run_of(Relative, output_dir=str(tmp_path))

    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    task = TrainTask(data(), nn.CrossEntropyLoss(), Relative, n_steps_per_checkpoint=3)
    loop = Loop(model, task, random_seed=0, progress=False, output_dir=str(tmp_path))
    assert loop.step == 6
    assert torch.equal(loop.model.weight, whole.model.weight)
    loop.run(3)
    whole.run(3)
    assert torch.equal(loop.model.weight, whole.model.weight)
    assert "training/learning_rate" not in whole.history.metrics_for_mode("train")
    assert "training/gradients_l2" in whole.history.metrics_for_mode("train")


@pytest.mark.filterwarnings("ignore")
def test_adafactor_of_transformers_trains_with_relative_steps():
    optimization = pytest.importorskip("transformers.optimization")
    made = {"relative_step": True, "warmup_init": True, "lr": None}
    loop, _ = run_of(lambda params: optimization.Adafactor(params, **made))
    torch.manual_seed(0)
    bare = nn.Linear(4, 2)
    optimizer = optimization.Adafactor(bare.parameters(), **made)
    for _ in range(6):
        x, y = data()[0]
        optimizer.zero_grad()
        nn.functional.cross_entropy(bare(x), y).backward()
        optimizer.step()

    torch.testing.assert_close(loop.model.weight, bare.weight)
