"""Training block by block takes less memory, and computes what training as a whole does."""

import functools
import weakref

import numpy as np
import pytest
import ranks
import torch
from lean import (
    MODELS,
    OTHERS,
    RECIPES,
    VOCAB,
    Beside,
    Tied,
    after,
    assert_equal_to_rounding,
    loop,
    reversible,
    tokens,
    with_context,
)
from torch import nn
from toys import history_of, line_loop, state_of

from trax_torch import layers as tl
from trax_torch import models, optimizers, shapes
from trax_torch.optimizers import trainer
from trax_torch.supervised import EvalTask, TrainTask

# It computes what training as a whole does.


@pytest.mark.parametrize("mode", [True, 2])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("model", MODELS)
def test_ten_steps_equal_the_ordinary_trainers(model, recipe, mode):
    """Weights, slots, losses, norms and evals, dropout included."""
    whole, blocks = (after(10, mode=m, model=model, recipe=recipe) for m in (False, mode))

    assert_equal_to_rounding(blocks, whole)


def outcome(rank, **kwargs):
    run = after(10, device="cpu", rank=rank, size=2, **kwargs)
    return {k: v.numpy() for k, v in state_of(run).items()}, history_of(run)["train"]


def outcomes(rank, cases):
    return [outcome(rank, **case) for case in cases]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("model", MODELS)
def test_two_ranks_equal_the_ordinary_trainers_two(model, recipe, tmp_path):
    cases = [{"model": model, "recipe": recipe, "mode": mode} for mode in (False, True, 2)]
    for wanted, *others in ranks.values(tmp_path, 2, outcomes, cases):
        for state, history in others:
            for name, value in wanted[0].items():
                np.testing.assert_allclose(state[name], value, rtol=2e-4, atol=2e-5)
            for name, values in wanted[1].items():
                np.testing.assert_allclose(history[name], values, rtol=1e-4)


def test_ranks_merge_by_adasum_as_ever(tmp_path):
    case = {"adasum": True, "recipe": "SGD"}
    found, wanted = (
        ranks.values(tmp_path / str(m), 2, functools.partial(outcome, mode=m, **case))
        for m in (True, False)
    )

    for name, value in wanted[0][0].items():
        np.testing.assert_allclose(found[0][0][name], value, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("mode", [True, 2])
@pytest.mark.parametrize("model", OTHERS)
def test_models_of_all_kinds_are_cut_into_blocks(model, mode):
    def run(mode):
        torch.manual_seed(3)
        made = OTHERS[model]()
        if not isinstance(made, tl.Layer):
            # Adam's first steps are as long for a gradient that is all rounding as for any other.
            made.double()
        return after(6, mode=mode, model=made, recipe="Adam")

    assert_equal_to_rounding(run(mode), run(False))


def test_reversible_layers_in_an_nn_sequential_are_blocks_too():
    run = loop(model=with_context())
    kinds = [type(block) for block in run._parts.trainers[0]._blocks._blocks]
    assert kinds.count(tl.ReversibleHalfResidual) == 2


@pytest.mark.parametrize("model", [reversible, OTHERS["nn.Sequential"]])
def test_a_hook_on_the_model_is_called_at_each_step(model):
    model, calls = model(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    run = loop(model=model, save_at_end=False)
    run.run(1)
    n_in_evals = len(calls) - 1
    run.run(3)
    assert len(calls) == 4 + n_in_evals


@pytest.mark.parametrize("mode", [True, 2])
def test_a_weight_that_only_the_whole_has_is_trained(mode):
    """The loss uses it."""

    def run(mode):
        torch.manual_seed(3)
        model = OTHERS["nn.Sequential"]()
        model.scale = nn.Parameter(torch.ones(()))
        entropy = tl.WeightedCategoryCrossEntropy()
        loss = tl.Fn("Loss", lambda x, y, weights: entropy((x * model.scale, y, weights)))
        return after(4, mode=mode, model=model, loss=loss)

    assert_equal_to_rounding(run(mode), run(False))


@pytest.mark.parametrize("mode", [True, 2])
def test_an_encoder_and_a_decoder_keep_a_stack_between_blocks(mode):
    """Masks and targets travel under what a block takes; the embedding is shared."""

    def run(mode):
        model = models.Transformer(VOCAB, None, 8, 16, 2, 2, 2, max_len=16, dropout=0.1)
        task = TrainTask(tokens(), tl.WeightedCategoryCrossEntropy(), optimizers.Adam(0.01))
        evals = EvalTask(tokens(1), tl.WeightedCategoryAccuracy())
        made = line_loop(model=model, task=task, evals=evals, use_memory_efficient_trainer=mode)
        made.run(6)
        return made

    assert_equal_to_rounding(run(mode), run(False))


@pytest.mark.parametrize("mode", [True, 2])
@pytest.mark.parametrize(
    "recipe",
    [
        functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
        functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, foreach=True),
        functools.partial(torch.optim.Adagrad, lr=0.1),
        functools.partial(torch.optim.RMSprop, lr=0.01),
        optimizers.SM3(0.1),
        optimizers.Momentum(0.1),
    ],
)
def test_optimizers_of_all_kinds_update_a_block_at_a_time(recipe, mode):
    assert_equal_to_rounding(*(after(6, mode=m, recipe=recipe) for m in (mode, False)))


@pytest.mark.parametrize("mode", [True, 2])
def test_a_loss_alone_is_trained(mode):
    def run(mode):
        torch.manual_seed(3)
        weighted = nn.Linear(3, 3)
        loss = tl.Fn("Loss", lambda x, y: ((x - y) ** 2).mean())
        batches = [(np.ones((4, 3), np.float32), np.zeros((4, 3), np.float32))] * 5
        task = TrainTask(
            batches,
            tl.Serial(tl.as_layer(weighted), loss),
            functools.partial(torch.optim.SGD, lr=0.1),
        )
        evals = EvalTask(batches, loss)
        made = line_loop(
            model=tl.Serial(), task=task, evals=evals, use_memory_efficient_trainer=mode
        )
        made.run(3)
        return made

    assert_equal_to_rounding(run(mode), run(False))


@pytest.mark.parametrize("mode", [False, True, 2])
def test_weights_that_are_frozen_between_runs_stay(mode):
    model = reversible()
    model.init(torch.ones(4, 8, dtype=torch.int64), rng=0)
    recipe = torch.optim.Adam(model.parameters(), lr=0.01)
    run = after(2, mode=mode, model=model, recipe=recipe)
    frozen = list(model.parameters())[6].requires_grad_(False)
    before = frozen.clone()
    run.run(2)

    assert torch.equal(frozen, before)


def test_parameter_groups_and_their_order_stay():
    """Also those of which a block has no weight at all."""

    def run(mode):
        model = reversible()
        model.init(torch.ones(4, 8, dtype=torch.int64), rng=0)
        first, *others = model.parameters()
        groups = [{"params": [first], "lr": 0.1}, {"params": others, "weight_decay": 0.1}]
        return after(5, mode=mode, model=model, recipe=torch.optim.AdamW(groups, lr=0.01))

    one, other = run(True), run(False)
    assert_equal_to_rounding(one, other)
    sizes = [[len(g["params"]) for g in run.optimizers[0].param_groups] for run in (one, other)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("mode", [True, 2])
@pytest.mark.parametrize("chunk", [1, 7, 32])
@pytest.mark.parametrize("model", ["TransformerLM", "a module"])
def test_the_loss_may_come_in_chunks(model, chunk, mode):
    def run(**kwargs):
        torch.manual_seed(3)
        made = Tied() if model == "a module" else model
        return after(6, model=made, recipe="SGD", **kwargs)

    assert_equal_to_rounding(run(mode=mode, loss_chunk_size=chunk), run(mode=False))


@pytest.mark.usefixtures("bfloat16_as_fast_as_may_be")
@pytest.mark.parametrize("mode", [True, 2])
def test_half_precision_computes_again_in_half_precision(mode):
    assert_equal_to_rounding(*(after(6, mode=m, precision="bf16") for m in (mode, False)))


@pytest.mark.parametrize("model", ["TransformerLM", "reversible", "a module"])
def test_gradients_are_those_of_autograd(model):
    """In float64, where rounding hides no error."""
    torch.manual_seed(3)
    layer = tl.as_layer({**MODELS, **OTHERS}[model]())
    batch = tuple(map(torch.from_numpy, tokens()[0]))
    if not layer.is_initialized:
        layer.init(shapes.signature(batch[0]), rng=0)
    both = tl.Serial(layer.double(), tl.WeightedCategoryCrossEntropy())
    torch.manual_seed(5)
    want_loss = both(batch)
    params = [p for p in both.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(want_loss, params, allow_unused=True)
    blocks = optimizers.Blocks([layer], both.sublayers[1], torch.device("cpu"))
    found = {}
    torch.manual_seed(5)
    loss = blocks.forward(batch)
    blocks.backward(1.0, lambda due: found.update((p, p.grad) for p in due))

    torch.testing.assert_close(loss, want_loss.detach(), rtol=1e-12, atol=0)
    for p, grad in zip(params, wanted, strict=True):
        torch.testing.assert_close(found[p], grad, rtol=1e-9, atol=1e-12)


def test_several_tasks_share_a_model():
    def run(mode):
        tasks = [
            TrainTask(tokens(i), tl.WeightedCategoryCrossEntropy(), optimizers.Adam(0.01))
            for i in range(2)
        ]
        made = line_loop(
            model=reversible(),
            task=tasks,
            evals=EvalTask(tokens(2), tl.WeightedCategoryAccuracy()),
            use_memory_efficient_trainer=mode,
        )
        made.run(7)
        return made

    for mode in (True, 2):
        assert_equal_to_rounding(run(mode), run(False))


def test_a_model_to_measure_has_the_weights_in_host_memory_too():
    runs = [after(6, mode=m, eval_model=reversible()) for m in (2, False)]
    assert_equal_to_rounding(*runs)


# Gradients and weights come and go.


@pytest.mark.parametrize("model", ["TransformerLM", "reversible"])
def test_gradients_of_two_blocks_at_most_are_alive_at_once(model, monkeypatch):
    run = loop(model=model)
    params = list(run.model.parameters())
    sizes = sorted(
        sum(p.numel() for p in due) for due in run._parts.trainers[0]._blocks.params_due()
    )
    alive, update = [], trainer.Trainer._update_alone

    def watched(self, due):
        alive.append(sum(p.grad.numel() for p in params if p.grad is not None))
        update(self, due)

    monkeypatch.setattr(trainer.Trainer, "_update_alone", watched)
    run.run(2)

    assert len(alive) == 2 * sum(n > 0 for n in sizes)
    assert max(alive) <= sum(sizes[-2:]) < sum(p.numel() for p in params)
    assert all(p.grad is None for p in params)


def test_in_a_module_of_others_each_gradient_is_freed_as_soon_as_it_is_complete(monkeypatch):
    """But for those that are wanted until the end, the embedding's here."""
    model = Tied(n_blocks=5)
    run = loop(model=model)
    alive, update = [], trainer.Trainer._update_alone

    def watched(self, due):
        alive.append(sum(p.grad.numel() for p in model.parameters() if p.grad is not None))
        update(self, due)

    monkeypatch.setattr(trainer.Trainer, "_update_alone", watched)
    run.run(1)

    assert max(alive) <= 2 * 16 * 8 + model.embedding.weight.numel()


@pytest.mark.parametrize(
    ("use", "n_early"), [("detach", 6), ("data", 6), ("no_grad", 6), ("reentrant", 3), ("both", 3)]
)
def test_weights_that_are_used_beside_the_graph_wait_for_the_end(use, n_early, monkeypatch):
    """Of seven weights, of which checkpoints leave two without a gradient."""
    run = loop(model=Beside(use))
    counts, update = [], trainer.Trainer._update_alone

    def counted(self, due):
        counts.append(len(due))
        update(self, due)

    monkeypatch.setattr(trainer.Trainer, "_update_alone", counted)
    run.run(2)

    assert counts == 2 * ([1] * n_early + [7 - n_early])


def test_a_gradient_that_goes_on_after_its_weight_was_updated_is_refused():
    """In a model that uses weights otherwise than at its first step."""
    model = Beside("outside")
    run = after(1, model=model)
    model.use = "both"
    with pytest.raises(
        RuntimeError, match=r"shape \(8,.* then got more of it.*use_reentrant=False"
    ):
        run.run(1)


def test_blocks_of_a_module_of_others_compute_their_activations_again():
    model = Tied(n_blocks=5)
    run = loop(model=model)
    calls = []
    for block in model.blocks:
        block[0].register_forward_hook(lambda *_: calls.append(1))
    run.model.train()
    batch = tuple(map(torch.from_numpy, tokens()[0]))
    run._parts.trainers[0].one_step(batch, rng=0)

    assert len(calls) == 2 * 5
    assert all("forward" not in vars(block) for block in model.blocks)


@pytest.mark.parametrize("model", ["TransformerLM", "reversible"])
def test_weights_of_three_blocks_at_most_are_on_the_device(model, monkeypatch):
    """With their slots: what is copied there, and lives."""
    run = loop(model=model, mode=2)
    blocks = run._parts.trainers[0]._blocks
    sizes = sorted(3 * sum(p.numel() for p in m.parameters()) for m in blocks._modules)
    living, most = {}, []
    copy = optimizers.HostMemory._copy

    def counted(self, tensor):
        made = copy(self, tensor)
        living[id(made)] = made.numel()
        weakref.finalize(made, living.pop, id(made))
        most.append(sum(living.values()))
        return made

    monkeypatch.setattr(optimizers.HostMemory, "_copy", counted)
    run.run(3)

    assert 0 < max(most) <= sum(sizes[-3:]) < 3 * sum(p.numel() for p in run.model.parameters())
    assert not living


def test_weights_live_in_host_memory_between_steps():
    run = loop(mode=2)
    homes = [p.data_ptr() for p in run.model.parameters()]
    run.run(3)
    assert [p.data_ptr() for p in run.model.parameters()] == homes
