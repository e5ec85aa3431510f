"""Names in sentences: an LSTM tags each word; padding is masked by the data pipeline."""

import numpy as np
import trax
from trax import layers as tl
from trax.supervised import training

TAGS = {"O": 0, "B-geo": 1, "B-per": 2}
PAD = 30


def sentences(n, seed):
    """The tag of a word hangs on the word before it."""
    rng = np.random.default_rng(seed)
    x = [list(rng.integers(0, 30, rng.integers(3, 9))) for _ in range(n)]
    return x, [[0, *((w % 3) for w in s[:-1])] for s in x]


def data_generator(batch_size, x, y, pad, shuffle=False):
    order, index = list(range(len(x))), 0
    while True:
        if index == 0 and shuffle:
            np.random.shuffle(order)
        rows = [order[(index + i) % len(x)] for i in range(batch_size)]
        index = (index + batch_size) % len(x)
        longest = max(len(x[r]) for r in rows)
        X, Y = np.full((batch_size, longest), pad), np.full((batch_size, longest), pad)
        for i, r in enumerate(rows):
            X[i, : len(x[r])], Y[i, : len(y[r])] = x[r], y[r]
        yield X, Y


def NER(vocab_size=PAD + 1, d_model=32, tags=TAGS):
    return tl.Serial(
        tl.Embedding(vocab_size, d_model),
        tl.LSTM(d_model),
        tl.Dense(len(tags)),
        tl.LogSoftmax(),
    )


def evaluate_prediction(pred, labels, pad):
    outputs = np.argmax(pred, axis=2)
    mask = labels != pad
    return np.sum(outputs == labels) / float(np.sum(mask))


trax.supervised.trainer_lib.init_random_number_generators(33)
train = data_generator(16, *sentences(64, 0), PAD, True)
held_out = sentences(32, 1)
train_task = training.TrainTask(
    trax.data.inputs.add_loss_weights(train, id_to_mask=PAD),
    loss_layer=tl.CrossEntropyLoss(),
    optimizer=trax.optimizers.Adam(0.01),
)
eval_task = training.EvalTask(
    labeled_data=trax.data.inputs.add_loss_weights(
        data_generator(16, *held_out, PAD), id_to_mask=PAD
    ),
    metrics=[tl.CrossEntropyLoss(), tl.Accuracy()],
    n_eval_batches=2,
)
training_loop = training.Loop(NER(), train_task, eval_tasks=[eval_task], output_dir="model")
training_loop.run(n_steps=150)

model = NER()
model.init(trax.shapes.ShapeDtype((1, 1), dtype=np.int32))
model.init_from_file("model/model.pkl.gz", weights_only=True)
x, y = next(data_generator(32, *held_out, PAD))
accuracy = evaluate_prediction(model(x), y, PAD)

sentence = np.ones((1, 5))
sentence[0] = [3, 4, 5, 6, 7]
output = np.argmax(model(np.array(sentence).astype(int)), axis=2)
labels = list(TAGS)
tagged = [labels[output[0][i]] for i in range(5)]
print(accuracy, tagged)
