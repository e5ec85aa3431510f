"""Training block by block goes on after faults, and refuses what it cannot do."""

import contextlib
import copy
import functools
import os
import signal
import types

import pytest
import ranks
import torch
from lean import (
    MODELS,
    OTHERS,
    VOCAB,
    after,
    assert_equal_to_rounding,
    assert_same_weights,
    loop,
    reversible,
    through_nest,
    with_statistics,
)
from torch import nn
from toys import assert_resumes, assert_same_run, history_of, state_of

from trax_torch import layers as tl
from trax_torch import optimizers
from trax_torch._errors import CheckpointError
from trax_torch.optimizers import NonFiniteError, trainer

# Runs go on.


@pytest.mark.parametrize("mode", [True, 2])
def test_a_run_that_was_cut_equals_one_that_was_not(mode, tmp_path):
    assert_resumes(functools.partial(loop, mode=mode), tmp_path, 5, 5)


@pytest.mark.parametrize(("before", "now"), [(False, True), (True, 2), (2, False)])
def test_a_run_goes_on_in_another_mode(before, now, tmp_path):
    whole = after(10, tmp_path / "whole", mode=False)
    after(5, tmp_path / "cut", mode=before)
    resumed = loop(tmp_path / "cut", mode=now)
    assert resumed.step == 5
    resumed.run(5)

    assert_equal_to_rounding(resumed, whole)


class Broken(Exception):
    """What a test breaks off a step with."""


def break_off_at(monkeypatch, n, error):
    """Has the update of the n-th block from now fail."""
    count, update = iter(range(1_000_000)), trainer.Trainer._update_alone

    def failing(self, due):
        if next(count) == n:
            raise error
        update(self, due)

    monkeypatch.setattr(trainer.Trainer, "_update_alone", failing)


@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt])
@pytest.mark.parametrize("mode", [True, 2])
def test_what_is_half_updated_is_not_saved_nor_trained_on(mode, error, tmp_path, monkeypatch):
    whole = after(10, tmp_path / "whole", mode=mode)
    run = after(5, tmp_path / "run", mode=mode)
    saved = sorted(p.read_bytes() for p in (tmp_path / "run").rglob("*.safetensors"))
    with monkeypatch.context() as patch:
        break_off_at(patch, 2, error)
        with pytest.raises(error):
            run.run(5)

    for action in (lambda: run.save_checkpoint("model"), lambda: run.run(1), run.run_evals):
        with pytest.raises(CheckpointError, match="step 6 was broken off.*Go back to step 5"):
            action()
    assert sorted(p.read_bytes() for p in (tmp_path / "run").rglob("*.safetensors")) == saved
    run.load_checkpoint()
    run.run(5)
    assert_same_run(run, whole)
    assert_same_weights(loop(tmp_path / "run", mode=mode), whole)


def test_without_a_checkpoint_there_is_no_way_back(monkeypatch):
    run = after(1)
    break_off_at(monkeypatch, 1, Broken())
    with pytest.raises(Broken):
        run.run(1)
    with pytest.raises(CheckpointError, match="Nothing was saved to go back to: build Loop again"):
        run.run(1)


@pytest.mark.parametrize("mode", [True, 2])
def test_a_signal_in_the_midst_of_a_backward_pass_ends_the_run_after_the_step(
    mode, tmp_path, monkeypatch
):
    whole = after(3, tmp_path / "whole", mode=mode)
    run = after(2, tmp_path / "run", mode=mode)
    count, update = iter(range(1_000_000)), trainer.Trainer._update_alone

    def signalled(self, due):
        if next(count) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        update(self, due)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_update_alone", signalled)
        with pytest.raises(SystemExit) as end:
            run.run(5)

    assert end.value.code == 143
    resumed = loop(tmp_path / "run", mode=mode)
    assert resumed.step == 3
    assert_same_weights(resumed, whole)


def run_until_killed(folder, mode):
    """Trains on after step 5, and dies when step 7 has updated a block and not all."""
    run = after(5, folder, mode=mode)
    updated, update = [], trainer.Trainer._update_alone

    def killed(self, due):
        updated.append(run.step)
        if updated.count(6) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        update(self, due)

    trainer.Trainer._update_alone = killed
    run.run(5)


@pytest.mark.parametrize("mode", [True, 2])
def test_a_process_that_is_killed_in_the_midst_of_a_backward_pass_resumes_whole(mode, tmp_path):
    """In a child of its own: blocks are updated already, and nobody sees it coming."""
    child = os.fork()
    if not child:
        try:
            run_until_killed(tmp_path / "run", mode)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    resumed = loop(tmp_path / "run", mode=mode)
    assert resumed.step == 5
    resumed.run(5)

    assert_same_run(resumed, after(10, tmp_path / "whole", mode=mode))


def resumed_on_two_ranks(rank, folder, mode):
    """Returns what differs between a run that was cut and one that was not."""
    settings = {"mode": mode, "rank": rank, "size": 2, "device": "cpu", "save_at_end": False}
    whole = after(8, f"{folder}/whole", **settings)
    after(5, f"{folder}/cut", **settings).run(1)  # which is not saved
    resumed = loop(f"{folder}/cut", **settings)
    step = resumed.step
    resumed.run(3)
    mine, theirs = state_of(resumed), state_of(whole)
    differ = [k for k in mine if not torch.equal(mine[k], theirs[k])]
    return step, differ, history_of(resumed) == history_of(whole)


@pytest.mark.parametrize("mode", [True, 2])
def test_two_ranks_resume_bit_for_bit(mode, tmp_path):
    found = ranks.values(tmp_path, 2, resumed_on_two_ranks, str(tmp_path), mode)
    assert found == [(5, [], True)] * 2


# Steps that are not finite


class Spoiling(torch.autograd.Function):
    """Passes on what comes, and a gradient that is not finite where it is told so."""

    @staticmethod
    def forward(ctx, x, spoils):
        ctx.spoils = spoils
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * float("nan" if ctx.spoils else 1.0), None


def spoiling(told):
    """A reversible model; the gradients of its first layers are spoilt when `told` says so."""
    layer = tl.Fn("Spoiling", lambda x: Spoiling.apply(x, bool(told)))
    body = reversible()
    return tl.Serial(body.sublayers[:2], layer, body.sublayers[2:])


@pytest.mark.parametrize("mode", [True, 2])
def test_a_gradient_in_the_midst_that_is_not_finite_names_the_checkpoint(mode, tmp_path):
    told = []
    run = after(6, tmp_path / "run", mode=mode, model=spoiling(told), save_at_end=False)
    told.append(1)
    with pytest.raises(NonFiniteError, match="Step 7: .*nan.*not usable: load older") as caught:
        run.run(4)

    assert all(p.grad is None for p in run.model.parameters())
    assert f"Go back to step 5, saved in {tmp_path}/run: load_checkpoint()" in str(caught.value)
    with pytest.raises(CheckpointError, match="broken off"):
        run.save_checkpoint("other")
    told.clear()
    run.load_checkpoint()
    run.run(5)
    whole = after(10, tmp_path / "whole", mode=mode, model=spoiling([]))
    assert_same_run(run, whole)


@pytest.mark.parametrize("mode", [True, 2])
@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_changes_nothing(factor, mode):
    """Statistics neither; it is found before the first update, and the run can go on."""
    told = []
    entropy = tl.WeightedCategoryCrossEntropy()
    loss = tl.Fn("Loss", lambda x, y, w: entropy((x, y, w)) * (factor if told else 1.0))
    run = after(4, mode=mode, model=with_statistics(), loss=loss)
    before = state_of(run)
    told.append(1)
    with pytest.raises(NonFiniteError, match="Step 5: the loss is (nan|inf), so .*, or lower the"):
        run.run(1)

    assert run.step == 4
    assert all(torch.equal(before[k], v) for k, v in state_of(run).items())
    told.clear()
    run.run(1)


def bad_loss_on_one_rank(rank):
    told = []
    entropy = tl.WeightedCategoryCrossEntropy()
    loss = tl.Fn(
        "Loss", lambda x, y, weights: entropy((x, y, weights)) * (float("nan") if told else 1.0)
    )
    run = after(2, device="cpu", rank=rank, size=2, loss=loss)
    before = state_of(run)
    told += [1] * rank
    with pytest.raises(NonFiniteError) as caught:
        run.run(1)
    assert all(torch.equal(before[k], v) for k, v in state_of(run).items())
    return str(caught.value.__notes__)


def test_a_loss_that_is_not_finite_on_one_rank_changes_nothing_on_any(tmp_path):
    notes = ranks.values(tmp_path, 2, bad_loss_on_one_rank)
    assert all("ranks whose part of the loss is not finite: 1" in note for note in notes)


def bad_gradient_on_one_rank(rank, folder, mode):
    told = []
    settings = {"mode": mode, "model": spoiling(told), "rank": rank, "size": 2, "device": "cpu"}
    run = after(5, f"{folder}/run", **settings)
    told += [1] * rank
    with pytest.raises(NonFiniteError, match="Step 6: .*not usable.*Go back to step 5"):
        run.run(1)
    with pytest.raises(CheckpointError, match="broken off"):
        run.run(1)
    told.clear()
    run.load_checkpoint()
    run.run(1)
    return run.step


@pytest.mark.parametrize("mode", [True, 2])
def test_a_gradient_in_the_midst_that_is_not_finite_on_one_rank_is_told_on_both(mode, tmp_path):
    """And both can go back."""
    found = ranks.values(tmp_path, 2, bad_gradient_on_one_rank, str(tmp_path), mode)
    assert found == [6, 6]


# What it cannot do is refused.


@pytest.mark.parametrize(
    ("kwargs", "why"),
    [
        ({"n_accumulation_steps": 2}, "gradients of several parts .* Make batches smaller"),
        ({"on_nonfinite": "skip"}, "other weights are updated already. Leave it out"),
        ({"compile": True}, "blocks run one by one"),
        ({"strategy": "fsdp"}, "Leave one of the two out"),
        ({"recipe": optimizers.Adam(0.01, clip_grad_norm=1.0)}, "clip_grad_norm does not go with"),
        ({"use_memory_efficient_trainer": 3}, "is False, True or 2; got 3"),
    ],
)
def test_what_needs_all_gradients_at_once_is_refused(kwargs, why):
    with pytest.raises(ValueError, match=why):
        loop(**kwargs)


def test_a_block_that_writes_into_what_is_kept_of_it_is_refused():
    model = nn.Sequential(
        nn.Embedding(VOCAB, 8),
        tl.Residual(tl.Dense(8)),
        nn.SELU(inplace=True),
        nn.Linear(8, 8),
        tl.Residual(tl.Dense(8)),
        nn.Linear(8, VOCAB),
    )
    run = loop(model=model)
    with pytest.raises(ValueError, match="writes into its inputs, .* inplace=False"):
        run.run(1)


@pytest.mark.parametrize("mode", [True, 2])
def test_a_last_block_that_writes_into_its_inputs_is_refused(mode):
    model = nn.Sequential(
        nn.Embedding(VOCAB, 8),
        tl.Residual(tl.Dense(8)),
        nn.ReLU(inplace=True),
        nn.Linear(8, VOCAB),
    )
    run = loop(model=model, mode=mode)
    with pytest.raises(ValueError, match="What comes last writes into its inputs.*inplace=False"):
        run.run(1)


class Differentiating(nn.Module):
    """Adds to what its layers make of x the gradient of that."""

    def __init__(self, context=contextlib.nullcontext):
        super().__init__()
        self.net, self.context = nn.Sequential(nn.Linear(8, 8), nn.Tanh()), context

    def forward(self, x):
        with self.context():
            x = x if x.requires_grad else x.detach().requires_grad_()
            y = self.net(x)
            return y + torch.autograd.grad(y.sum(), x, create_graph=True)[0]


def differentiating(*args):
    blocks = (Differentiating(*args) for _ in range(2))
    return nn.Sequential(nn.Embedding(VOCAB, 8), *blocks, nn.Linear(8, VOCAB))


def test_a_block_that_computes_gradients_in_its_forward_pass_is_told_how():
    run = loop(model=differentiating())
    with pytest.raises(
        ValueError, match=r"computes gradients in its forward.*torch.enable_grad\(\)"
    ):
        run.run(1)

    model = differentiating(torch.enable_grad)
    twin = copy.deepcopy(model)
    assert_equal_to_rounding(after(3, model=model), after(3, mode=False, model=twin))


class Odd(dict):
    """Somebody's own dict."""


@pytest.mark.parametrize("pack", [lambda a, b: Odd(a=a), lambda a, b: types.SimpleNamespace(a=a)])
def test_a_block_that_gives_tensors_in_something_unknown_is_refused(pack):
    """Before a weight is updated: nothing would train what comes before."""
    run = loop(model=through_nest(pack, "a"))
    with pytest.raises(
        TypeError, match="ToNest gives a (Odd|SimpleNamespace), which .* Return them"
    ):
        run.run(1)


class Hiding(nn.Module):
    """Uses another module's weight, which is none of its own parameters."""

    def __init__(self, other):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 8))
        self.__dict__["weight"] = other.weight

    def forward(self, x):
        return self.net(x) @ self.weight


def test_a_weight_of_a_later_block_that_a_block_hides_is_refused():
    """It is updated when the block that hides it runs again."""
    later = nn.Linear(8, 8)
    blocks = (Hiding(later), tl.Residual(later), tl.Residual(tl.Dense(8)))
    run = loop(model=nn.Sequential(nn.Embedding(VOCAB, 8), *blocks, nn.Linear(8, VOCAB)))
    with pytest.raises(RuntimeError, match=r"of shape \(8, 8\), was written into since"):
        run.run(1)


class Leaving(nn.Module):
    """Leaves a number for the loss on itself: an attribute, or a buffer."""

    def __init__(self, in_buffer):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 8))
        if in_buffer:
            self.register_buffer("aux", torch.ones(()))

    def forward(self, x):
        y = self.net(x)
        self.aux = (y**2).mean().detach() if "aux" in self._buffers else (y**2).mean()
        return x + y


def with_an_auxiliary_loss(mode, in_buffer=False):
    torch.manual_seed(3)
    block = Leaving(in_buffer)
    model = nn.Sequential(nn.Embedding(VOCAB, 8), block, Leaving(in_buffer), nn.Linear(8, VOCAB))
    entropy = tl.WeightedCategoryCrossEntropy()
    loss = tl.Fn("Loss", lambda x, y, weights: entropy((x, y, weights)) + block.aux)
    return after(3, mode=mode, model=model, loss=loss)


@pytest.mark.parametrize("mode", [True, 2])
def test_a_loss_that_reads_what_a_block_left_on_itself_is_refused(mode):
    """No gradient would come to it; what needs none may be in a buffer."""
    with pytest.raises(ValueError, match="the loss uses aux of Leaving, which .* Return it beside"):
        with_an_auxiliary_loss(mode)

    assert_equal_to_rounding(*(with_an_auxiliary_loss(m, in_buffer=True) for m in (mode, False)))


def test_hooks_of_weights_see_whole_gradients_or_are_refused():
    def run(mode, model, register="register_hook", hook=lambda grad: grad.clamp(-0.01, 0.01)):
        model = {**MODELS, **OTHERS}[model]()
        model.init(torch.ones(4, 8, dtype=torch.int64), rng=0)
        for p in model.parameters():
            getattr(p, register)(hook)
        return after(3, mode=mode, model=model)

    assert_equal_to_rounding(*(run(mode, "reversible") for mode in (True, False)))
    with pytest.raises(
        ValueError, match=r"shape \(8, 8\) has gradient hooks.* 2 blocks use it, none"
    ):
        run(True, "weights that blocks share")
    with pytest.raises(ValueError, match="has gradient hooks.* 1 blocks use it, some of them rev"):
        run(True, "reversible", "register_post_accumulate_grad_hook", lambda p: None)


class LooksAtAll(torch.optim.SGD):
    """Somebody's own optimizer."""


def test_an_optimizer_that_may_look_at_all_weights_is_refused():
    with pytest.raises(ValueError, match="LooksAtAll may look at all of them"):
        loop(recipe=functools.partial(LooksAtAll, lr=0.1))


class OwnRecipe(optimizers.Optimizer):
    """A recipe that binds an optimizer of somebody's own."""

    def bind(self, params):
        return LooksAtAll(params, lr=self.learning_rate)


def test_an_optimizer_that_may_look_at_all_weights_is_refused_behind_a_recipe():
    with pytest.raises(ValueError, match="LooksAtAll of .* may look at all of them. Give a recipe"):
        loop(recipe=OwnRecipe(0.1))


@pytest.mark.parametrize("when", ["pre", "post"])
def test_an_optimizer_whose_steps_are_listened_to_is_refused(when):
    """From the start, and if someone comes later."""
    model = reversible()
    model.init(torch.ones(4, 8, dtype=torch.int64), rng=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = after(1, model=model, recipe=optimizer)
    getattr(optimizer, f"register_step_{when}_hook")(lambda *_: None)

    for action in (lambda: run.run(1), lambda: loop(model=model, recipe=optimizer)):
        with pytest.raises(
            ValueError, match="would see a block's gradients alone; it has 1 of.*Rem"
        ):
            action()


def test_a_trainer_of_its_own_says_that_a_bad_step_was_not_taken():
    """Also after steps of which no Loop took note."""
    model = tl.Serial(tl.Dense(1), tl.L2Loss())
    batch = torch.ones(2, 3), torch.ones(2, 1), torch.ones(2, 1)
    model.init(batch)
    alone = trainer.Trainer(model, optimizers.SGD(0.1))
    alone.one_step(batch)
    with pytest.raises(NonFiniteError, match="so the step was not taken"):
        alone.one_step((batch[0] * float("nan"), *batch[1:]))
