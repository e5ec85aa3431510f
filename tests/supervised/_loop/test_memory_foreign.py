"""use_memory_efficient_trainer with models of others that keep a KV cache by default."""

import types

import pytest
import torch
from torch import nn

from trax_torch import layers as tl
from trax_torch.supervised import Loop, TrainTask


class Attention(nn.Module):
    """One of a decoder's layers: its keys come after those of the cache, if it is given one."""

    def __init__(self, index):
        super().__init__()
        self.index, self.key, self.value = index, nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, mask, cache=None):
        keys = self.key(x)
        if cache is not None:
            keys = cache[self.index] = torch.cat([*cache.get(self.index, ()), keys], dim=1)
        scores = (x @ keys.mT).masked_fill(~mask[:, None, :], -1e9)
        return x + scores.softmax(-1) @ self.value(x)


class Cache(dict):
    def get(self, index, default):
        return (self[index],) if index in self else default


class Decoder(nn.Module):
    """As transformers build theirs: `config.use_cache` is on unless it is said otherwise."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.config = types.SimpleNamespace(use_cache=True)
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 11)
        self.layers = nn.ModuleList(Attention(i) for i in range(3))
        self.had_cache = []

    def forward(self, ids, mask):
        cache = Cache() if self.config.use_cache else None
        self.had_cache.append(cache is not None)
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, mask.bool(), cache)
        return self.head(x).flatten(0, 1)


def data():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 11, (4, 6), generator=generator)
    ids[::2, 4:] = 0
    return [(ids, (ids != 0).long(), ids.masked_fill(ids == 0, -100).flatten())]


def trained(level, n_steps=3):
    model = Decoder()
    task = TrainTask(data(), nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 0.1))
    loop = Loop(
        model,
        task,
        random_seed=0,
        progress=False,
        device="cpu",
        use_memory_efficient_trainer=level,
    )
    model.had_cache = []
    loop.run(n_steps)
    return model


@pytest.mark.parametrize("level", [True, 2])
def test_a_model_that_keeps_a_cache_trains_as_in_a_plain_step(level):
    """It keeps none in the steps, and is set back after each."""
    plain, lean = trained(False), trained(level)

    torch.testing.assert_close(list(lean.parameters()), list(plain.parameters()))
    assert set(plain.had_cache) == {True}
    assert set(lean.had_cache) == {False}
    assert lean.config.use_cache is True


def test_the_cache_is_on_again_after_a_step_that_fails():
    model = Decoder()
    task = TrainTask(data(), nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 0.1))
    loop = Loop(model, task, progress=False, device="cpu", use_memory_efficient_trainer=True)
    model.had_cache = None

    with pytest.raises(tl.LayerError, match="append"):
        loop.run(1)

    assert model.config.use_cache is True


def test_a_model_whose_cache_is_off_stays_so():
    model = Decoder()
    model.config.use_cache = False
    task = TrainTask(data(), nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 0.1))
    Loop(model, task, progress=False, device="cpu", use_memory_efficient_trainer=True).run(1)

    assert model.config.use_cache is False


# Models of transformers


def gpt2(transformers):
    config = transformers.GPT2Config(
        vocab_size=50,
        n_positions=32,
        n_embd=16,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config)


def llama(transformers):
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return transformers.LlamaForCausalLM(config)


def t5(transformers):
    config = transformers.T5Config(
        vocab_size=50,
        d_model=16,
        d_ff=32,
        d_kv=8,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("make", [gpt2, llama, t5])
@pytest.mark.parametrize("level", [True, 2])
def test_models_of_transformers_train_on_padded_batches(make, level):
    """As in plain steps: the same weights."""
    transformers = pytest.importorskip("transformers", minversion="5.0")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 50, (8, 10), generator=generator)
    ids[::2, 6:] = 0
    batch = {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "labels": ids.masked_fill(ids == 0, -100),
    }
    found = []
    for each in (False, level):
        torch.manual_seed(0)
        model = make(transformers)
        assert model.config.use_cache
        task = TrainTask([batch], "model", torch.optim.SGD(model.parameters(), 0.1))
        loop = Loop(
            model,
            task,
            random_seed=0,
            progress=False,
            device="cpu",
            use_memory_efficient_trainer=each,
        )
        loop.run(3)
        assert model.config.use_cache is True
        found.append(list(model.parameters()))

    torch.testing.assert_close(*found)
