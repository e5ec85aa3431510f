"""What of other libraries is trained in the loop as it is: the rows of docs/ecosystem.md.

Each row makes a setup twice alike: one for a loop written by hand, one for Loop.
"""

import dataclasses
import functools
import io
import json
import tarfile
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

N_ROWS, BATCH_SIZE = 24, 4


@dataclasses.dataclass
class Setup:
    """What a run is made of.

    Attributes:
      model: the module.
      data: what batches come from.
      loss: as TrainTask takes it.
      optimizer: of the model's parameters.
      loss_by_hand: computes the loss of a batch as a loop written by hand does.
      lr_schedule: a maker of a scheduler, if there is one.
    """

    model: nn.Module
    data: Iterable[Any]
    loss: Any
    optimizer: torch.optim.Optimizer
    loss_by_hand: Callable[[nn.Module, Any], torch.Tensor]
    lr_schedule: Callable[[Any], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
      package: its name for pip.
      what: what of it is run.
      build: makes a setup for a member and a rate of dropout.
      members: what of that kind is run, each for itself; what the table lists.
      module: what to import; a test is skipped without it.
    """

    package: str
    what: str
    build: Callable[[str, float], Setup]
    members: tuple[str, ...]
    module: str

    def setup(self, member: str, dropout: float = 0.0) -> Setup:
        """Makes a setup, each time the same."""
        torch.manual_seed(0)
        return self.build(member, dropout)


ROWS: list[Row] = []


def row(package: str, what: str, *members: str, module: str | None = None) -> Any:
    """Makes a function that builds setups a row of the table."""

    def add(build: Callable[[str, float], Setup]) -> Callable[[str, float], Setup]:
        ROWS.append(Row(package, what, build, members, module or package.replace("-", "_")))
        return build

    return add


# Data and models that several rows share


def points() -> TensorDataset:
    """Rows of 6 numbers, and one of 3 classes."""
    x = torch.randn(N_ROWS, 6)
    return TensorDataset(x, x[:, :3].argmax(dim=1))


def in_order(rows: Any, kind: Any = DataLoader, **settings: Any) -> Any:
    """A loader that shuffles by a generator of its own."""
    order = torch.Generator().manual_seed(1)
    return kind(rows, batch_size=BATCH_SIZE, shuffle=True, generator=order, **settings)


def mlp(dropout: float) -> nn.Sequential:
    """A small classifier with statistics of batches."""
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3)
    )


def of_two(model: nn.Module, batch: Any) -> torch.Tensor:
    """Cross-entropy of a batch of inputs and classes."""
    return F.cross_entropy(model(batch[0]), batch[1])


def plain(optimizer: Callable[[Any], Any], dropout: float, data: Any = None, **more: Any) -> Setup:
    """The small classifier with an optimizer."""
    model = mlp(dropout)
    data = in_order(points()) if data is None else data
    return Setup(model, data, nn.CrossEntropyLoss(), optimizer(model.parameters()), of_two, **more)


def sgd(params: Any) -> torch.optim.Optimizer:
    """Momentum is a state to be kept."""
    return torch.optim.SGD(params, 0.1, momentum=0.9)


def sentences(**columns: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Rows of tokens with a mask, and more columns."""
    tokens = torch.randint(3, 40, (N_ROWS, 8))
    mask = (torch.arange(8) < torch.randint(4, 9, (N_ROWS, 1))).long()
    columns = {"input_ids": tokens, "attention_mask": mask, **columns}
    return [{name: x[i] for name, x in columns.items()} for i in range(N_ROWS)]


def own_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    """What the model computes, called by name."""
    loss: torch.Tensor = model(**batch).loss
    return loss


# torch itself


@row(
    "torch",
    "optimizers",
    *("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta"),
    *("RMSprop", "ASGD", "Rprop", "Adafactor"),
)
def torch_optimizers(member, dropout):
    return plain(lambda params: getattr(torch.optim, member)(params, lr=0.01), dropout)


SCHEDULERS = {
    "StepLR": {"step_size": 2},
    "MultiStepLR": {"milestones": [2, 4]},
    "ExponentialLR": {"gamma": 0.9},
    "CosineAnnealingLR": {"T_max": 8},
    "CosineAnnealingWarmRestarts": {"T_0": 3},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 2},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 20},
    "PolynomialLR": {"total_iters": 8},
}


@row("torch", "schedulers", *SCHEDULERS)
def torch_schedulers(member, dropout):
    kind = getattr(torch.optim.lr_scheduler, member)
    maker = functools.partial(kind, **SCHEDULERS[member])
    return plain(sgd, dropout, lr_schedule=maker)


# Optimizers of others


@row("pytorch-optimizer", "optimizers", "AdaBelief", "Adan", "Lamb", "Lion", "Prodigy", "Ranger21")
def more_optimizers(member, dropout):
    import pytorch_optimizer

    more = {"num_iterations": 20} if member == "Ranger21" else {}
    kind = getattr(pytorch_optimizer, member)
    return plain(lambda params: kind(params, lr=0.01, **more), dropout)


@row(
    "schedulefree",
    "optimizers, after their train()",
    *("AdamWScheduleFree", "SGDScheduleFree", "RAdamScheduleFree"),
)
def schedule_free(member, dropout):
    import schedulefree

    setup = plain(lambda params: getattr(schedulefree, member)(params, lr=0.01), dropout)
    setup.optimizer.train()
    return setup


# Hugging Face


def transformer(member: str, dropout: float) -> nn.Module:
    """A tiny model with random weights."""
    import transformers

    if member.startswith("GPT2"):
        config = transformers.GPT2Config(
            **{"vocab_size": 40, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2},
            **{"attn_pdrop": dropout, "embd_pdrop": dropout, "resid_pdrop": dropout},
            **{"bos_token_id": 1, "eos_token_id": 2},
        )
    elif member.startswith("Bert"):
        config = transformers.BertConfig(
            **{"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_labels": 3},
            **{"num_attention_heads": 2, "intermediate_size": 32, "hidden_dropout_prob": dropout},
            attention_probs_dropout_prob=dropout,
        )
    elif member.startswith("T5"):
        config = transformers.T5Config(
            **{"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1},
            **{"num_heads": 2, "dropout_rate": dropout, "decoder_start_token_id": 0},
        )
    else:
        config = transformers.LlamaConfig(
            **{"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32},
            **{"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1},
            **{"attention_dropout": dropout, "bos_token_id": 1, "eos_token_id": 2},
        )
    model: nn.Module = getattr(transformers, member)(config)
    return model


@row(
    "transformers",
    "models with their own loss, from dicts with masks",
    *("GPT2LMHeadModel", "LlamaForCausalLM", "BertForSequenceClassification"),
    "T5ForConditionalGeneration",
)
def transformers_models(member, dropout):
    model = transformer(member, dropout)
    shape = (N_ROWS,) if member.startswith("Bert") else (N_ROWS, 8)
    rows = sentences(labels=torch.randint(0, 3, shape))
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    return Setup(model, in_order(rows), None, optimizer, own_loss)


@row(
    "transformers",
    "schedules",
    *("get_linear_schedule_with_warmup", "get_cosine_schedule_with_warmup"),
)
def transformers_schedules(member, dropout):
    import transformers

    maker = functools.partial(
        getattr(transformers, member), num_warmup_steps=2, num_training_steps=20
    )
    return plain(sgd, dropout, lr_schedule=maker)


@row("transformers", "padding collators with their tokenizer", "DataCollatorWithPadding")
def transformers_collators(member, dropout):
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *"abcdefghij"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    )
    texts = [" ".join("abcdefghij"[: 2 + i % 7]) for i in range(N_ROWS)]
    rows = [{**tokenizer(text), "labels": i % 3} for i, text in enumerate(texts)]
    collate = getattr(transformers, member)(tokenizer)
    model = transformer("BertForSequenceClassification", dropout)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    return Setup(model, in_order(rows, collate_fn=collate), None, optimizer, own_loss)


@row("peft", "adapters of a causal model", "LoraConfig", "IA3Config")
def peft_adapters(member, dropout):
    import peft

    more = {"lora_dropout": dropout} if member == "LoraConfig" else {}
    config = getattr(peft, member)(task_type="CAUSAL_LM", fan_in_fan_out=True, **more)
    model = peft.get_peft_model(transformer("GPT2LMHeadModel", dropout), config)
    rows = sentences(labels=torch.randint(0, 40, (N_ROWS, 8)))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.01)
    return Setup(model, in_order(rows), None, optimizer, own_loss)


@row("datasets", "map-style data, in torch's format", "Dataset")
def datasets_rows(member, dropout):
    import datasets

    x, y = points().tensors
    rows = datasets.Dataset.from_dict({"x": x.tolist(), "y": y.tolist()}).with_format("torch")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = mlp(dropout)

        def forward(self, x):
            return self.layers(x)

    model = Net()

    def by_hand(model, batch):
        return F.cross_entropy(model(batch["x"]), batch["y"])

    loss = lambda outputs, batch: F.cross_entropy(outputs, batch["y"])  # noqa: E731 (as users do)
    return Setup(model, in_order(rows), loss, sgd(model.parameters()), by_hand)


@row("accelerate", "prepared loaders", "Accelerator.prepare_data_loader")
def accelerate_loaders(member, dropout):
    import accelerate

    loader = accelerate.Accelerator(cpu=True).prepare_data_loader(in_order(points()))
    return plain(sgd, dropout, data=loader)


# Images


@row("timm", "models with a loss and optimizer of timm's", "resnet10t", "vit_tiny_patch16_224")
def timm_models(member, dropout):
    import timm
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2

    more = {"drop_rate": dropout}
    if member.startswith("vit"):
        more |= {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 1}
    model = timm.create_model(member, pretrained=False, num_classes=3, **more)
    images = TensorDataset(torch.randn(N_ROWS, 3, 32, 32), torch.arange(N_ROWS) % 3)
    loss = LabelSmoothingCrossEntropy(0.1)

    def by_hand(model, batch):
        return loss(model(batch[0]), batch[1])

    optimizer = create_optimizer_v2(model, opt="adamw", lr=0.01, weight_decay=0.05)
    return Setup(model, in_order(images), loss, optimizer, by_hand)


# Data


@row("torchdata", "loaders with a state", "StatefulDataLoader")
def stateful_loader(member, dropout):
    from torchdata.stateful_dataloader import StatefulDataLoader

    return plain(sgd, dropout, data=in_order(points(), StatefulDataLoader))


@row("webdataset", "tar files in batches", "WebDataset")
def tar_files(member, dropout):
    import webdataset
    from webdataset.gopen import gopen_schemes

    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for i, (x, y) in enumerate(zip(*points().tensors, strict=True)):
            for kind, value in (("json", x.tolist()), ("cls", int(y))):
                text = json.dumps(value).encode()
                entry = tarfile.TarInfo(f"{i:04d}.{kind}")
                entry.size = len(text)
                tar.addfile(entry, io.BytesIO(text))
    gopen_schemes["memory"] = lambda url, mode, size: io.BytesIO(content.getvalue())
    rows = webdataset.WebDataset("memory://rows.tar", shardshuffle=False)
    rows = rows.decode().to_tuple("json", "cls").map_tuple(torch.tensor, torch.tensor)
    return plain(sgd, dropout, data=DataLoader(rows, batch_size=BATCH_SIZE))


@row("torch-geometric", "batches of graphs, which models take whole", "GCNConv", "SAGEConv")
def graphs(member, dropout):
    import torch_geometric
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader as GraphLoader

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = getattr(torch_geometric.nn, member)(6, 8)
            self.last = nn.Linear(8, 3)
            self.dropout = nn.Dropout(dropout)

        def forward(self, data):
            x = self.dropout(self.first(data.x, data.edge_index).relu())
            return self.last(torch_geometric.nn.global_mean_pool(x, data.batch))

    ring = torch.stack([torch.arange(5), (torch.arange(5) + 1) % 5])
    data = [Data(x=torch.randn(5, 6), edge_index=ring, y=i % 3) for i in range(N_ROWS)]
    model = Net()

    def by_hand(model, batch):
        return F.cross_entropy(model(batch), batch.y)

    loss = lambda outputs, batch: F.cross_entropy(outputs, batch.y)  # noqa: E731 (as users do)
    loader = in_order(data, GraphLoader)
    return Setup(model, loader, loss, sgd(model.parameters()), by_hand)


@row("opacus", "gradients clipped row by row, without noise", "PrivacyEngine.make_private")
def private(member, dropout):
    import opacus

    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3))
    model, optimizer, loader = opacus.PrivacyEngine().make_private(
        **{"module": model, "optimizer": sgd(model.parameters()), "max_grad_norm": 0.5},
        **{"data_loader": in_order(points()), "poisson_sampling": False},
        noise_multiplier=0.0,  # drawn in the optimizer's step, from torch's own generator
    )
    return Setup(model, loader, nn.CrossEntropyLoss(), optimizer, of_two)
