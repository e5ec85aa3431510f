"""Translation with attention: an LSTM encoder, a decoder before it, a mask made by hand."""

import random
from functools import partial

import numpy as np
import trax
from trax import layers as tl
from trax.fastmath import numpy as fastnp
from trax.supervised import training

VOCAB_SIZE = 16
EOS = 1


def sentence_pairs(seed):
    """The translation of a sentence adds 1 to each word."""
    rng = np.random.default_rng(seed)
    while True:
        words = rng.integers(2, VOCAB_SIZE - 1, rng.integers(2, 7))
        yield words, words + 1


def append_eos(stream):
    for inputs, targets in stream:
        yield np.array([*inputs, EOS]), np.array([*targets, EOS])


def pipeline(seed):
    stream = append_eos(sentence_pairs(seed))
    stream = trax.data.FilterByLength(max_length=7, length_keys=[0, 1])(stream)
    bucketed = trax.data.BucketByLength([4, 8], [32, 32, 32], length_keys=[0, 1])(stream)
    return trax.data.AddLossWeights(id_to_mask=0)(bucketed)


def input_encoder_fn(input_vocab_size, d_model, n_encoder_layers):
    return tl.Serial(
        tl.Embedding(vocab_size=input_vocab_size, d_feature=d_model),
        [tl.LSTM(n_units=d_model) for _ in range(n_encoder_layers)],
    )


def pre_attention_decoder_fn(mode, target_vocab_size, d_model):
    return tl.Serial(
        tl.ShiftRight(mode=mode),
        tl.Embedding(vocab_size=target_vocab_size, d_feature=d_model),
        tl.LSTM(n_units=d_model),
    )


def prepare_attention_input(encoder_activations, decoder_activations, inputs):
    keys = values = encoder_activations
    queries = decoder_activations
    mask = inputs != 0
    mask = fastnp.reshape(mask, (mask.shape[0], 1, 1, mask.shape[1]))
    mask = mask + fastnp.zeros((1, 1, decoder_activations.shape[1], 1))
    return queries, keys, values, mask


def NMTAttn(
    input_vocab_size=VOCAB_SIZE,
    target_vocab_size=VOCAB_SIZE,
    d_model=32,
    n_encoder_layers=1,
    n_decoder_layers=1,
    n_attention_heads=2,
    attention_dropout=0.0,
    mode="train",
):
    input_encoder = input_encoder_fn(input_vocab_size, d_model, n_encoder_layers)
    pre_attention_decoder = pre_attention_decoder_fn(mode, target_vocab_size, d_model)
    return tl.Serial(
        tl.Select([0, 1, 0, 1]),
        tl.Parallel(input_encoder, pre_attention_decoder),
        tl.Fn("PrepareAttentionInput", prepare_attention_input, n_out=4),
        tl.Residual(
            tl.AttentionQKV(
                d_model, n_heads=n_attention_heads, dropout=attention_dropout, mode=mode
            )
        ),
        tl.Select([0, 2]),
        [tl.LSTM(n_units=d_model) for _ in range(n_decoder_layers)],
        tl.Dense(target_vocab_size),
        tl.LogSoftmax(),
    )


def next_symbol(model, input_tokens, cur_output_tokens, temperature):
    token_length = len(cur_output_tokens)
    padded_length = 2 ** int(np.ceil(np.log2(token_length + 1)))
    padded = cur_output_tokens + [0] * (padded_length - token_length)
    padded_with_batch = np.expand_dims(padded, axis=0)
    output, _ = model((input_tokens, padded_with_batch))
    log_probs = output[0, token_length, :]
    symbol = int(tl.logsoftmax_sample(log_probs, temperature))
    return symbol, float(log_probs[symbol])


def sampling_decode(words, model, temperature=0.0):
    input_tokens = np.array([[*words, EOS]])
    cur_output_tokens, log_prob, cur_output = [], 0.0, 0
    while cur_output != EOS and len(cur_output_tokens) < 10:
        cur_output, log_prob = next_symbol(model, input_tokens, cur_output_tokens, temperature)
        cur_output_tokens.append(cur_output)
    return cur_output_tokens, log_prob


def jaccard_similarity(candidate, reference):
    both, either = set(candidate) & set(reference), set(candidate) | set(reference)
    return len(both) / len(either)


def mbr_decode(words, n_samples, score_fn, model, temperature=0.6):
    samples = [sampling_decode(words, model, temperature)[0] for _ in range(n_samples)]
    scores = [np.mean([score_fn(sample, other) for other in samples]) for sample in samples]
    return samples[int(np.argmax(scores))]


trax.supervised.trainer_lib.init_random_number_generators(35)
random.seed(35)
train_task = training.TrainTask(
    labeled_data=pipeline(0),
    loss_layer=tl.CrossEntropyLoss(),
    optimizer=trax.optimizers.Adam(0.01),
    lr_schedule=trax.lr.warmup_and_rsqrt_decay(50, 0.01),
    n_steps_per_checkpoint=100,
)
eval_task = training.EvalTask(
    labeled_data=pipeline(1), metrics=[tl.CrossEntropyLoss(), tl.Accuracy()], n_eval_batches=4
)
training_loop = training.Loop(
    NMTAttn(mode="train"), train_task, eval_tasks=[eval_task], output_dir="output_dir/"
)
training_loop.run(300)

model = NMTAttn(mode="eval")
model.init_from_file("output_dir/model.pkl.gz", weights_only=True)
translation, log_prob = sampling_decode([5, 9, 4], model)
decode = partial(mbr_decode, n_samples=3, score_fn=jaccard_similarity)
consensus = decode([7, 3], model=model)
fast_model = tl.Accelerate(model)
first_symbols = [
    next_symbol(m, np.array([[5, 9, 4, EOS]]), [], 0.0)[0] for m in (model, fast_model)
]
accuracy = training_loop.history.get("eval", "metrics/Accuracy")[-1][1]
print(accuracy, translation, log_prob, consensus)
