"""What ranks that hold parts of weights bring together at a time, however a model is written."""

import functools
import types

import numpy as np
import pytest
import ranks
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from toys import history_of

from trax_torch import _distributed
from trax_torch import layers as tl
from trax_torch.supervised import Loop, TrainTask
from trax_torch.supervised._loop import shard_groups

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

ALONE = _distributed.World(0, 1, torch.device("cpu"))


def groups(model, *inputs):
    """The names of the groups of a model, and of the weights that are kept whole."""
    found = shard_groups.find(model, [lambda: model(*inputs)], ALONE)
    modules = {id(m): name for name, m in model.named_modules()}
    names = {id(p): name for name, p in model.named_parameters()}
    return [modules[id(m)] for m in found.modules], [names[id(p)] for p in found.whole]


def stack(n):
    return nn.Sequential(*[m for _ in range(n) for m in (nn.Linear(8, 8), nn.ReLU())])


class Several(nn.Module):
    """Modules by name, run by a function of them."""

    def __init__(self, run, **modules):
        super().__init__()
        self.run = run
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.run(self, x)


def listed(self, x):
    for block in self.blocks:
        x = torch.tanh(block(x))
    return self.out(x)


def test_repeated_blocks_are_groups_wherever_they_lie():
    blocks = [f"{2 * i}" for i in range(6)]
    flat = nn.Sequential(*stack(6), nn.Linear(8, 1))
    nested = nn.Sequential(nn.Sequential(stack(6)), nn.Linear(8, 1))
    in_list = Several(listed, blocks=nn.ModuleList(stack(6)[::2]), out=nn.Linear(8, 1))
    x = torch.ones(2, 8)

    assert groups(flat, x)[0] == [*blocks, "12"]
    assert groups(nested, x)[0] == [*(f"0.0.{name}" for name in blocks), "1"]
    assert groups(in_list, x)[0] == [*(f"blocks.{i}" for i in range(6)), "out"]


def test_blocks_that_are_a_large_share_are_divided():
    """Two towers that are alike are half of the model each."""
    towers = Several(lambda s, x: s.a(x) + s.b(x), a=stack(3), b=stack(3))

    found, _ = groups(towers, torch.ones(2, 8))

    assert found == ["a.0", "a.2", "a.4", "b.0", "b.2", "b.4"]


def test_a_block_is_one_group():
    """Not its parts, which are alike, too."""
    made = [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(6)]

    assert groups(nn.Sequential(*made), torch.ones(2, 3, 8))[0] == [*"012345"]


def test_weights_that_are_used_elsewhere_are_in_no_group_that_is_done_by_then():
    used = Several(
        lambda s, x: s.out(F.linear(s.a(x), s.a.weight)), a=nn.Linear(8, 8), out=nn.Linear(8, 1)
    )
    viewed = Several(lambda s, x: s.out(s.a(x) @ s.w), a=nn.Linear(8, 8), out=nn.Linear(8, 1))
    viewed.a.register_forward_hook(lambda m, args, out: setattr(viewed, "w", m.weight.detach().T))
    tied = Several(lambda s, x: s.b(s.a(x)), a=nn.Linear(8, 8), b=nn.Linear(8, 8))
    tied.b.weight = tied.a.weight
    attention = nn.MultiheadAttention(8, 2)  # it never calls its out_proj
    x = torch.ones(2, 8)

    assert groups(used, x)[0] == ["out"]
    assert groups(viewed, x)[0] == ["out"]
    assert groups(tied, x)[0] == []
    assert groups(attention, x, x, x)[0] == []


def test_modules_whose_outputs_are_changed_in_place_are_no_groups():
    """Where these are views, autograd would forget the hooks on them."""
    changed = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 8))

    assert groups(changed, torch.ones(2, 3, 8))[0] == ["2"]
    assert groups(changed, torch.ones(2, 8))[0] == ["0", "2"]  # no views


def test_a_reversible_run_is_one_group():
    """Whose own gradient looks for hooks inside."""
    halves = [tl.ReversibleHalfResidual(tl.Dense(8)) for _ in range(2)]
    model = tl.Serial(tl.Dup(), tl.ReversibleSerial(halves), tl.Concatenate(), tl.Dense(1))
    x = torch.ones(2, 8)
    model.init_missing(x, rng=0)

    assert groups(model, x)[0] == ["1", "3"]


def test_what_has_no_first_axis_or_another_type_is_kept_whole():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(8, 1)
            self.scale = nn.Parameter(torch.tensor(1.0))
            self.empty = nn.Parameter(torch.ones(0, 3))
            self.wide = nn.Parameter(torch.ones(1).double())

        def forward(self, x):
            return self.out(x) * self.scale + self.empty.sum() + self.wide.float()

    model = Odd()

    assert groups(model, torch.ones(2, 8))[1] == ["scale", "empty", "wide"]


def test_what_cannot_be_cut_is_refused():
    early = Several(lambda s, x: s.a(x), a=nn.Linear(8, 8))
    with pytest.raises(ValueError, match=r"a\.weight are used before it is called"):
        shard_groups.find(early, [lambda: early(early.a.weight * 2)], ALONE)
    hidden = Several(lambda s, x: types.SimpleNamespace(y=s.a(x)), a=nn.Linear(8, 8))
    hidden.w = nn.Parameter(torch.ones(8))
    with pytest.raises(ValueError, match="torch finds no tensors in its SimpleNamespace"):
        groups(hidden, torch.ones(2, 8))
    sparse = nn.Sequential(nn.Embedding(4, 8, sparse=True))
    with pytest.raises(ValueError, match="0 has sparse ones. Build it with sparse=False"):
        groups(sparse, torch.tensor([1]))


# Models as people write them, on ranks.


class Weights(nn.Module):
    """Weights of shapes (), (0, 3), (1,) and in a list; one of another type, one frozen."""

    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Linear(6, 6), nn.Linear(6, 1)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.empty = nn.Parameter(torch.ones(0, 3))
        self.several = nn.ParameterList([nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(1))])
        self.narrow = nn.Parameter(torch.ones(6, dtype=torch.float32))
        self.frozen = nn.Parameter(torch.ones(6), requires_grad=False)
        self.turned = nn.Parameter(torch.rand(5, 6).T @ torch.ones(5, 6))
        self.turned.data = self.turned.data.T.contiguous().T

    def forward(self, x):
        x = self.a(x * self.several[0] * self.frozen) @ self.turned * self.narrow.double()
        return self.out(x) * self.scale + self.empty.sum() + self.several[1]


def inplace():
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 6), nn.Flatten())


MODELS = {
    "list": lambda: Several(
        listed, blocks=nn.ModuleList(nn.Linear(6, 6) for _ in range(3)), out=nn.Linear(6, 1)
    ),
    "other's weight": lambda: Several(
        lambda s, x: s.out(F.linear(s.a(x), s.a.weight)), a=nn.Linear(6, 6), out=nn.Linear(6, 1)
    ),
    "weights": Weights,
    "twice": lambda: Several(
        lambda s, x: s.out(torch.tanh(s.a(torch.tanh(s.a(x))))),
        a=nn.Linear(6, 6),
        out=nn.Linear(6, 1),
    ),
    "lstm": lambda: Several(
        lambda s, x: s.out(s.a(x[:, None])[0][:, 0]),
        a=nn.LSTM(6, 6, batch_first=True),
        out=nn.Linear(6, 1),
    ),
    "attention": lambda: Several(
        lambda s, x: s.out(s.a(x[:, None].expand(-1, 3, 6))[:, 0]),
        a=nn.TransformerEncoder(
            nn.TransformerEncoderLayer(6, 2, 8, 0.0, batch_first=True),
            2,
            enable_nested_tensor=False,
        ),
        out=nn.Linear(6, 1),
    ),
    "dict": lambda: Several(
        lambda s, x: s.out(s.a(x)["y"]),
        a=Several(lambda s, x: {"y": s.a(x)}, a=nn.Linear(6, 6)),
        out=nn.Linear(6, 1),
    ),
    "in place": lambda: Several(
        lambda s, x: s.out(s.a(x[:, None])), a=inplace(), out=nn.Linear(6, 1)
    ),
    "weight norm": lambda: nn.Sequential(
        parametrizations.weight_norm(nn.Linear(6, 6)), nn.Tanh(), nn.Linear(6, 1)
    ),
    "nested": lambda: nn.Sequential(
        nn.Sequential(*[nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(5)]),
        nn.Linear(6, 1),
    ),
}


def batches(rank, size):
    for i in range(100):
        x = torch.randn(6, 6, generator=torch.Generator().manual_seed(i)).double()
        yield tuple(t.chunk(size)[rank] for t in (x, x.sum(1, keepdim=True)))


def trained(rank, size, names):
    """Weights and history after some steps, or what was raised, of each model."""
    found = {}
    for name in names:
        torch.manual_seed(0)
        model = MODELS[name]().double()
        if name == "weights":
            model.narrow.data = model.narrow.data.float()
        make = functools.partial(torch.optim.AdamW, lr=0.01)
        task = TrainTask(batches(rank, size), nn.MSELoss(), make)
        loop = Loop(
            model,
            task,
            strategy="fsdp",
            random_seed=0,
            clip_grad_norm=0.5,
            verbose=False,
            progress=False,
        )
        loop.run(4)
        weights = {k: _distributed.whole(p.detach()) for k, p in loop.model.named_parameters()}
        found[name] = {k: w.numpy() for k, w in weights.items()}, history_of(loop)["train"]
    return found


@pytest.mark.slow
def test_models_as_people_write_them_train_as_in_one_process(tmp_path):
    alone = trained(0, 1, list(MODELS))

    for found in ranks.values(tmp_path, 2, functools.partial(trained, size=2, names=list(MODELS))):
        for name, (weights, history) in alone.items():
            for key, weight in weights.items():
                near = 1e-5 if weight.dtype == np.float32 else 1e-9
                np.testing.assert_allclose(found[name][0][key], weight, near, near, err_msg=name)
            for key, values in history.items():
                numbers = [[v for _, v in each] for each in (found[name][1][key], values)]
                np.testing.assert_allclose(*numbers, rtol=1e-6, err_msg=f"{name} {key}")
