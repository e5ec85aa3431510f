"""What layers attend to is what their outputs are made of."""

import pytest
import torch
from decoders import PROMPTS, VOCAB, livelier
from torch import nn
from torch.backends import mha

from trax_torch import layers as tl
from trax_torch import models
from trax_torch.supervised import decoding

SIZES = {"d_model": 8, "d_ff": 8, "n_heads": 2, "max_len": 16, "dropout": 0.1}
TOKENS = torch.tensor([[1, 2, 3, 4, 5], [4, 5, 6, 1, 2]])


def language_model():
    return livelier(models.TransformerLM(VOCAB, n_layers=2, **SIZES), TOKENS)


def translator():
    model = models.Transformer(VOCAB, n_encoder_layers=1, n_decoder_layers=1, **SIZES)
    return livelier(model, (TOKENS, TOKENS))


def calls_of(model, kinds):
    """Notes what layers of some kinds are given and give, by their names."""
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            module.register_forward_hook(
                lambda module, args, out, name=name: seen.update({name: (args[0], out)})
            )
    return seen


def test_weights_times_values_are_what_a_layer_gives():
    """In eval mode, without dropout, though the model trains; causal."""
    model = language_model()
    seen = calls_of(model, tl.DotProductCausalAttention)
    maps = decoding.attention_of(model, TOKENS)

    assert list(maps) == list(seen)
    assert len(maps) == 2
    for name, weights in maps.items():
        (_, _, values), output = seen[name]
        torch.testing.assert_close(weights @ values, output, rtol=0, atol=1e-12)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 5).double())
        assert (weights.triu(1) == 0).all()
        assert not weights.requires_grad


def test_a_model_is_after_it_as_it_was():
    """Mode, hooks, weights and torch's own settings; also where it fails."""
    model = language_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    is_fast = mha.get_fastpath_enabled()
    decoding.attention_of(model, TOKENS)
    with pytest.raises(tl.LayerError):
        decoding.attention_of(model, TOKENS + 100)

    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert mha.get_fastpath_enabled() == is_fast


def test_a_translator_looks_at_its_source_and_not_at_padding():
    source = TOKENS.clone()
    source[1, 3:] = 0
    encoder, causal, across = decoding.attention_of(
        translator(), TOKENS[:, :4], source=source
    ).values()

    assert [tuple(x.shape[-2:]) for x in (encoder, causal, across)] == [(5, 5), (4, 4), (4, 5)]
    assert (encoder[1, ..., 3:] == 0).all()
    assert (across[1, ..., 3:] == 0).all()
    assert (across[0] > 0).all()
    assert (causal.triu(1) == 0).all()


@pytest.mark.parametrize("is_fast", [True, False])
def test_torchs_own_layers_are_seen(is_fast):
    """With the weights that `nn.MultiheadAttention` itself gives; outputs are what they were."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).double()
    model = nn.Sequential(nn.Embedding(VOCAB, 8).double(), layer)
    mha.set_fastpath_enabled(is_fast)
    try:
        (weights,) = decoding.attention_of(model, TOKENS).values()
    finally:
        mha.set_fastpath_enabled(True)
    layer.eval()
    x = model[0](TOKENS)
    _, want = layer.self_attn(x, x, x, average_attn_weights=False)
    torch.testing.assert_close(weights, want, rtol=0, atol=1e-12)


class Asking(nn.Module):
    """Uses what attention tells of its weights."""

    def __init__(self, **asks):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, 8)
        self.attention, self.asks = nn.MultiheadAttention(8, 2, batch_first=True), asks

    def forward(self, tokens):
        x = self.embedding(tokens)
        self.found = self.attention(x, x, x, **self.asks)
        return self.found[0]


@pytest.mark.parametrize(
    "asks",
    [{}, {"average_attn_weights": False}, {"need_weights": False}],
    ids=["mean", "heads", "none"],
)
def test_a_module_that_asks_for_weights_gets_those_that_it_asked_for(asks):
    model = Asking(**asks).double().eval()
    decoding.attention_of(model, TOKENS)
    output, weights = model.found
    model(TOKENS)

    torch.testing.assert_close(output, model.found[0])
    assert (weights is None) == (model.found[1] is None)
    if weights is not None:
        torch.testing.assert_close(weights, model.found[1])


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral"])
def test_models_of_transformers_are_seen(name):
    """With the weights that they give themselves when they attend in plain steps."""
    pytest.importorskip("transformers", minversion="5.0", reason="transformers is not installed")
    import hugging_face

    make = getattr(hugging_face, name)
    model, plain = make().eval(), make(attn_implementation="eager").eval()
    plain.load_state_dict(model.state_dict())
    tokens = torch.randint(3, 50, (2, 7))
    maps = decoding.attention_of(model, tokens)
    with torch.no_grad():
        wanted = plain(tokens, output_attentions=True).attentions

    assert len(maps) == len(wanted) == 2
    for found, want in zip(maps.values(), wanted, strict=True):
        torch.testing.assert_close(found, want.to(found.dtype), rtol=0, atol=1e-6)


def test_a_layer_that_is_used_twice_has_two_maps():
    block = tl.Residual(tl.CausalAttention(8, n_heads=2))
    model = tl.Serial(tl.Embedding(VOCAB, 8), block, block)
    model.init(TOKENS)
    first, second = decoding.attention_of(model, TOKENS)

    assert second == f"{first}#2"


def test_a_model_that_does_not_attend_is_refused():
    model = models.GRULM(VOCAB, 8, 1)
    model.init(PROMPTS)
    with pytest.raises(ValueError, match="No layer of Serial was seen to attend"):
        decoding.attention_of(model, PROMPTS)


def test_maps_print_and_have_pictures():
    """All layers, their heads averaged; or the heads of one; with names of positions."""
    maps = decoding.attention_of(language_model(), TOKENS)
    first = next(iter(maps))
    assert [line.split() for line in str(maps).splitlines()[2:]] == [
        [name, "2", "2", "5", "5"] for name in maps
    ]
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    panels = maps.plot(row=1, queries="abcde").axes
    heads = maps.plot(first).axes

    assert [panel.get_title(loc="left") for panel in panels] == list(maps)
    assert [panel.get_title(loc="left") for panel in heads] == ["head 0", "head 1"]
    drawn = torch.as_tensor(panels[0].images[0].get_array()).double()
    torch.testing.assert_close(drawn, maps[first][1].mean(0), rtol=0, atol=1e-6)
    ticks = [t.get_text() for t in panels[0].get_xticklabels()]
    assert ticks == [t.get_text() for t in panels[0].get_yticklabels()] == list("abcde")
    with pytest.raises(ValueError, match="Each of 5 positions needs a name; got 2"):
        maps.plot(queries="ab")
    with pytest.raises(KeyError):
        maps.plot("no such layer")
