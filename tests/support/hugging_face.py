"""Tiny models of transformers with random weights, in float64.

Their heads are no copies of their embeddings, with which random weights repeat the last token.
"""

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5.0")
transformers.logging.set_verbosity_error()

VOCAB = 50
SYMBOLS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
}


def gpt2(**settings):
    sizes = {"vocab_size": VOCAB, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}
    settings = {**sizes, "initializer_range": 0.5, **SYMBOLS, **settings}
    return made(transformers.GPT2LMHeadModel, transformers.GPT2Config(**settings))


def llama(**settings):
    config = transformers.LlamaConfig(**{**SIZES, **SYMBOLS, **settings})
    return made(transformers.LlamaForCausalLM, config)


def mistral(**settings):
    """Each layer sees the last 4 positions alone."""
    config = transformers.MistralConfig(**SIZES, **SYMBOLS, sliding_window=4, **settings)
    return made(transformers.MistralForCausalLM, config)


def gemma3(**settings):
    """One layer sees the last 4 positions alone, the other one all."""
    kinds = ["sliding_attention", "full_attention"]
    config = transformers.Gemma3TextConfig(
        **SIZES,
        **SYMBOLS,
        head_dim=8,
        sliding_window=4,
        layer_types=kinds,
        tie_word_embeddings=False,
        **settings,
    )
    return made(transformers.Gemma3ForCausalLM, config)


def opt(**settings):
    """Its positions are learned, from the third vector on."""
    config = transformers.OPTConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        word_embed_proj_dim=16,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=40,
        init_std=0.5,
        **SYMBOLS,
        **settings,
    )
    return made(transformers.OPTForCausalLM, config)


def gpt_neo(**settings):
    """It is not made for caches of a fixed length."""
    config = transformers.GPTNeoConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        window_size=4,
        max_position_embeddings=64,
        initializer_range=0.5,
        **SYMBOLS,
        **settings,
    )
    return made(transformers.GPTNeoForCausalLM, config)


def bloom(**settings):
    """It marks distances, and takes no positions."""
    config = transformers.BloomConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.5,
        **SYMBOLS,
        **settings,
    )
    return made(transformers.BloomForCausalLM, config)


# Other families of causal models, by the names of their classes: what they want beside `SIZES`.
FAMILIES = {
    "Gemma": {"head_dim": 8},
    "GPTNeoX": {"num_key_value_heads": None},
    "Phi": {},
    "Phi3": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Starcoder2": {"sliding_window": 4},
}


def of_family(name):
    """A model of one of `FAMILIES`."""
    settings = {**SIZES, **SYMBOLS, "tie_word_embeddings": False, **FAMILIES[name]}
    settings = {key: value for key, value in settings.items() if value is not None}
    config = getattr(transformers, f"{name}Config")(**settings)
    return made(getattr(transformers, f"{name}ForCausalLM"), config)


def t5(**settings):
    config = transformers.T5Config(
        vocab_size=VOCAB,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=0,
        tie_word_embeddings=False,
        **settings,
    )
    return lively(made(transformers.T5ForConditionalGeneration, config))


def bart(**settings):
    """Fewer learned positions than tokens."""
    own = {"decoder_start_token_id": 2, **settings}
    return translator(transformers.BartForConditionalGeneration, transformers.BartConfig, **own)


def marian():
    """Its positions are sines, and it begins with its padding."""
    own = {"decoder_start_token_id": 0}
    return translator(transformers.MarianMTModel, transformers.MarianConfig, **own)


def translator(kind, config_kind, **settings):
    layers = {f"{part}_layers": 2 for part in ("encoder", "decoder")}
    heads = {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
    widths = {f"{part}_ffn_dim": 32 for part in ("encoder", "decoder")}
    config = config_kind(
        vocab_size=VOCAB,
        d_model=16,
        max_position_embeddings=24,
        tie_word_embeddings=False,
        **{"forced_eos_token_id": None, **layers, **heads, **widths, **SYMBOLS, **settings},
    )
    return lively(made(kind, config))


def made(kind, config):
    torch.manual_seed(0)
    return kind(config).double().eval()


def lively(model):
    """The model with matrices by which each token has a say in the next one."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.2, generator=generator)
    return model


def random_tokens(batch, length, seed=5):
    """Tokens (batch, length) that are no symbols of `SYMBOLS`."""
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def generate(model, inputs, n_tokens, mask=None, **settings):
    """What `generate` makes by greedy choice, without the prompt: (rows, n)."""
    mask = torch.ones_like(inputs) if mask is None else mask
    made = model.generate(
        inputs, attention_mask=mask, max_new_tokens=n_tokens, do_sample=False, **settings
    )
    return made[:, 1 if model.config.is_encoder_decoder else inputs.shape[1] :]


def assert_same(tokens, want, end=SYMBOLS["eos_token_id"]):
    """Asserts that tokens are those of `generate` up to the end of each row, one at least."""
    # After an end, `generate` has its padding or, in beams whose padding is 0, the end symbol.
    n = max(tokens.shape[1], want.shape[1])
    rows = [torch.nn.functional.pad(t, (0, n - t.shape[1])) for t in (tokens, want)]
    ended = [((t == end).cumsum(1) - (t == end).long()) > 0 for t in rows]
    cut = [t.masked_fill(mask, 0) for t, mask in zip(rows, ended, strict=True)]

    assert torch.equal(*cut)
