"""A pretrained Transformer: its file, subwords, decoding; an encoder made into a classifier."""

import os

import numpy as np
import trax
from trax import layers as tl

SETTINGS = dict(
    input_vocab_size=33,
    d_model=16,
    d_ff=32,
    n_heads=2,
    n_encoder_layers=2,
    n_decoder_layers=2,
    max_len=64,
)
TOKENS = ["<pad>_", "<EOS>_", "It", "'s", "nice", "to", "learn", "new", "things", "today", "!"]


def pretrain(path):
    """Stands for the download: a model that was saved after some steps of copying."""
    rng = np.random.default_rng(0)

    def copies():
        while True:
            x = rng.integers(2, 11, (32, rng.integers(3, 6)))
            x[:, -1] = 1
            yield x, x, np.ones_like(x)

    model = trax.models.Transformer(mode="train", dropout=0.0, **SETTINGS)
    task = trax.supervised.training.TrainTask(
        copies(), tl.WeightedCategoryCrossEntropy(), trax.optimizers.Adam(0.01)
    )
    loop = trax.supervised.training.Loop(model, task)
    loop.run(400)
    loop.model.save_to_file(path, weights_only=True)


def vocabulary(path):
    """A file of subwords; those that end a word end with _."""
    subtokens = [t if t.endswith("_") else t + "_" for t in TOKENS]
    letters = sorted(set("".join(TOKENS)) | set("\\_u;0123456789"))
    with open(path, "w") as file:
        file.writelines(f"'{t}'\n" for t in [*subtokens, *letters])


def BERTClassifier(n_classes=10, d_model=16, d_ff=32, n_heads=2, dropout=0.1, mode="train"):
    def block():
        return [
            tl.Residual(
                tl.LayerNorm(),
                tl.Attention(d_feature=d_model, n_heads=n_heads, dropout=dropout, mode=mode),
                tl.Dropout(rate=dropout, shared_axes=None, mode=mode),
            ),
            tl.Residual(
                [tl.LayerNorm(), tl.Dense(d_ff), tl.Relu(), tl.Dense(d_model)],
            ),
        ]

    encoder = [
        tl.Embedding(33, d_model),
        tl.Dropout(rate=dropout, shared_axes=None, mode=mode),
        tl.PositionalEncoding(max_len=64),
    ]
    return tl.Serial(
        tl.Branch(encoder, tl.PaddingMask()),
        [block() for _ in range(2)],
        tl.Select([0], n_in=2),
        tl.LayerNorm(),
        tl.Mean(axis=1),
        tl.Dense(n_classes),
        tl.LogSoftmax(),
    )


trax.supervised.trainer_lib.init_random_number_generators(37)
pretrain("model.pkl.gz")
vocabulary("vocab.subword")

model = trax.models.Transformer(mode="predict", **SETTINGS)
shape11 = trax.shapes.ShapeDtype((1, 1), dtype=np.int32)
model.init_from_file("model.pkl.gz", weights_only=True, input_signature=(shape11, shape11))

sentence = "nice new things"
[tokenized] = trax.data.tokenize(
    iter([sentence]), vocab_dir=os.getcwd(), vocab_file="vocab.subword"
)
tokenized = np.append(tokenized, trax.data.vocab_size(vocab_dir=".", vocab_file="vocab.subword"))
tokenized[-1] = 1
sample = trax.supervised.decoding.autoregressive_sample(
    model, tokenized[None, :], temperature=0.0, max_length=5
)
detokenized = trax.data.detokenize(sample[0][:-1], vocab_dir=".", vocab_file="vocab.subword")
words = {i: t for i, t in enumerate(TOKENS)}
looked_up = [words.get(symbol) for symbol in sample[0]]

classifier = BERTClassifier(mode="eval")
classifier.init(trax.shapes.signature(tokenized[None, :]))
classes = np.exp(classifier(tokenized[None, :]))
print(tokenized, sample, repr(detokenized), looked_up, float(classes.sum()))
