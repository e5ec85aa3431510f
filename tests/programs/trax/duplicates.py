"""Pairs of questions: twin LSTMs, and a triplet loss of one's own with partial and Fn."""

from functools import partial

import numpy as np
import trax
from trax import layers as tl
from trax.fastmath import numpy as fastnp
from trax.supervised import training

VOCAB_SIZE = 40


def data_generator(batch_size, seed):
    """The second question is the first, but for a word in three."""
    rng = np.random.default_rng(seed)
    while True:
        first = rng.integers(2, VOCAB_SIZE, (batch_size, 8))
        second = first.copy()
        second[:, ::3] = rng.integers(2, VOCAB_SIZE, second[:, ::3].shape)
        yield np.array(first), np.array(second)


def Siamese(vocab_size=VOCAB_SIZE, d_model=32, mode="train"):
    def normalize(x):
        return x / fastnp.sqrt(fastnp.sum(x * x, axis=-1, keepdims=True))

    q_processor = tl.Serial(
        tl.Embedding(vocab_size, d_model),
        tl.LSTM(d_model),
        tl.Mean(axis=1),
        tl.Fn("Normalize", lambda x: normalize(x)),
    )
    return tl.Parallel(q_processor, q_processor)


def TripletLossFn(v1, v2, margin=0.25):
    scores = fastnp.dot(v1, v2.T)
    batch_size = len(scores)
    positive = fastnp.diagonal(scores)
    negative_without_positive = scores - 2.0 * fastnp.eye(batch_size)
    closest_negative = negative_without_positive.max(axis=1)
    negative_zero_on_duplicate = scores * (1.0 - fastnp.eye(batch_size))
    mean_negative = fastnp.sum(negative_zero_on_duplicate, axis=1) / (batch_size - 1)
    triplet_loss1 = fastnp.maximum(0.0, margin - positive + closest_negative)
    triplet_loss2 = fastnp.maximum(0.0, margin - positive + mean_negative)
    return fastnp.mean(triplet_loss1 + triplet_loss2)


def TripletLoss(margin=0.25):
    return tl.Fn("TripletLoss", partial(TripletLossFn, margin=margin))


trax.supervised.trainer_lib.init_random_number_generators(34)
v1 = np.array([[0.26726124, 0.53452248, 0.80178373], [0.5178918, 0.57543534, 0.63297887]])
v2 = np.array([[0.26726124, 0.53452248, 0.80178373], [-0.5178918, -0.57543534, -0.63297887]])
checked = TripletLossFn(v2, v1), TripletLoss()((v2, v1))

train_task = training.TrainTask(
    labeled_data=data_generator(32, 0),
    loss_layer=TripletLoss(),
    optimizer=trax.optimizers.Adam(0.01),
    lr_schedule=trax.lr.warmup_and_rsqrt_decay(20, 0.01),
)
eval_task = training.EvalTask(labeled_data=data_generator(32, 1), metrics=[TripletLoss()])
training_loop = training.Loop(Siamese(), train_task, eval_tasks=[eval_task], output_dir="model")
training_loop.run(120)

model = Siamese()
model.init_from_file("model/model.pkl.gz")
q1, q2 = next(data_generator(64, 2))
out1, out2 = model((q1, q2))
others = np.roll(np.arange(64), 1)
right = 0
for j in range(64):
    right += float(np.dot(out1[j], out2[j].T)) > 0.7
    right += float(np.dot(out1[j], out2[others[j]].T)) < 0.7
accuracy = right / 128
print(accuracy)
