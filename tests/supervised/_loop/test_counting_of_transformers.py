"""Models of transformers compute their own losses; parts and ranks make up the whole of them."""

import pytest
import ranks
import torch
from torch.nn import functional as F

from trax_torch import optimizers
from trax_torch.supervised import EvalTask, Loop, TrainTask

transformers = pytest.importorskip("transformers")

N_ROWS = 7
SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def sentences(g, drop):
    """Sentences and what a causal model learns of them; one part of five has nothing to learn."""
    ids = torch.randint(3, 40, (N_ROWS, 9), generator=g)
    mask, labels = torch.ones_like(ids), ids.clone()
    if drop:
        for row, n in enumerate((2, 9, 1, 1, 5, 4, 9)):
            ids[row, n:] = mask[row, n:] = 0
            labels[row, n:] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def masked(g, drop):
    batch = sentences(g, False)
    if drop:
        hidden = torch.rand(batch["labels"].shape, generator=g) < 0.3
        batch["labels"] = batch["labels"].where(hidden, -100)
    return batch


def labelled(g, drop):
    return {**sentences(g, drop), "labels": torch.randint(0, 3, (N_ROWS,), generator=g)}


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=40, n_positions=32, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def t5():
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, dropout_rate=0.0,
        decoder_start_token_id=0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


KINDS = {
    "GPT-2": (gpt2, sentences),
    "T5": (t5, sentences),
    "BERT, masked": (
        lambda: transformers.BertForMaskedLM(transformers.BertConfig(**SMALL)),
        masked,
    ),
    "BERT, classes": (
        lambda: transformers.BertForSequenceClassification(
            transformers.BertConfig(**SMALL, num_labels=3)
        ),
        labelled,
    ),
}


def problem(kind, even):
    make, make_batch = KINDS[kind]
    torch.manual_seed(0)
    sample, batch = (torch.Generator().manual_seed(seed) for seed in (0, 1))
    return make().double().train(), make_batch(sample, not even), make_batch(batch, True)


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def plain_gradient(kind):
    model, _, batch = problem(kind, True)
    model(**batch).loss.backward()
    return flat(torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters())


def loop_gradient(kind, even, rows=slice(None), **kwargs):
    model, sample, batch = problem(kind, even)
    before = flat(model.parameters())
    batch = {name: item[rows] for name, item in batch.items()}
    task = TrainTask(iter([batch]), "model", optimizers.SGD(1.0), None, None, sample_batch=sample)
    Loop(model, task, random_seed=0, progress=False, device="cpu", **kwargs).run(1)
    return before - flat(model.parameters())


@pytest.mark.parametrize("even", [True, False], ids=["even sample", "uneven sample"])
@pytest.mark.parametrize("n_parts", [2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_parts_are_those_of_the_whole(kind, n_parts, even):
    wanted = plain_gradient(kind)

    found = loop_gradient(kind, even, n_accumulation_steps=n_parts)

    assert float((found - wanted).norm() / wanted.norm()) < 1e-6


def of_rank(rank):
    rows = slice(0, 5) if rank == 0 else slice(5, None)
    return {kind: loop_gradient(kind, False, rows).numpy() for kind in KINDS}


@pytest.mark.skipif(not torch.distributed.is_available(), reason="no torch.distributed")
def test_gradients_of_ranks_are_those_of_the_whole(tmp_path):
    for found in ranks.values(tmp_path, 2, of_rank):
        for kind in KINDS:
            wanted = plain_gradient(kind)
            assert float((torch.from_numpy(found[kind]) - wanted).norm() / wanted.norm()) < 1e-6


# What models are told, where they take it


def given_numbers(model, batch, loss="model", **kwargs):
    """What the model was given as num_items_in_batch, call by call of a step."""
    given = []

    def note(module, args, named):
        if module.training:
            given.append(named.get("num_items_in_batch"))

    model.register_forward_pre_hook(note, with_kwargs=True)
    task = TrainTask(iter([batch]), loss, optimizers.SGD(1.0), None, None, sample_batch=batch)
    Loop(model, task, random_seed=0, progress=False, device="cpu", **kwargs).run(1)
    return [None if n is None else float(n) for n in given]


@pytest.mark.parametrize(("kind", "is_told"), [("GPT-2", True), ("BERT, masked", False)])
def test_models_that_take_the_number_of_items_are_told_that_of_the_whole(kind, is_told):
    model, _, batch = problem(kind, False)
    n_items = float((batch["labels"][:, 1:] != -100).sum())

    given = given_numbers(model, batch, n_accumulation_steps=3)

    assert given == [n_items if is_told else None] * 3
    assert given_numbers(problem(kind, False)[0], batch) == [None]


class Telling(torch.nn.Module):
    """Its loss is a sum over the number it is given, or a mean."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3).double()

    def forward(self, x, labels, num_items_in_batch=None):
        how = "mean" if num_items_in_batch is None else "sum"
        loss = F.cross_entropy(self.linear(x), labels, reduction=how)
        return loss if num_items_in_batch is None else loss / num_items_in_batch


def test_any_model_with_such_an_argument_is_told_also_compiled():
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.tensor([-100, 1, -100, -100, 2, 0, 1])
    ends = []
    for settings in (
        {"n_accumulation_steps": 1},
        {"n_accumulation_steps": 3},
        {"n_accumulation_steps": 3, "compile": True},
    ):
        torch.manual_seed(0)
        model = Telling()
        task = TrainTask([(x, labels)], "model", torch.optim.SGD(model.parameters(), 1.0))
        loop = Loop(model, task, random_seed=0, progress=False, device="cpu", **settings)
        loop.run(4)
        ends.append(flat(model.parameters()))

    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-11, atol=1e-11)


class Deaf(Telling):
    """It takes the number and does nothing with it."""

    def forward(self, x, labels=None, num_items_in_batch=None):
        logits = self.linear(x)
        return {
            "logits": logits,
            "loss": None if labels is None else F.cross_entropy(logits, labels),
        }


@pytest.mark.parametrize(
    "loss", ["model", F.cross_entropy, lambda o, y: F.cross_entropy(o["logits"], y)]
)
def test_who_does_nothing_with_the_number_is_not_told(loss):
    """Also where a part of the sample has no label that counts, whose gradient is 0."""
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.tensor([2, 1, -100, -100, 2, 0, 1])
    batch = {"x": x, "labels": labels}
    model, wanted = Deaf(), Deaf()
    wanted.load_state_dict(model.state_dict())
    before = flat(model.parameters())
    F.cross_entropy(wanted.linear(x), labels).backward()

    assert given_numbers(model, batch, loss=loss, n_accumulation_steps=3) == [None] * 3
    gradient = flat(p.grad for p in wanted.parameters())
    torch.testing.assert_close(before - flat(model.parameters()), gradient, rtol=1e-9, atol=1e-9)


# Evals


def eval_batches(make_batch):
    """Batches in which unevenly many labels count; a last one of few rows."""
    first, last = (make_batch(torch.Generator().manual_seed(seed), True) for seed in (1, 2))
    return [first, {name: item[-2:] for name, item in last.items()}]


def evaluated(model, batches, metric, sample=None):
    task = TrainTask([batches[0]], "model", optimizers.SGD(0.0))
    evals = EvalTask(batches, metric, metric_names=["it"], sample_batch=sample)
    return Loop(model, task, eval_tasks=evals, random_seed=0, progress=False, device="cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_an_evals_own_loss_is_that_of_all_labels_that_count(kind):
    model, even, _ = problem(kind, True)
    batches = eval_batches(KINDS[kind][1])
    n_first = 1 if kind == "GPT-2" else 0
    total, n = 0.0, 0
    for batch in batches:
        labels = batch["labels"]
        with torch.no_grad():
            logits = model.eval()(**batch).logits
        if n_first:
            logits, labels = logits[:, :-1], labels[:, 1:]
        total += float(F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum"))
        n += int((labels != -100).sum())

    for sample in (None, even):  # the one that is seen may have nothing that does not count
        found = evaluated(model, batches, "loss", sample).run_evals()["metrics/it"]
        assert found == pytest.approx(total / n, rel=1e-6)  # transformers computes it in float32


@pytest.mark.parametrize(
    "metric",
    [
        lambda outputs, batch: shifted(outputs.logits, batch["labels"]),
        lambda outputs, labels: shifted(outputs.logits, labels),
    ],
    ids=["outputs, batch", "outputs, labels"],
)
def test_an_evals_function_is_that_of_all_labels_that_count(metric):
    model, _, _ = problem("GPT-2", True)
    batches = eval_batches(sentences)
    wanted = evaluated(model, batches, "loss").run_evals()["metrics/it"]

    found = evaluated(model, batches, metric).run_evals()["metrics/it"]

    assert found == pytest.approx(wanted, rel=1e-6)


def shifted(logits, labels):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def evals_of_rank(rank):
    model, _, _ = problem("GPT-2", True)
    return evaluated(model, [eval_batches(sentences)[rank]], "loss").run_evals()["metrics/it"]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="no torch.distributed")
def test_an_evals_own_loss_is_that_of_all_ranks(tmp_path):
    model, _, _ = problem("GPT-2", True)
    wanted = evaluated(model, eval_batches(sentences), "loss").run_evals()["metrics/it"]

    for found in ranks.values(tmp_path, 2, evals_of_rank):
        assert found == pytest.approx(wanted, rel=1e-6)
