"""Tweets, happy or sad: layers written by hand, then an embedding, a mean and a classifier."""

import random as rnd

import trax
import trax.fastmath.numpy as np
from trax import fastmath
from trax import layers as tl
from trax.supervised import training

random = fastmath.random

HAPPY = ["good", "nice", "happy", "great", "fun"]
SAD = ["bad", "sad", "awful", "poor", "sick"]
OTHER = ["day", "work", "the", "a", "is", "this", "my", "it"]
VOCAB = {"__PAD__": 0, "__</e>__": 1, "__UNK__": 2}
for word in HAPPY + SAD + OTHER:
    VOCAB[word] = len(VOCAB)
VOCAB_SIZE = len(VOCAB)


class Relu(tl.Layer):
    def forward(self, x):
        return np.maximum(x, 0)


class Dense(tl.Layer):
    def __init__(self, n_units, init_stdev=0.1):
        super().__init__()
        self._n_units = n_units
        self._init_stdev = init_stdev

    def forward(self, x):
        return np.dot(x, self.weights)

    def init_weights_and_state(self, input_signature):
        shape = (input_signature.shape[-1], self._n_units)
        key = random.get_prng(seed=0)
        self.weights = self._init_stdev * random.normal(key=key, shape=shape)


def tweets(mood, n):
    return [[*rnd.choices(OTHER, k=rnd.randint(1, 5)), rnd.choice(mood)] for _ in range(n)]


def tweet_to_tensor(tweet, unk_token="__UNK__"):
    return [VOCAB.get(word, VOCAB[unk_token]) for word in tweet]


def data_generator(positive, negative, batch_size, loop=True, shuffle=False):
    half, index = batch_size // 2, 0
    while True:
        if index + half > len(positive):
            if not loop:
                return
            index = 0
            if shuffle:
                rnd.shuffle(positive)
                rnd.shuffle(negative)
        batch = positive[index : index + half] + negative[index : index + half]
        index += half
        longest = max(len(t) for t in batch)
        tensors = [tweet_to_tensor(t) for t in batch]
        inputs = np.array([t + [0] * (longest - len(t)) for t in tensors])
        targets = np.array([1] * half + [0] * half)
        yield inputs, targets, np.ones_like(targets)


def classifier(vocab_size=VOCAB_SIZE, embedding_dim=16, output_dim=2, mode="train"):
    return tl.Serial(
        tl.Embedding(vocab_size=vocab_size, d_feature=embedding_dim),
        tl.Mean(axis=1),
        tl.Dense(n_units=output_dim),
        tl.LogSoftmax(),
    )


def compute_accuracy(preds, y, y_weights):
    is_pos = preds[:, 1] > preds[:, 0]
    correct = (is_pos.astype(np.int32) == y).astype(np.float32)
    return np.sum(correct * y_weights) / np.sum(y_weights), np.sum(y_weights)


def predict(model, sentence):
    inputs = np.array(tweet_to_tensor(sentence.split()))[None, :]
    preds = model(inputs)
    return int(preds[0, 1] > preds[0, 0])


rnd.seed(271)
dense = Dense(n_units=10)
dense.init(np.array([[2.0, 7.0, 25.0]]))
made_by_hand = Relu()(dense(np.array([[2.0, 7.0, 25.0]])))
slope = fastmath.grad(lambda x: 3 * x**2)(5.0)

train_pos, train_neg = tweets(HAPPY, 60), tweets(SAD, 60)
train_task = training.TrainTask(
    labeled_data=data_generator(train_pos, train_neg, 16, shuffle=True),
    loss_layer=tl.CrossEntropyLoss(),
    optimizer=trax.optimizers.Adam(0.01),
    n_steps_per_checkpoint=25,
)
eval_task = training.EvalTask(
    labeled_data=data_generator(tweets(HAPPY, 20), tweets(SAD, 20), 16),
    metrics=[tl.CrossEntropyLoss(), tl.Accuracy()],
)
training_loop = training.Loop(classifier(), train_task, eval_task=eval_task, output_dir="model")
training_loop.run(n_steps=100)

model = training_loop.eval_model
right = count = 0.0
for inputs, targets, weights in data_generator(tweets(HAPPY, 24), tweets(SAD, 24), 16, loop=False):
    accuracy, n = compute_accuracy(model(inputs), targets, weights)
    right, count = right + accuracy * n, count + n
test_accuracy = right / count
answers = predict(model, "this is a great day"), predict(model, "my work is awful")
print(test_accuracy, answers)
