"""GPT-2 and TransformerLM are one function; what is another one is refused by name."""

import pytest
import torch

pytest.importorskip("transformers", minversion="5.0")

import hugging_face as hf

from trax_torch import layers as tl
from trax_torch import models
from trax_torch.interop import huggingface
from trax_torch.supervised import decoding

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def after_zero(tokens):
    """What GPT-2 reads where TransformerLM is given tokens."""
    return torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], dim=1)


def lm(ff_activation=tl.FastGelu, n_heads=2, **settings):
    """In float64, with a head of its own that has no bias."""
    layer = models.TransformerLM(
        hf.VOCAB, 16, 24, 2, n_heads, 32, ff_activation=ff_activation, **settings
    )
    layer.init(torch.zeros(1, 1, dtype=torch.int64), rng=0)
    for i, parameter in enumerate(layer.parameters()):
        generator = torch.Generator().manual_seed(i)
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    list(layer.parameters())[-1].data.zero_()
    return layer.double().eval()


@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "relu"])
@pytest.mark.parametrize("tied", [True, False])
def test_gpt2_as_a_layer_gives_the_same_logits(activation, tied):
    model = hf.gpt2(activation_function=activation, tie_word_embeddings=tied, n_inner=40)
    tokens = hf.random_tokens(2, 9)
    layer = huggingface.to_transformer_lm(model)

    torch.testing.assert_close(
        layer(tokens), model(after_zero(tokens)).logits, rtol=1e-10, atol=1e-10
    )
    assert layer(tokens).dtype == torch.float64


def test_gpt2_as_a_layer_decodes_the_same_tokens():
    model, tokens = hf.gpt2(), hf.random_tokens(3, 6)
    layer = huggingface.to_transformer_lm(model)
    made = decoding.autoregressive_sample(
        layer, tokens[:, 1:], 3, 0.0, start_id=tokens[:, :1], eos_id=2, max_length=12
    )

    hf.assert_same(made, hf.generate(model, tokens, 12))


@pytest.mark.parametrize("make", [tl.FastGelu, tl.Gelu, tl.Relu])
@pytest.mark.parametrize("n_heads", [2, 4])
def test_a_transformer_lm_as_gpt2_gives_the_same_logits(make, n_heads):
    layer, tokens = lm(make, n_heads, layer_norm_epsilon=1e-3), hf.random_tokens(2, 9)
    model = huggingface.to_gpt2(layer, eos_token_id=2)

    torch.testing.assert_close(
        layer(tokens), model(after_zero(tokens)).logits, rtol=1e-10, atol=1e-10
    )
    assert not model.config.tie_word_embeddings
    assert model.config.eos_token_id == 2
    assert not model.training


def test_there_and_back_changes_nothing(tmp_path):
    model = hf.gpt2()
    again = huggingface.to_gpt2(huggingface.to_transformer_lm(model))
    again.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)

    assert again.config.tie_word_embeddings
    for other in (again, loaded):
        for name, value in model.state_dict().items():
            assert torch.equal(other.state_dict()[name], value), name


def test_another_function_than_transformer_lm_is_refused_by_what_it_has():
    with pytest.raises(
        TypeError,
        match="than LlamaForCausalLM, which has RMSNorm, rotary positions, a gated feed-forward "
        "part, fewer heads of keys than of queries, no biases. Decode and train it as it is",
    ):
        huggingface.to_transformer_lm(hf.llama())
    with pytest.raises(TypeError, match="a sliding window, no biases"):
        huggingface.to_transformer_lm(hf.mistral())
    with pytest.raises(TypeError, match="T5ForConditionalGeneration, which has an encoder"):
        huggingface.to_transformer_lm(hf.t5())
    with pytest.raises(TypeError, match="OPTForCausalLM, which has blocks that are no GPT-2's"):
        huggingface.to_transformer_lm(hf.opt())
    with pytest.raises(TypeError, match="which has activation_function='silu'"):
        huggingface.to_transformer_lm(hf.gpt2(activation_function="silu"))
    with pytest.raises(TypeError, match="scale_attn_by_inverse_layer_idx=True"):
        huggingface.to_transformer_lm(hf.gpt2(scale_attn_by_inverse_layer_idx=True))
    with pytest.raises(TypeError, match="A GPT2LMHeadModel of transformers is needed; got Linear"):
        huggingface.to_transformer_lm(torch.nn.Linear(1, 1))


def test_another_function_than_gpt2_is_refused():
    layer = lm()
    list(layer.parameters())[-1].data[3] = 0.5
    with pytest.raises(TypeError, match="GPT-2's head has no bias, but that of the layer has"):
        huggingface.to_gpt2(layer)
    with pytest.raises(TypeError, match="with Relu, Gelu or FastGelu, and weights; got Serial"):
        huggingface.to_gpt2(lm(tl.Tanh))
    with pytest.raises(TypeError, match="of other layers"):
        huggingface.to_gpt2(tl.Serial(lm(), tl.LogSoftmax()))
    hooked = lm()
    hooked.sublayers[1].register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(TypeError, match="same weights, and give other logits. Remove hooks"):
        huggingface.to_gpt2(hooked)
