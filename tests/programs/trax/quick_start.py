"""The quick start: arrays that differentiate, layers, and reviews from a pipeline of data."""

import os

import numpy as np
import trax
from trax import layers as tl
from trax.fastmath import numpy as fastnp
from trax.supervised import training

GOOD, BAD = ["good", "great", "fine", "loved"], ["bad", "boring", "awful", "hated"]
OTHER = ["the", "movie", "was", "a", "an", "it", "i", "plot", "acting"]


def reviews(n, seed):
    rng = np.random.default_rng(seed)
    while True:
        for _ in range(n):
            label = rng.integers(2)
            words = [*rng.choice(OTHER, rng.integers(2, 12)), rng.choice([BAD, GOOD][label])]
            yield " ".join(words), np.array(label)


def pipeline(seed):
    return trax.data.Serial(
        lambda _: reviews(64, seed),
        trax.data.Tokenize(vocab_type="char", keys=[0]),
        trax.data.Log(only_shapes=True, n_steps_per_example=1000),
        trax.data.Shuffle(),
        trax.data.FilterByLength(max_length=96, length_keys=[0]),
        trax.data.BucketByLength(boundaries=[32, 64], batch_sizes=[32, 32, 32], length_keys=[0]),
        trax.data.AddLossWeights(),
    )()


trax.supervised.trainer_lib.init_random_number_generators(39)
matrix = fastnp.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
vector = fastnp.ones(3)
product = fastnp.dot(vector, matrix)
tanh = fastnp.tanh(product)


def f(x):
    return 2.0 * x * x


gradient = trax.fastmath.grad(f)(5.0)

x = np.arange(15)
embedding = tl.Embedding(vocab_size=20, d_feature=32)
embedding.init(trax.shapes.signature(x))
embedded = embedding(x)

model = tl.Serial(
    tl.Embedding(vocab_size=256, d_feature=32),
    tl.CausalConv(32, kernel_width=5),
    tl.Relu(),
    tl.Max(axis=1),
    tl.Dense(2),
)
train_task = training.TrainTask(
    labeled_data=pipeline(0),
    loss_layer=tl.WeightedCategoryCrossEntropy(),
    optimizer=trax.optimizers.Adam(0.01),
    n_steps_per_checkpoint=50,
)
eval_task = training.EvalTask(
    labeled_data=pipeline(1),
    metrics=[tl.WeightedCategoryCrossEntropy(), tl.WeightedCategoryAccuracy()],
    n_eval_batches=8,
)
output_dir = os.path.expanduser("output_dir/")
training_loop = training.Loop(model, train_task, eval_tasks=[eval_task], output_dir=output_dir)
training_loop.run(100)

example_input = next(pipeline(2))[0][0]
sentiment_log_probs = model(example_input[None, :])
sentiment = np.exp(sentiment_log_probs)
accuracy = training_loop.history.get("eval", "metrics/WeightedCategoryAccuracy")[-1][1]
print(accuracy, sentiment.shape)
