"""Dialogues, word by word, with a reversible decoder; its state is put back between them."""

import numpy as np
import trax
from trax import layers as tl
from trax.supervised import lr_schedules, training

VOCAB_SIZE = 16


def dialogues(seed):
    """One speaker counts, the other goes on."""
    rng = np.random.default_rng(seed)
    while True:
        start = rng.integers(1, 8)
        yield np.arange(start, start + 8), np.arange(start, start + 8)


def pipeline(seed):
    return trax.data.Serial(
        lambda _: dialogues(seed),
        trax.data.Shuffle(queue_size=64),
        trax.data.FilterByLength(max_length=8),
        trax.data.BucketByLength(boundaries=[8], batch_sizes=[32, 32]),
        trax.data.AddLossWeights(id_to_mask=0),
    )()


def ReformerLM(mode="train", attention_type=tl.SelfAttention):
    return trax.models.reformer.ReformerLM(
        vocab_size=VOCAB_SIZE,
        d_model=32,
        d_ff=64,
        d_attention_key=16,
        d_attention_value=16,
        n_layers=2,
        n_heads=2,
        dropout=0.0,
        max_len=64,
        attention_type=attention_type,
        mode=mode,
    )


trax.supervised.trainer_lib.init_random_number_generators(38)
key = trax.fastmath.random.get_prng(0)
noise = trax.fastmath.random.uniform(key=key, shape=(4,))

train_task = training.TrainTask(
    labeled_data=pipeline(0),
    loss_layer=tl.WeightedCategoryCrossEntropy(),
    optimizer=trax.optimizers.Adam(0.01),
    lr_schedule=lr_schedules.warmup_and_rsqrt_decay(n_warmup_steps=50, max_value=0.01),
    n_steps_per_checkpoint=50,
)
eval_task = training.EvalTask(
    labeled_data=pipeline(1),
    metrics=[tl.WeightedCategoryCrossEntropy(), tl.WeightedCategoryAccuracy()],
)
loop = training.Loop(
    ReformerLM(mode="train"), train_task, eval_tasks=[eval_task], output_dir="model"
)
loop.run(150)

model = ReformerLM(mode="predict")
shape11 = trax.shapes.ShapeDtype((1, 1), dtype=np.int32)
model.init_from_file("model/model.pkl.gz", weights_only=True, input_signature=shape11)
STARTING_STATE = model.state


def goes_on(tokens, n):
    result = [np.array(tokens)]
    stream = trax.supervised.decoding.autoregressive_sample_stream(
        model, inputs=np.array(tokens)[None, :], temperature=0.0
    )
    for _ in range(n):
        result.append(next(stream))
    return np.concatenate(result, axis=0)


first = goes_on([3, 4, 5], 4)
model.state = STARTING_STATE
second = goes_on([6, 7, 8], 4)
accuracy = loop.history.get("eval", "metrics/WeightedCategoryAccuracy")[-1][1]
print(accuracy, first, second)
