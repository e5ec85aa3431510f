"""A character model of lines: shift, embedding, two GRUs; perplexity, and new lines."""

import itertools
import os
import random as rnd

import numpy
import trax
import trax.fastmath.numpy as np
from trax import layers as tl
from trax.supervised import training

LINES = ["to be or not to be", "that is the question", "whether tis nobler", "in the mind"]
MAX_LENGTH = 24


def line_to_tensor(line, eos_int=1):
    return [ord(c) for c in line] + [eos_int]


def data_generator(batch_size, max_length, data_lines, shuffle=True):
    data_lines, batch = list(data_lines), []
    while True:
        if shuffle:
            rnd.shuffle(data_lines)
        for line in data_lines:
            if len(line) < max_length:
                batch.append(line)
            if len(batch) == batch_size:
                tensors = [line_to_tensor(line) for line in batch]
                padded = np.array([t + [0] * (max_length - len(t)) for t in tensors])
                mask = np.array(padded != 0).astype(np.int32)
                yield padded, padded, mask
                batch = []


def GRULM(vocab_size=256, d_model=32, n_layers=2, mode="train"):
    return tl.Serial(
        tl.ShiftRight(mode=mode),
        tl.Embedding(vocab_size=vocab_size, d_feature=d_model),
        [tl.GRU(n_units=d_model) for _ in range(n_layers)],
        tl.Dense(n_units=vocab_size),
        tl.LogSoftmax(),
    )


def test_model(preds, target):
    log_p = np.sum(preds * tl.one_hot(target, preds.shape[-1]), axis=-1)
    non_pad = 1.0 - np.equal(target, 0)
    log_p = log_p * non_pad
    return -np.mean(np.sum(log_p, axis=-1) / np.sum(non_pad, axis=-1))


def gumbel_sample(log_probs, temperature=1.0):
    u = numpy.random.uniform(low=1e-6, high=1.0 - 1e-6, size=log_probs.shape)
    g = -np.log(-np.log(u))
    return np.argmax(log_probs + g * temperature, axis=-1)


def predict(model, num_chars, prefix):
    inp, result = [ord(c) for c in prefix], list(prefix)
    for _ in range(num_chars):
        cur_inp = np.array(inp + [0] * (MAX_LENGTH - len(inp)))
        outp = model(cur_inp[None, :])
        next_char = int(gumbel_sample(outp[0, len(inp)], temperature=0.0))
        inp.append(next_char)
        if next_char == 1:
            break
        result.append(chr(next_char))
    return "".join(result)


trax.supervised.trainer_lib.init_random_number_generators(32)
output_dir = "model/"
bare_train = data_generator(8, MAX_LENGTH, LINES * 8)
bare_eval = data_generator(8, MAX_LENGTH, LINES * 8)
train_task = training.TrainTask(
    labeled_data=itertools.cycle(bare_train),
    loss_layer=tl.CrossEntropyLoss(),
    optimizer=trax.optimizers.Adam(0.005),
)
eval_task = training.EvalTask(
    labeled_data=itertools.cycle(bare_eval),
    metrics=[tl.CrossEntropyLoss(), tl.Accuracy()],
    n_eval_batches=3,
)
training_loop = training.Loop(GRULM(), train_task, eval_tasks=[eval_task], output_dir=output_dir)
training_loop.run(n_steps=150)

model = GRULM()
model.init_from_file(os.path.join(output_dir, "model.pkl.gz"))
batch = next(data_generator(8, MAX_LENGTH, LINES, shuffle=False))
preds = model(batch[0])
log_ppx = test_model(preds, batch[1])
perplexity = float(np.exp(log_ppx))
line = predict(model, 20, "t")
print(perplexity, repr(line))
