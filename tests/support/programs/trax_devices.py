"""Runs a case of Trax's figures on several devices; each rank takes its rows of every batch."""

import json
import os
import sys

import numpy as np
import torch

from trax_torch import layers as tl
from trax_torch import optimizers, shapes
from trax_torch.supervised import EvalTask, Loop, TrainTask, lr_schedules


def run(folder, name):
    with open(f"{folder}/golden.json") as f:
        (info,) = [case for case in json.load(f)["cases"] if case["case"] == name]
    arrays = np.load(f"{folder}/golden.npz")
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

    def numbered(prefix):
        found = []
        while f"{name}/{prefix}{len(found)}" in arrays:
            found.append(arrays[f"{name}/{prefix}{len(found)}"])
        return found

    def rows(batch):
        return tuple(np.split(item, size)[rank] for item in batch)

    batches = [rows(numbered(f"batch{i}_")) for i in range(info["n_steps"] + 1)]
    weights = numbered("w")
    model = tl.Serial(tl.Dense(16), tl.Tanh(), tl.Dense(weights[-1].shape[-1]))
    model.init(shapes.signature(batches[0][0]), rng=rank)  # rank 0's are the ones that count
    if rank == 0:
        model.weights = tl.unflatten_weights_and_state(weights, [], (model.weights, ()))[0]
    recipe = getattr(optimizers, info["optimizer"])(**info["optimizer_kwargs"])
    schedule = getattr(lr_schedules, info["schedule"])(**info["schedule_kwargs"])
    loop = Loop(
        model,
        TrainTask(iter(batches), getattr(tl, info["loss"])(), recipe, schedule),
        eval_tasks=EvalTask([batches[0]], [getattr(tl, m)() for m in info["metrics"]]),
        eval_at=lambda step: True,
        n_devices=size,
        adasum=info["adasum"],
        device="cpu",
    )
    loop.run(info["n_steps"])
    assert loop.n_devices == size
    assert loop.is_chief == (rank == 0)
    flat = tl.flatten_weights_and_state(model.weights, ())[0]
    return {
        "losses": [v for _, v in loop.history.get("train", f"metrics/{info['loss']}")],
        "gradients_l2": [v for _, v in loop.history.get("train", "training/gradients_l2")],
        "weights_l2": [v for _, v in loop.history.get("train", "training/weights_l2")],
        **{
            f"eval_{m}": [v for _, v in loop.history.get("eval", f"metrics/{m}")]
            for m in info["metrics"]
        },
        **{f"final{i}": w.detach().tolist() for i, w in enumerate(flat)},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, out, *names = sys.argv[1:]
    results = {name: run(folder, name) for name in names}
    with open(f"{out}/rank{os.environ['RANK']}.json", "w") as f:
        json.dump(results, f)
