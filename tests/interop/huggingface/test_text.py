"""Text in, text out: a tokenizer trained on the spot, and models of transformers and ours."""

import pytest
import torch

pytest.importorskip("transformers", minversion="5.0")

import hugging_face as hf
import tokenizers

from trax_torch import models
from trax_torch.supervised import decoding

TEXTS = ["the cat sat on the mat", "the dog ran", "a cat and a dog sat on a mat in the sun"]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def tokenizer():
    """Words and letters of `TEXTS`; it has no token for padding."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    symbols = ["<pad>", "<s>", "</s>"]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=hf.VOCAB, special_tokens=symbols)
    made.train_from_iterator(TEXTS, trainer)
    assert made.get_vocab_size() <= hf.VOCAB
    return hf.transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>"
    )


def text_by_generate(model, tokenizer, text, n_tokens, **settings):
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    made = hf.generate(model, ids, n_tokens, **settings)
    return tokenizer.decode(made[0].tolist(), skip_special_tokens=True)


@pytest.mark.parametrize("make", [hf.gpt2, hf.llama, hf.t5])
def test_texts_go_on_as_by_generate(make, tokenizer):
    model = make()
    settings = {"max_length": 9, "temperature": 0.0}
    want = [text_by_generate(model, tokenizer, text, 9) for text in TEXTS]

    assert decoding.generate_text(model, tokenizer, TEXTS, **settings) == want
    assert decoding.generate_text(model, tokenizer, TEXTS[1], **settings) == want[1]
    assert len(set(want)) > 1
    beams = {"num_beams": 2, "length_penalty": 0.0}
    best = decoding.generate_text(
        model, tokenizer, TEXTS, n_beams=2, max_length=9, length_penalty=0.0
    )
    assert best == [text_by_generate(model, tokenizer, text, 9, **beams) for text in TEXTS]


def test_a_model_of_ours_goes_on_from_a_text_too(tokenizer):
    model = models.TransformerLM(hf.VOCAB, 16, 32, 1, 2)
    model.init(torch.zeros(1, 1, dtype=torch.int64), rng=0)
    ids = tokenizer(TEXTS[0])["input_ids"]
    settings = {"temperature": 0.0, "max_length": 6, "eos_id": -1}

    made = decoding.generate_text(model, tokenizer, TEXTS[0], **settings)

    tokens = decoding.autoregressive_sample(model, [ids], **settings)[0]
    assert made == tokenizer.decode(tokens.tolist(), skip_special_tokens=True)
