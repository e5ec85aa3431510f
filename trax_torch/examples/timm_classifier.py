"""Trains an image classifier of timm's.

    python -m trax_torch.examples.timm_classifier

It needs `pip install timm torchmetrics scikit-learn` and no download: the images are the 1,797
handwritten digits that scikit-learn ships, made larger. With another model, or `pretrained=True`,
the lines that matter stay as they are. Stopped, and run again with the same `--output-dir`, it goes
on.
"""

import argparse
import functools

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from trax_torch.supervised import EvalTask, Loop, TrainTask

N_HELD_OUT = 297


def main(argv: list[str] | None = None) -> float:
    """Trains, evaluates and saves a classifier.

    Args:
      argv: command-line arguments; by default the process's.

    Returns:
      The share of digits that it was not trained on, and names right.
    """
    args = parse(argv)
    torch.manual_seed(args.seed)
    training, held_out = digits(args.image_size)

    import timm
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from torchmetrics.classification import MulticlassAccuracy

    # The lines that matter:
    model = timm.create_model(args.model, pretrained=False, num_classes=10, in_chans=1)
    order = torch.Generator().manual_seed(args.seed)
    loader = DataLoader(training, args.batch_size, shuffle=True, generator=order)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=args.learning_rate, weight_decay=0.05)
    rates = dict(max_lr=args.learning_rate, total_steps=args.steps + 1)
    schedule = functools.partial(torch.optim.lr_scheduler.OneCycleLR, **rates)
    loss = LabelSmoothingCrossEntropy(0.1)
    task = TrainTask(loader, loss, optimizer, schedule, n_steps_per_checkpoint=args.eval_every)
    metrics = [loss, MulticlassAccuracy(num_classes=10, average="micro")]
    evals = EvalTask(DataLoader(held_out, 99), metrics, metric_names=["loss", "accuracy"])
    loop = Loop(model, task, eval_tasks=evals, output_dir=args.output_dir)
    loop.run(until=args.steps)
    # and that is all.

    accuracy = float(loop.history.get("eval", "metrics/accuracy")[-1][1])
    print(f"{accuracy:.1%} of {N_HELD_OUT} digits are right.")
    print(f"Checkpoints and TensorBoard files are in {args.output_dir}")
    return accuracy


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Returns the settings; each has a default."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="test_resnet", help="the name of a model of timm's")
    parser.add_argument("--image-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=300, help="how many in all")
    parser.add_argument("--eval-every", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output-dir", default="timm_run")
    return parser.parse_args(argv)


def digits(size: int) -> tuple[TensorDataset, TensorDataset]:
    """Returns handwritten digits for training, and those that are held out.

    Args:
      size: of the images, in pixels.
    """
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    x = torch.as_tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    x = F.interpolate(x, size=(size, size), mode="bilinear")
    y = torch.as_tensor(classes)
    return TensorDataset(x[N_HELD_OUT:], y[N_HELD_OUT:]), TensorDataset(
        x[:N_HELD_OUT], y[:N_HELD_OUT]
    )


if __name__ == "__main__":
    main()
