"""What a step costs in this loop and in others', over a loop written by hand.

    pip install -r benchmarks/requirements-peers.txt
    python benchmarks/bench_loops.py [--steps N] [--rounds N] [--only loop,lightning] [--models mlp]

The same model, loss, AdamW and rows in each: an MLP of three layers of 64, batch 32, and a small
language model, batch 8 x 64. Three ways: with a DataLoader over a TensorDataset, its batches in the
time; without, where one batch comes again and again; and with the DataLoader, the loss logged every
10 steps and a progress bar. Loops take turns, round by round, each from the same weights, so that
what the machine does meanwhile hits all. What a loop does once a run is not counted: a run of a
tenth of the steps, timed right before, is taken off. Before anything is timed, what each has
learned in a few steps is compared with what the loop by hand has: "off", relative to how far
weights went.
"""

import argparse
import contextlib
import copy
import importlib.util
import io
import itertools
import json
import logging
import os
import pathlib
import statistics
import sys
import tempfile
import time
import warnings

os.environ.setdefault("KERAS_BACKEND", "torch")

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from trax_torch.supervised import Loop, TrainTask

RATE = 1e-3
WAYS = ("loader", "one batch", "logged")
NEEDS = {
    "loop": None,
    "lightning": "lightning",
    "hugging face": "transformers",
    "accelerate": "accelerate",
    "keras": "keras",
}


class LanguageModel(nn.Module):
    """One layer of attention; logits are (batch, classes, length), as cross_entropy takes them."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(256, 64)
        self.block = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.head = nn.Linear(64, 256)

    def forward(self, tokens):
        n = tokens.shape[1]
        mask = torch.full((n, n), float("-inf"), device=tokens.device).triu(1)
        return self.head(self.block(self.embedding(tokens), mask)).transpose(1, 2)


def mlp():
    torch.manual_seed(0)
    layers = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)]
    x = torch.randn(8192, 64)
    return nn.Sequential(*layers), TensorDataset(x, x[:, :10].argmax(1)), 32


def language_model():
    torch.manual_seed(0)
    tokens = torch.randint(0, 256, (1024, 65))
    return LanguageModel(), TensorDataset(tokens[:, :-1], tokens[:, 1:]), 8


class OneBatch(torch.utils.data.IterableDataset):
    """A batch without end, or so many times; a DataLoader passes it on as it is."""

    def __init__(self, batch, n=None):
        self.batch = batch
        self.n = n

    def __iter__(self):
        return (
            itertools.repeat(self.batch) if self.n is None else itertools.repeat(self.batch, self.n)
        )


def data_of(way, rows, batch_size):
    """What all loops draw from; rows in order, so that all see the same."""
    if way == "one batch":
        batch = tuple(t[:batch_size] for t in rows.tensors)
        return DataLoader(OneBatch(batch), batch_size=None)
    return DataLoader(rows, batch_size)


def forever(loader):
    while True:
        yield from loader


# The loops: each returns a function that trains for n steps from where it is.


def by_hand(model, rows, batch_size, way):
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    batches = forever(data_of(way, rows, batch_size))
    model.train()

    def run(n_steps):
        for _ in range(n_steps):
            x, y = next(batches)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()

    return run


def by_hand_logged(model, rows, batch_size, way):
    """With what people write: tqdm, and TensorBoard every 10 steps."""
    from torch.utils.tensorboard import SummaryWriter
    from tqdm import tqdm

    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    batches = forever(data_of(way, rows, batch_size))
    writer, done = SummaryWriter(tempfile.mkdtemp()), 0
    model.train()

    def run(n_steps):
        nonlocal done
        for _ in tqdm(range(n_steps)):
            x, y = next(batches)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            done += 1
            if done % 10 == 0:
                writer.add_scalar("loss", loss.item(), done)

    return run


def by_loop(model, rows, batch_size, way):
    batch = tuple(t[:batch_size] for t in rows.tensors)
    task = TrainTask(
        data_of(way, rows, batch_size),
        nn.CrossEntropyLoss(),
        torch.optim.AdamW(model.parameters(), RATE),
        n_steps_per_checkpoint=None,
        sample_batch=batch,
    )
    logged = way == "logged"
    more = {"log_every": 10, "output_dir": tempfile.mkdtemp()} if logged else {}
    loop = Loop(
        model, task, random_seed=0, progress=logged, save_at_end=False, device="cpu", **more
    )
    return loop.run


def by_accelerate(model, rows, batch_size, way):
    import accelerate

    accelerator = accelerate.Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    loader = data_of(way, rows, batch_size)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    batches, done = forever(loader), 0
    model.train()
    if way == "logged":
        from torch.utils.tensorboard import SummaryWriter
        from tqdm import tqdm

        writer = SummaryWriter(tempfile.mkdtemp())

    def run(n_steps):
        nonlocal done
        steps = range(n_steps)
        for _ in tqdm(steps) if way == "logged" else steps:
            x, y = next(batches)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            accelerator.backward(loss)
            optimizer.step()
            done += 1
            if way == "logged" and done % 10 == 0:
                writer.add_scalar("loss", loss.item(), done)

    return run


def by_lightning(model, rows, batch_size, way):
    import lightning

    logged = way == "logged"

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model

        def training_step(self, batch, index):
            x, y = batch
            loss = F.cross_entropy(self.model(x), y)
            if logged:
                self.log("loss", loss, prog_bar=True)
            return loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), RATE)

    module, loader = Module(), data_of(way, rows, batch_size)

    def run(n_steps):
        if logged:
            from lightning.pytorch.loggers import TensorBoardLogger

            logger = TensorBoardLogger(tempfile.mkdtemp())
        trainer = lightning.Trainer(
            max_steps=n_steps,
            max_epochs=-1,
            accelerator="cpu",
            logger=logger if logged else False,
            log_every_n_steps=10,
            enable_progress_bar=logged,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader)

    return run


def by_hugging_face(model, rows, batch_size, way):
    import transformers

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x, labels):
            return {"loss": F.cross_entropy(self.model(x), labels)}

    class Trainer(transformers.Trainer):
        def get_train_dataloader(self):
            loader = data_of(way, rows, batch_size)
            plain = loader.collate_fn
            loader.collate_fn = lambda batch: dict(zip(("x", "labels"), plain(batch), strict=True))
            return loader

    logged, named = way == "logged", Named()

    def run(n_steps):
        settings = transformers.TrainingArguments(
            output_dir=tempfile.mkdtemp(),
            max_steps=n_steps,
            per_device_train_batch_size=batch_size,
            learning_rate=RATE,
            weight_decay=0.01,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="steps" if logged else "no",
            logging_steps=10,
            report_to=["tensorboard"] if logged else [],
            disable_tqdm=not logged,
            optim="adamw_torch",
        )
        optimizer = torch.optim.AdamW(named.parameters(), RATE)
        Trainer(named, settings, train_dataset=rows, optimizers=(optimizer, None)).train()

    return run


def by_keras(model, rows, batch_size, way):
    import keras

    logged = way == "logged"
    layer = keras.layers.TorchModuleWrapper(model)
    network = keras.Sequential([layer])

    def loss(y, logits):
        return F.cross_entropy(logits, y.long().reshape(logits.shape[:1] + logits.shape[2:]))

    network.compile(
        optimizer=keras.optimizers.AdamW(RATE, weight_decay=0.01, epsilon=1e-8), loss=loss
    )
    batches = (tuple(batch) for batch in forever(data_of(way, rows, batch_size)))
    callbacks = []
    if logged:  # Keras' own callback for TensorBoard asks for TensorFlow
        from torch.utils.tensorboard import SummaryWriter

        writer, done = SummaryWriter(tempfile.mkdtemp()), itertools.count(1)

        def write(batch, logs):
            if (step := next(done)) % 10 == 0:
                writer.add_scalar("loss", float(logs["loss"]), step)

        callbacks = [keras.callbacks.LambdaCallback(on_train_batch_end=write)]

    def run(n_steps):
        network.fit(batches, steps_per_epoch=n_steps, verbose=int(logged), callbacks=callbacks)

    return run


MAKERS = {
    "loop": by_loop,
    "lightning": by_lightning,
    "hugging face": by_hugging_face,
    "accelerate": by_accelerate,
    "keras": by_keras,
}


@contextlib.contextmanager
def quietly():
    """Keeps what loops print, their bars too, from the terminal; it is made all the same."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def seconds(run, n_steps):
    start = time.perf_counter()
    with quietly():
        run(n_steps)
    return time.perf_counter() - start


def per_step(run, n_steps):
    """Seconds a step, without what a run costs once."""
    few = max(1, n_steps // 10)
    short = seconds(run, few)
    return (seconds(run, n_steps + few) - short) / n_steps


def difference(make, maker, way):
    """How far weights are from those of a loop by hand after five steps, relative to a step."""
    model, rows, batch_size = make()
    before = copy.deepcopy(model)
    twin = copy.deepcopy(model)
    with quietly():
        maker(model, rows, batch_size, way)(5)
    by_hand(twin, rows, batch_size, way)(5)
    pairs = zip(model.parameters(), twin.parameters(), before.parameters(), strict=True)
    far = [((a - b).norm() / (b - c).norm()).item() for a, b, c in pairs]
    return max(far)


def measure(name, make, way, peers, n_steps, n_rounds):
    """Returns a row for each loop."""
    hand = by_hand_logged if way == "logged" else by_hand
    runs, off = {}, {}
    for peer, maker in {"by hand": hand, **peers}.items():
        off[peer] = difference(make, maker, way)
        with quietly():
            runs[peer] = maker(*make(), way)
            runs[peer](max(1, n_steps // 10))  # warm up
    times = {peer: [] for peer in runs}
    for i in range(n_rounds):
        order = list(runs)
        for peer in order[i % len(order) :] + order[: i % len(order)]:
            times[peer].append(1e6 * per_step(runs[peer], n_steps))
    base = statistics.median(times["by hand"])
    rows = []
    for peer, found in times.items():
        more = [a - b for a, b in zip(found, times["by hand"], strict=True)]
        rows.append(
            {
                "model": name,
                "way": way,
                "loop": peer,
                "us_a_step": statistics.median(found),
                "quartiles": quartiles(found),
                "us_over_by_hand": statistics.median(more),
                "us_over_quartiles": quartiles(more),
                "times_by_hand": statistics.median(found) / base,
                "weights_off": off[peer],
            }
        )
    return rows


def quartiles(values):
    if len(values) < 2:
        return [values[0], values[0]]
    low, _, high = statistics.quantiles(values, n=4)
    return [low, high]


def found_peers(only):
    """Returns the loops to be timed; what is not installed is named and left out."""
    # Some peers import torchvision where it is, which torch's small build may not do.
    sys.path.append(str(pathlib.Path(__file__).parents[1] / "tests" / "support"))
    importlib.import_module("small_torchvision").install()
    peers = {}
    for peer, maker in MAKERS.items():
        if only and peer not in only:
            continue
        if NEEDS[peer] is not None and importlib.util.find_spec(NEEDS[peer]) is None:
            print(f"{peer}: {NEEDS[peer]} is not installed, left out", file=sys.stderr)
            continue
        peers[peer] = maker
    return peers


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=500, help="steps a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", help=f"loops, by commas, of {', '.join(MAKERS)}")
    parser.add_argument("--models", default="mlp,lm", help="mlp, lm, or both")
    parser.add_argument("--ways", default=",".join(WAYS), help=f"of {', '.join(WAYS)}")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    for name in ("lightning", "lightning.pytorch", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    peers = found_peers(args.only and [name.strip() for name in args.only.split(",")])
    kinds = {"mlp": mlp, "lm": language_model}
    rows = []
    print(f"torch {torch.__version__}, {args.threads} threads, {args.rounds} rounds, in turn")
    print(f"{'':6}{'':11}{'':14}{'us a step':>11}{'(quartiles)':>20}{'over':>9}{'times':>8}  off")
    for model, way in itertools.product(args.models.split(","), args.ways.split(",")):
        for r in measure(model, kinds[model], way, peers, args.steps, args.rounds):
            rows.append(r)
            low, high = r["quartiles"]
            print(
                f"{r['model']:6}{r['way']:11}{r['loop']:14}{r['us_a_step']:11.0f}"
                f"{f'({low:.0f} to {high:.0f})':>20}{r['us_over_by_hand']:9.0f}"
                f"{r['times_by_hand']:8.2f}  {r['weights_off']:.0e}",
                flush=True,
            )
    print(json.dumps({"torch": torch.__version__, "threads": args.threads, "rows": rows}))


if __name__ == "__main__":
    main()
