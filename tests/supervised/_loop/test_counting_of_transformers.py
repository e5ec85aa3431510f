"""Models of transformers compute their own losses; parts and ranks make up the whole of them."""

import pytest
import ranks
import torch

from trax_torch import optimizers
from trax_torch.supervised import Loop, TrainTask

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
