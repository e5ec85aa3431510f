"""Several ranks train as one process would."""

import functools

import numpy as np
import pytest
import ranks
import torch
from torch import nn
from toys import batches, history_of, line_loop, state_of

from trax_torch import _distributed, optimizers
from trax_torch import layers as tl
from trax_torch.supervised import EvalTask, TrainTask
from trax_torch.supervised._checkpoint import storage
from trax_torch.supervised.callbacks import TrainingStepCallback

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)


def uneven(seed=0, n=12):
    """Global batches whose weights are uneven; the first rows of every third count for nothing."""
    for i, (x, y, _) in enumerate(batches(seed, n)):
        rng = np.random.default_rng([seed, i, 7])
        w = rng.random(y.shape).astype(np.float32)
        w[: n // 3] *= i % 3 > 0
        yield x, y, w


def rows(data, rank, size):
    """A rank's rows of every global batch."""
    for batch in data:
        yield tuple(np.array_split(item, size)[rank] for item in batch)


def law_loop(rank, size, folder=None, recipe=None, model=None, **kwargs):
    task = TrainTask(
        rows(uneven(), rank, size),
        tl.L2Loss(),
        recipe or optimizers.SGD(0.05),
        n_steps_per_checkpoint=5,
    )
    evals = EvalTask(
        (batch for i, batch in enumerate(uneven(1)) if i % size == rank or i == 0),
        tl.L2Loss(),
        n_eval_batches=12 // size,
    )
    return line_loop(folder, model=model, task=task, evals=evals, device="cpu", **kwargs)


def outcome(rank, size, n_steps=10, **kwargs):
    loop = law_loop(rank, size, **kwargs)
    loop.run(n_steps)
    return {k: v.numpy() for k, v in state_of(loop).items()}, history_of(loop)


def assert_equal_runs(found, wanted, tolerance):
    for (state, history), (wanted_state, wanted_history) in zip(found, wanted, strict=True):
        for name, value in wanted_state.items():
            np.testing.assert_allclose(state[name], value, rtol=tolerance, atol=tolerance / 10)
        for mode, metrics in wanted_history.items():
            for name, values in metrics.items():
                steps, numbers = zip(*values, strict=True)
                got_steps, got = zip(*history[mode][name], strict=True)
                assert got_steps == steps
                np.testing.assert_allclose(got, numbers, rtol=tolerance)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_ranks_with_a_part_of_each_batch_equal_one_process(size, tmp_path):
    """Weights are uneven between ranks, some ranks' are all 0; and every rank holds the same."""
    recipe = optimizers.Adam(0.01, clip_grad_norm=1.0)
    found = ranks.values(tmp_path, size, functools.partial(outcome, size=size, recipe=recipe))
    alone = outcome(0, 1, recipe=recipe)

    assert_equal_runs(found, [alone] * size, 2e-4)
    for state, history in found[1:]:
        assert history == found[0][1]
        assert all(np.array_equal(state[k], v) for k, v in found[0][0].items())


@pytest.mark.parametrize("size", [2, 4])
def test_parts_of_batches_on_ranks_equal_whole_batches(size, tmp_path):
    found = ranks.values(
        tmp_path, size, functools.partial(outcome, size=size, n_accumulation_steps=2)
    )

    assert_equal_runs(found, [outcome(0, 1)] * size, 2e-4)


def n_reductions(rank, n_parts):
    """How often a step adds up gradients over ranks: calls of a hook on DDP's buckets."""
    loop = law_loop(rank, 2, n_accumulation_steps=n_parts)
    counts = []

    def hook(state, bucket):
        counts.append(1)
        work = torch.distributed.all_reduce(bucket.buffer().div_(2), async_op=True)
        return work.get_future().then(lambda done: done.value()[0])

    loop._parts.trainers[0]._forward.register_comm_hook(None, hook)
    loop.run(3)
    return len(counts)


def test_an_update_adds_up_gradients_once(tmp_path):
    """However many parts its batch is cut into."""
    assert ranks.values(tmp_path / "4", 2, functools.partial(n_reductions, n_parts=4)) == [3, 3]
    assert ranks.values(tmp_path / "1", 2, functools.partial(n_reductions, n_parts=1)) == [3, 3]


def uneven_evals(rank, counts):
    """Evals over other numbers of batches on each rank."""
    mine = list(range(sum(counts[:rank]), sum(counts[: rank + 1])))
    everything = [batch for batch, _ in zip(uneven(5), range(sum(counts)), strict=False)]
    data = iter([everything[i] for i in mine])
    evals = EvalTask(
        data,
        [tl.L2Loss(), tl.SmoothL1Loss()],
        n_eval_batches=len(mine),
        sample_batch=everything[0],
    )
    loop = line_loop(task=TrainTask(uneven(), tl.L2Loss(), optimizers.SGD(0.0)), evals=evals)
    loop.run_evals()
    return loop.history.to_dict()["_values"]["eval"]


def test_evals_of_uneven_shards_equal_one_process_over_all(tmp_path):
    """One of them is empty; every rank holds the same numbers."""
    (alone,) = ranks.values(tmp_path / "1", 1, functools.partial(uneven_evals, counts=[5]))
    found = ranks.values(tmp_path / "3", 3, functools.partial(uneven_evals, counts=[3, 0, 2]))

    assert found[0] == found[1] == found[2]
    for name, [(step, value)] in alone.items():
        assert found[0][name][0][0] == step
        assert found[0][name][0][1] == pytest.approx(value, rel=1e-6)


class TwoHeads(nn.Module):
    """A body and two heads, each of which one task uses."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.BatchNorm1d(8))
        self.heads = nn.ModuleList([nn.Linear(8, 1) for _ in range(2)])

    def forward(self, x):
        features = self.body(x)
        return {i: head(features) for i, head in enumerate(self.heads)}


class HeadLoss(nn.Module):
    def __init__(self, index):
        super().__init__()
        self.index = index

    def forward(self, outputs, targets, weights):
        errors = (outputs[self.index] - (1 - 2 * self.index) * targets) ** 2
        return (errors * weights).sum() / weights.sum()


def two_heads(rank, size, folder=None):
    torch.manual_seed(rank)  # rank 0's weights count
    model = TwoHeads()
    tasks = [
        TrainTask(
            rows(uneven(i), rank, size),
            HeadLoss(i),
            optimizers.Adam(0.02),
            loss_name=f"head{i}",
            n_steps_per_checkpoint=4,
        )
        for i in range(2)
    ]
    evals = EvalTask(uneven(3), HeadLoss(0), metric_names=["error"])
    return line_loop(folder, model=model, task=tasks, evals=evals)


def two_heads_outcome(rank, size):
    loop = two_heads(rank, size)
    loop.run(160)
    slots = [
        [bool(t.optimizer.state[p]["exp_avg"].any()) for p in t.params[-4:]]
        for t in loop._parts.trainers
    ]
    return {k: v.numpy() for k, v in loop.model.state_dict().items()}, history_of(loop), slots


def test_heads_that_a_task_leaves_unused_are_left_alone(tmp_path):
    """Two tasks in turn: gradients are right, losses of both fall, and ranks agree."""
    found = ranks.values(tmp_path, 2, functools.partial(two_heads_outcome, size=2))

    assert all(np.array_equal(found[1][0][k], v) for k, v in found[0][0].items() if "mean" not in k)
    assert found[0][1] == found[1][1]
    for head in ("head0", "head1"):
        losses = [v for _, v in found[0][1]["train"][f"metrics/{head}"]]
        assert sum(losses[-3:]) < 0.5 * sum(losses[:3])
    assert found[0][2] == [[True, True, False, False], [False, False, True, True]]


SHARDED = {
    "SGD": lambda: optimizers.SGD(0.05),
    "Adam": lambda: optimizers.Adam(0.01, clip_grad_norm=1.0),
    "Momentum": lambda: optimizers.Momentum(0.01),
    "RMSProp": lambda: optimizers.RMSProp(0.01),
    "Adafactor": lambda: optimizers.Adafactor(0.05),
    "SM3": lambda: optimizers.SM3(0.05),
    "torch AdamW": lambda: functools.partial(torch.optim.AdamW, lr=0.01),
}


def sharded(rank, size, folder, names, n_parts=1):
    """For each optimizer: 6 steps, a new Loop that goes on, 4 steps; and the files of the whole."""
    found = {}
    for name in names:
        recipe, place = SHARDED[name], f"{folder}/{name}"
        for n_steps in (6, 4):
            loop = law_loop(
                rank,
                size,
                folder=place,
                recipe=recipe(),
                model=sharded_model(),
                strategy="fsdp",
                n_accumulation_steps=n_parts,
                checkpoint_at=lambda step: step in (6, 10),
            )
            loop.run(n_steps)
        sizes = [p.to_local().numel() if size > 1 else p.numel() for p in loop.model.parameters()]
        found[name] = history_of(loop), sum(sizes)
    return found


def sharded_model():
    """Weights that can be factored and that cannot, and a last layer of one unit."""
    return tl.Serial(tl.Dense(8), tl.LayerNorm(), tl.Tanh(), tl.Dense(8), tl.Dense(1))


@pytest.mark.parametrize(
    ("size", "n_parts", "names"), [(2, 1, list(SHARDED)), (3, 2, ["SGD", "Adafactor"])]
)
def test_ranks_that_each_hold_a_part_of_the_weights_equal_one_process(
    size, n_parts, names, tmp_path
):
    """Losses, evals and checkpoints, for every optimizer, over a restart."""
    case = functools.partial(sharded, names=names)
    (alone,) = ranks.values(
        tmp_path / "1", 1, functools.partial(case, size=1, folder=tmp_path / "alone")
    )
    work = functools.partial(case, size=size, folder=tmp_path / "parts", n_parts=n_parts)
    found = ranks.values(tmp_path / "n", size, work)

    n_weights = alone["SGD"][1]
    assert max(each["SGD"][1] for each in found) < 0.8 * n_weights
    for name in names:
        whole, info = storage.read(str(tmp_path / "alone" / name), "model")
        parts, parts_info = storage.read(str(tmp_path / "parts" / name), "model")
        assert parts_info["step"] == info["step"] == 10
        for part in ("weights", "opt_slots0"):
            assert whole[part].keys() == parts[part].keys()
            for key, tensor in whole[part].items():
                torch.testing.assert_close(
                    parts[part][key], tensor, rtol=2e-3, atol=2e-5, msg=f"{name} {key}"
                )
        for each in found:
            assert each[name][0] == found[0][name][0]
            ours = each[name][0]["train"]["metrics/L2Loss"]
            theirs = alone[name][0]["train"]["metrics/L2Loss"]
            assert [v for _, v in ours] == pytest.approx([v for _, v in theirs], rel=1e-3)


def test_what_does_not_go_with_parts_of_weights_is_refused():
    model = nn.Linear(3, 1)
    with pytest.raises(
        ValueError, match="does not go with strategy='fsdp': it merges whole gradients"
    ):
        line_loop(strategy="fsdp", adasum=True)
    task = TrainTask(uneven(), tl.L2Loss(), torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(ValueError, match="Give a recipe such as optimizers.Adam"):
        line_loop(strategy="fsdp", model=model, task=task)
    with pytest.raises(ValueError, match="strategy is 'ddp', 'fsdp' or 'hsdp'; got 'zero'"):
        line_loop(strategy="zero")


class Whole(torch.optim.Optimizer):
    """Goes by the norm of what a rank has of a gradient."""

    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            grad = _distributed.local(p.grad)
            _distributed.local(p).sub_(0.01 * grad / grad.norm())


def parts_and_more(rank):
    """What is said of optimizers that parts are not for, of a second Loop, and what is set."""
    said = {}
    makers = {
        "Adafactor": torch.optim.Adafactor,
        "Whole": Whole,
        "Muon": torch.optim.Muon,
        "of a row": torch.optim.Muon,
    }
    for name, maker in makers.items():
        model = nn.Sequential(nn.Linear(3, 8, bias=False), nn.AdaptiveAvgPool1d(1))
        if name == "of a row":
            model = nn.Sequential(model[0], nn.Linear(8, 1, bias=False))
        task = TrainTask(rows(uneven(), rank, 2), tl.L2Loss(), maker)
        try:
            line_loop(task=task, model=model, strategy="fsdp", evals=[]).run(2)
            said[name] = ""
        except ValueError as error:
            said[name] = str(error)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    loop = law_loop(rank, 2, model=model, strategy="fsdp")
    for strategy in ("fsdp", "ddp"):
        try:
            law_loop(rank, 2, model=model, strategy=strategy)
        except ValueError as error:
            said[strategy] = str(error)
    loop.run(1)
    given = {k: torch.full(p.shape, 0.25) for k, p in model.named_parameters()}
    loop.update_weights_and_state(weights=given)
    whole = [_distributed.whole(p.detach()) for p in model.parameters()]
    loop.update_weights_and_state(weights=dict(model.named_parameters()))
    after = [_distributed.whole(p.detach()) for p in model.parameters()]
    loop.run(1)
    return said, [
        bool((w == 0.25).all() and (a == 0.25).all()) for w, a in zip(whole, after, strict=True)
    ]


def test_parts_of_weights_are_refused_at_the_start_where_they_would_fail_later(tmp_path):
    """Optimizers that look across a weight, and a model that was cut before; and they are set."""
    for said, is_set in ranks.values(tmp_path, 2, parts_and_more):
        assert "which Adafactor of torch.optim fails on" in said["Adafactor"]
        assert "comes to other weights than for whole ones" in said["Whole"]
        assert said["Muon"] == ""
        assert "which Muon of torch.optim fails on" in said["of a row"]
        for strategy in ("fsdp", "ddp"):
            assert "cut into parts already, by an earlier Loop" in said[strategy]
        assert is_set == [True] * 4


class Switched(nn.Module):
    """A head that is used from some forward pass in train mode on, or until then."""

    def __init__(self, at, first):
        super().__init__()
        self.body, self.head = nn.Linear(3, 1), nn.Linear(3, 1)
        self.at, self.first, self.n = at, first, 0

    def forward(self, x):
        self.n += self.training
        uses_head = (self.n < self.at) == self.first
        return self.body(x) + self.head(x) if uses_head else self.body(x)


def switched(rank, first, adasum=False, **kwargs):
    torch.manual_seed(0)
    loop = law_loop(rank, 2, model=Switched(8, first), adasum=adasum, **kwargs)
    loop.run(10)
    return [p.detach().numpy() for p in loop.model.parameters()]


@pytest.mark.parametrize("first", [True, False], ids=["no longer", "later"])
def test_weights_that_a_loss_depends_on_now_and_then_are_spoken_of_and_looked_for(first, tmp_path):
    """Ranks neither wait for ever nor drift apart; looked for at each step, they are trained."""
    found = ranks.outcomes(tmp_path / "a", 2, functools.partial(switched, first=first))
    assert "ValueError" in {kind for _, kind, *_ in found}
    assert any("find_unused_parameters=True" in text for *_, text in found)

    looked = functools.partial(switched, first=first, find_unused_parameters=True)
    one, other = ranks.values(tmp_path / "b", 2, looked)
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


class RankSwitched(nn.Module):
    """A head that one rank alone uses."""

    def __init__(self, rank):
        super().__init__()
        self.body, self.head = nn.Linear(3, 1), nn.Linear(3, 1)
        self.rank = rank

    def forward(self, x):
        return self.body(x) + self.head(x) if self.rank else self.body(x)


def rank_switched(rank):
    torch.manual_seed(0)
    loop = law_loop(rank, 2, model=RankSwitched(rank), adasum=True)
    loop.run(3)
    return [p.detach().numpy() for p in loop.model.parameters()]


def test_adasum_merges_weights_that_one_rank_uses(tmp_path):
    one, other = ranks.values(tmp_path, 2, rank_switched)

    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


class RankSwitchedLater(RankSwitched):
    """Whose head one rank leaves out from some step on."""

    def forward(self, x):
        out = self.body(x) if self.rank and self.is_late else self.body(x) + self.head(x)
        return out

    is_late = False


class Late(TrainingStepCallback):
    def on_step_begin(self, step):
        self._loop.model.is_late = step > 4


def ways(rank, case, strategy):
    """Gradients' norms, and weights, of a model of which one rank leaves a head out."""
    torch.manual_seed(0)
    model = (RankSwitched if case == "one rank" else RankSwitchedLater)(rank)
    settings = {"find_unused_parameters": case == "later", "callbacks": [Late]}
    loop = law_loop(rank, 2, model=model, strategy=strategy, timeout=120, **settings)
    loop.run(10)
    weights = [_distributed.whole(p.detach()).numpy() for p in model.parameters()]
    return weights, loop.history.get("train", "training/gradients_l2")


@pytest.mark.parametrize("case", ["one rank", "later"])
def test_ranks_with_parts_of_weights_may_go_different_ways(case, tmp_path):
    """As with 'ddp': seen on the sample batch, or looked for where that is asked for."""
    one, other = ranks.values(
        tmp_path / "fsdp", 2, functools.partial(ways, case=case, strategy="fsdp")
    )
    whole, _ = ranks.values(tmp_path / "ddp", 2, functools.partial(ways, case=case, strategy="ddp"))

    assert one[1] == other[1]
    for a, b, c in zip(one[0], other[0], whole[0], strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, c, 1e-4, 1e-6)


def other_tasks(rank):
    tasks = [
        TrainTask(rows(uneven(i), rank, 2), tl.L2Loss(), optimizers.SGD(0.1), loss_name=f"loss{i}")
        for i in range(2)
    ]
    line_loop(task=tasks, which_task=lambda step: (step + rank) % 2).run(3)


def other_rates(rank):
    task = TrainTask(
        uneven(), tl.L2Loss(), optimizers.SGD(0.1), lambda step: 0.1 * (1 + rank * (step > 2))
    )
    line_loop(task=task).run(5)


@pytest.mark.parametrize(
    ("work", "what"),
    [(other_tasks, "at step 1 the task"), (other_rates, "step 3 the learning rate")],
)
def test_ranks_that_take_other_steps_are_told_so(work, what, tmp_path):
    for kind, error, text in ranks.outcomes(tmp_path, 2, work):
        assert (kind, error) == ("error", "ValueError")
        assert f"{what} differ" in text


def sharded_evals(rank, n_eval_batches, has_sample):
    data = [batch for _, batch in zip(range(3), uneven(), strict=False)]
    mine = n_eval_batches[rank]
    evals = EvalTask(
        iter(data[: mine + 1]),
        tl.L2Loss(),
        n_eval_batches=mine,
        sample_batch=data[0] if has_sample else None,
    )
    loop = line_loop(
        task=TrainTask(uneven(), tl.L2Loss(), optimizers.SGD(0.0)),
        evals=evals,
        strategy="fsdp",
        model=sharded_model(),
        timeout=120,
    )
    loop.run_evals()
    return loop.history.get("eval", "metrics/L2Loss")


def test_ranks_with_parts_of_weights_measure_uneven_shards(tmp_path):
    """Those with fewer batches help the others; what is missing is said to all."""
    even = functools.partial(sharded_evals, n_eval_batches=[2, 0], has_sample=True)
    one, other = ranks.values(tmp_path / "a", 2, even)
    assert one == other

    without = functools.partial(sharded_evals, n_eval_batches=[2, 0], has_sample=False)
    for _, _, text in ranks.outcomes(tmp_path / "b", 2, without):
        assert "a rank that measures no batch needs a sample_batch" in text
