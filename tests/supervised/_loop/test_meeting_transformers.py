"""Models of transformers as they come: dict batches, masks, their own losses, as in a bare loop."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trax_torch.supervised import EvalTask, Loop, TrainTask

transformers = pytest.importorskip("transformers")

IDS = torch.randint(1, 20, (4, 6), generator=torch.Generator().manual_seed(0))
MASK = torch.ones(4, 6, dtype=torch.long)
MASK[1:3, 4:] = 0
SMALL = {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=8, **SMALL)
    return transformers.GPT2LMHeadModel(config)


def classifier():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        num_labels=3,
    )
    return transformers.BertForSequenceClassification(config)


def encoder_decoder():
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=20,
        d_model=8,
        d_kv=4,
        d_ff=8,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config)


TOKENS = {"input_ids": IDS, "attention_mask": MASK, "labels": IDS.masked_fill(MASK == 0, -100)}
SENTENCES = {"input_ids": IDS, "attention_mask": MASK, "labels": torch.tensor([0, 2, 1, 0])}
MODELS = [(gpt2, TOKENS), (classifier, SENTENCES), (encoder_decoder, TOKENS)]


def loop_of(model, batch, loss=None, evals=None, **settings):
    task = TrainTask([batch], loss, torch.optim.AdamW(model.parameters(), 0.01))
    eval_task = None if evals is None else EvalTask([batch], evals)
    return Loop(model, task, eval_tasks=eval_task, random_seed=0, progress=False, **settings)


def bare(model, batch, n_steps):
    """Returns the losses and the model of a bare loop, without dropout."""
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for _ in range(n_steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return model


def assert_same_weights(model, other):
    for (name, weight), its in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(weight, its), name


@pytest.mark.parametrize(("make", "batch"), MODELS)
@pytest.mark.parametrize("kind", [dict, transformers.BatchEncoding])
def test_a_model_with_its_own_loss_trains_as_in_a_bare_loop(make, batch, kind):
    """Bit for bit: no wrapper, no loss, batches as collators give them."""
    loop = loop_of(without_dropout(make()), kind(batch))
    loop.run(3)

    assert_same_weights(loop.model, bare(without_dropout(make()).train(), batch, 3))


@pytest.mark.parametrize(("make", "batch"), MODELS)
def test_a_run_goes_on_from_its_checkpoint(make, batch, tmp_path):
    """With dropout: what a run that was never cut comes to, bit for bit."""
    whole = loop_of(make(), batch)
    whole.run(4)
    loop_of(make(), batch, output_dir=str(tmp_path)).run(2)
    resumed = loop_of(make(), batch, output_dir=str(tmp_path))
    assert resumed.step == 2
    resumed.run(2)

    assert_same_weights(resumed.model, whole.model)


def test_evals_and_losses_of_the_logits_are_those_of_the_model_itself():
    """The labels go to the loss, and to the model where it makes its inputs of them."""
    model = without_dropout(encoder_decoder())

    def of_logits(outputs, batch):
        return F.cross_entropy(outputs.logits.flatten(0, 1), batch["labels"].flatten())

    class Flat(nn.Module):
        def forward(self, logits, labels):
            return F.cross_entropy(logits.flatten(0, 1), labels.flatten())

    loop = loop_of(model, TOKENS, Flat(), ["loss", of_logits, Flat()])
    values = loop.run_evals()
    with torch.no_grad():
        true = model.eval()(**TOKENS).loss.item()

    assert list(values.values()) == pytest.approx([true] * 3, rel=1e-5)


def test_logits_of_a_classifier_are_compared_with_its_labels():
    """A loss of torch's is given them, by name, and the model no labels."""
    loop = loop_of(without_dropout(classifier()), SENTENCES, nn.CrossEntropyLoss())
    loop.run(2)

    assert_same_weights(loop.model, bare(without_dropout(classifier()).train(), SENTENCES, 2))


def test_what_a_tuple_cannot_say_is_refused_with_what_to_write():
    """The second argument of GPT-2 is no mask."""
    with pytest.raises(ValueError, match=r"forward\(input_ids=None, .*yield dicts"):
        loop_of(gpt2(), (IDS, MASK, IDS), nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match=r'Yield them by name, \{"input_ids": ...'):
        loop_of(gpt2(), (IDS, MASK, IDS))
