"""Pictures of one byte a point, and a net of convolutions that tells their kinds."""

import numpy as np
import trax
from trax import layers as tl
from trax.models.resnet import Resnet50
from trax.supervised import training


def pictures(seed):
    """The kind of a picture is where its bright line is."""
    rng = np.random.default_rng(seed)
    while True:
        kind = rng.integers(10)
        picture = rng.integers(0, 60, (20, 20, 1)).astype(np.uint8)
        picture[kind * 2 : kind * 2 + 2] = 250
        yield picture, kind


def pipeline(seed):
    return trax.data.Serial(
        lambda _: pictures(seed), trax.data.Shuffle(queue_size=32), trax.data.Batch(16)
    )()


def build_model():
    return tl.Serial(
        tl.ToFloat(),
        tl.Fn("Scale", lambda x: x / 255.0),
        tl.Conv(8, (3, 3), (1, 1), "SAME"),
        tl.LayerNorm(),
        tl.Relu(),
        tl.MaxPool(),
        tl.Conv(8, (3, 3), (1, 1), "SAME"),
        tl.LayerNorm(),
        tl.Relu(),
        tl.AvgPool(),
        tl.Flatten(),
        tl.Dense(10),
    )


trax.supervised.trainer_lib.init_random_number_generators(40)
backend = trax.fastmath.backend_name()
train_task = training.TrainTask(
    labeled_data=pipeline(0),
    loss_layer=tl.CategoryCrossEntropy(),
    optimizer=trax.optimizers.Adam(0.01),
    n_steps_per_checkpoint=20,
)
eval_task = training.EvalTask(
    labeled_data=pipeline(1),
    metrics=[tl.CategoryCrossEntropy(), tl.CategoryAccuracy()],
    n_eval_batches=8,
)
loop = training.Loop(build_model(), train_task, eval_tasks=[eval_task], output_dir="runs/fashion")
loop.run(60)

picture, kind = next(pictures(2))
told = int(np.argmax(loop.eval_model(picture[None])))
accuracy = loop.history.get("eval", "metrics/CategoryAccuracy")[-1][1]
n_layers = len(Resnet50(d_hidden=8, n_output_classes=10).sublayers)
print(backend, accuracy, told, kind, n_layers)
