"""A run's weights go into models and files without the run."""

import functools
import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import trax_torch
from trax_torch import layers as tl
from trax_torch import models, optimizers
from trax_torch._errors import CheckpointError, MismatchError
from trax_torch.interop import trax_checkpoint
from trax_torch.shapes import ShapeDtype
from trax_torch.supervised import Loop, TrainTask, decoding
from trax_torch.supervised._checkpoint import storage

GOLDEN = Path(__file__).parents[2] / "golden"
TRAX = GOLDEN / "trax_checkpoints" / "bn"


def data(n=16):
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0)) * 3 + 2
    return x, (x.sum(1) > 8).long()


def train(model, folder, n_steps=3, loss=None, **settings):
    loss = loss or nn.CrossEntropyLoss()
    task = TrainTask([data()], loss, optimizers.Adam(0.01), n_steps_per_checkpoint=1000)
    loop = Loop(model, task, output_dir=str(folder), progress=False, random_seed=0, **settings)
    loop.run(n_steps)
    loop.save_checkpoint("model")
    return loop


class Counting(nn.Module):
    """A module that keeps numbers besides its tensors."""

    def __init__(self):
        super().__init__()
        self.linear, self.kept = nn.Linear(4, 2), {"calls": 0, "sum": torch.zeros(2)}

    def forward(self, x):
        y = self.linear(x)
        if self.training:
            self.kept = {
                "calls": self.kept["calls"] + 1,
                "sum": self.kept["sum"] + y.detach().sum(0),
            }
        return y

    def get_extra_state(self):
        return self.kept

    def set_extra_state(self, state):
        if state["calls"] < 0:
            raise ValueError("no such count")
        self.kept = state


class Tied(nn.Module):
    """The last layer's weight is the first one's."""

    def __init__(self, tied=True):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        if tied:
            self.b.weight = self.a.weight
        self.out = nn.Linear(4, 2)
        self.again = self.out  # a module with two names

    def forward(self, x):
        return self.again(torch.relu(self.b(self.a(x))))


def plain(compiled=False):
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    if compiled:
        net[0] = torch.compile(net[0], backend="eager")
    return net


MODELS = {
    "a module": plain,
    "layers": lambda: tl.Serial(tl.Dense(8), tl.BatchNorm(axis=0), tl.Relu(), tl.Dense(2)),
    "a module among layers": lambda: tl.Serial(tl.Dense(8), plain_head(), tl.Dense(2)),
    "a module with compiled parts": functools.partial(plain, compiled=True),
    "tied weights": Tied,
    "a module that keeps more": Counting,
    "a transposed convolution and a GRU": lambda: Recurrent(),
}


def plain_head():
    return nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 8))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose1d(1, 3, 2, stride=2)
        self.norm = nn.LazyBatchNorm1d()
        self.norm(torch.zeros(2, 3, 8))
        self.gru, self.out = nn.GRU(3, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x):
        return self.out(self.gru(self.norm(self.up(x[:, None])).transpose(1, 2))[0][:, -1])


def outputs(model):
    model.eval()
    with torch.no_grad():
        return model(data()[0])


def tensors_of(model):
    return {k: v.clone() for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}


def assert_untouched(model, before):
    after = tensors_of(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], v) for k, v in before.items())


@pytest.mark.parametrize("name", MODELS)
def test_a_model_filled_from_a_checkpoint_computes_what_the_trained_one_does(name, tmp_path):
    """To the last bit, in eval mode: buffers come, too. So from what was exported."""
    make = MODELS[name]
    trained = train(make(), tmp_path / "run").model
    same, exported = make(), make()
    if "layers" not in name:  # which have no weights yet
        assert not torch.equal(outputs(same), outputs(trained))
    same.train()

    trax_torch.load_weights(same, tmp_path / "run")

    assert same.training
    assert torch.equal(outputs(same), outputs(trained))
    if name != "a module that keeps more":
        trax_torch.export(tmp_path / "run", tmp_path / "exported")
        trax_torch.load_weights(exported, tmp_path / "exported")
        assert torch.equal(outputs(exported), outputs(trained))
    else:
        assert same.kept["calls"] == 3
        assert torch.equal(same.kept["sum"], trained.kept["sum"])


@pytest.mark.parametrize("name", [n for n in MODELS if n not in ("a module that keeps more",)])
def test_what_is_exported_has_the_names_of_the_modules_own_state_dict(name, tmp_path):
    """All of them, also where weights are tied; `load_state_dict` is strict, and takes it."""
    trained = train(MODELS[name](), tmp_path / "run").model
    wanted = {k.replace("_orig_mod.", ""): v for k, v in trained.state_dict().items()}

    trax_torch.export(tmp_path / "run", tmp_path / "exported")

    found = load_file(tmp_path / "exported")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in wanted.items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["exported", "run"]
    if name in ("a module", "tied weights"):
        same = MODELS[name]()
        same.load_state_dict(found)
        assert torch.equal(outputs(same), outputs(trained))


@pytest.mark.parametrize("wrap", [tl.as_layer, functools.partial(torch.compile, backend="eager")])
def test_a_model_may_be_wrapped_when_it_is_filled_or_when_it_was_trained(wrap, tmp_path):
    trained = train(plain(), tmp_path / "plain").model
    wrapped = wrap(plain())
    trax_torch.load_weights(wrapped, tmp_path / "plain")
    assert torch.equal(outputs(wrapped), outputs(trained))

    trained = train(wrap(plain()), tmp_path / "wrapped").model
    bare = plain()
    trax_torch.load_weights(bare, tmp_path / "wrapped")
    assert torch.equal(outputs(bare), outputs(trained))
    if isinstance(wrapped, tl.Layer):
        wrapped.save_to_file(tmp_path / "saved")  # under the wrapper's names
        again = wrap(plain())
        trax_torch.load_weights(again, tmp_path / "saved")
        assert torch.equal(outputs(again), outputs(wrapped))
    trax_torch.export(tmp_path / "wrapped", tmp_path / "exported")
    plain().load_state_dict(load_file(tmp_path / "exported"))


def test_init_from_file_takes_the_same_places(tmp_path, monkeypatch):
    """Trax's own idiom among them: the name of a file that Trax would have written."""
    monkeypatch.chdir(tmp_path)
    make = MODELS["layers"]
    loop = train(make(), "run")
    loop.save_checkpoint("lowest_loss")
    loop.run(2)
    before, after = make(), make()

    before.init_from_file("run/lowest_loss")
    loop.save_checkpoint("model")
    for place in ("run", "run/model", "run/model.json", "run/model.pkl.gz", Path("run")):
        after.init_from_file(place)
        assert torch.equal(outputs(after), outputs(loop.model))

    assert not torch.equal(outputs(before), outputs(after))


def test_a_layer_without_weights_takes_their_shapes_from_a_checkpoint(tmp_path):
    """Of a whole language model, which then decodes as the trained one."""
    make = functools.partial(
        models.TransformerLM, vocab_size=9, d_model=8, d_ff=8, n_layers=1, n_heads=2, max_len=16
    )
    batch = (torch.arange(8).reshape(1, 8), torch.arange(8).reshape(1, 8), torch.ones(1, 8))
    task = TrainTask([batch], tl.WeightedCategoryCrossEntropy(), optimizers.Adam(0.01))
    loop = Loop(make(), task, output_dir=str(tmp_path), progress=False, random_seed=0)
    loop.run(2)
    loop.save_checkpoint("model")
    model = make()

    trax_torch.load_weights(model, tmp_path)

    tokens = [
        decoding.autoregressive_sample(m, batch_size=1, max_length=6, temperature=0.0, eos_id=-1)
        for m in (model.eval(), loop.model.eval())
    ]
    assert torch.equal(*map(torch.as_tensor, tokens))


def test_a_layer_whose_weights_have_no_names_yet_is_to_be_initialized(tmp_path):
    """Only its own code knows which of them are state, and how they nest."""

    class Pair(tl.Layer):
        def init_weights_and_state(self, input_signature):
            self.weights = (torch.full((4,), 2.0), (torch.ones(1), torch.zeros(1)))
            self.state = torch.full((2,), 0.5)

        def forward(self, x):
            w, (a, b) = self.weights
            return x[:, :2] * w[:2] * a + b + self.state

    trained = train(tl.Serial(Pair()), tmp_path).model
    waiting, ready = tl.Serial(Pair()), tl.Serial(Pair())

    with pytest.raises(ValueError, match=r"^0 has no weights yet.*model.init\(signature\)"):
        trax_torch.load_weights(waiting, tmp_path)
    ready.init_from_file(tmp_path, input_signature=ShapeDtype((1, 4)))

    assert not waiting.is_initialized
    assert torch.equal(outputs(ready), outputs(trained))


def test_a_file_without_state_is_refused_unless_weights_alone_are_asked_for(tmp_path):
    """For modules and layers, initialized or not; what is asked for leaves statistics alone."""
    for name in ("a module", "layers"):
        make, folder = MODELS[name], tmp_path / name
        loop = train(make(), folder)
        (part,) = folder.glob("model.*.weights.safetensors")
        fresh = make()
        with pytest.raises(MismatchError, match=r"lacks what the model keeps besides: 1\.\w+, 1\."):
            trax_torch.load_weights(fresh, part)
        ready = loop.model
        with pytest.raises(MismatchError, match="weights_only=True leaves them as they are"):
            trax_torch.load_weights(ready, part)

        trax_torch.load_weights(fresh, folder, weights_only=True)

        assert torch.equal(fresh.state_dict()["0.weight"], ready.state_dict()["0.weight"])
        assert not fresh.state_dict()["1.running_mean"].any()


def test_a_layer_of_statistics_alone_takes_them(tmp_path):
    """It has no weights, and is ready when its state is there."""

    def make():
        return tl.Serial(tl.BatchNorm(axis=0, center=False, scale=False), tl.Dense(2))

    trained, same, bare = train(make(), tmp_path).model, make(), make()
    trax_torch.load_weights(same, tmp_path)

    assert torch.equal(outputs(same), outputs(trained))
    with pytest.raises(ValueError, match="0 has no weights yet"):
        trax_torch.load_weights(bare, tmp_path, weights_only=True)


def with_float_count(model):
    model[1].num_batches_tracked = torch.tensor(0.0)
    return model


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (
            lambda: nn.Sequential(nn.Linear(4, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 2)),
            r"0.bias has shape \(8,\) in the file and \(9,\) in the model; .* \(7 differences",
        ),
        (lambda: plain()[:2], "3.bias is not in the model; 3.weight is not in the model"),
        (lambda: nn.Sequential(*plain(), nn.Linear(2, 2)), "4.bias is not in the file; 4.weight"),
        (
            lambda: with_float_count(plain()),
            "1.num_batches_tracked is torch.int64 in the file and torch.float32 in the model",
        ),
        (lambda: nn.Sequential(nn.Linear(4, 8), nn.Identity(), nn.ReLU(), nn.Linear(8, 2)), "1.b"),
    ],
)
def test_another_model_is_refused_by_name_and_left_as_it_was(other, match, tmp_path):
    train(plain(), tmp_path / "run")
    model = other()
    before = tensors_of(model)

    with pytest.raises(IndexError, match=match) as caught:
        trax_torch.load_weights(model, tmp_path / "run")

    assert isinstance(caught.value, CheckpointError)
    assert_untouched(model, before)


def test_floats_take_the_type_of_the_model(tmp_path):
    """As a model for inference may be of another; counters stay integers."""
    trained = train(plain(), tmp_path).model
    model = plain().to(torch.bfloat16)

    trax_torch.load_weights(model, tmp_path)

    assert model[0].weight.dtype == torch.bfloat16
    assert torch.equal(model[0].weight, trained[0].weight.to(torch.bfloat16))
    assert model[1].num_batches_tracked.item() == 3


def test_a_quantized_copy_takes_no_floats(tmp_path):
    make = MODELS["layers"]
    loop = train(make(), tmp_path)
    small = decoding.quantize(loop.model)
    before = tensors_of(small)

    with pytest.raises(IndexError, match="0.scale is not in the file; 0.weight is torch.float32"):
        trax_torch.load_weights(small, tmp_path)

    assert_untouched(small, before)


def test_a_model_whose_tensors_have_no_values_or_shapes_is_refused(tmp_path):
    """Copying into such tensors would do nothing, silently."""
    train(plain(), tmp_path)
    with torch.device("meta"):
        empty = plain()
    lazy = nn.Sequential(nn.LazyLinear(8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))

    with pytest.raises(ValueError, match=r"0.weight is on the meta device.*to_empty\(device='cpu'"):
        trax_torch.load_weights(empty, tmp_path)
    with pytest.raises(ValueError, match="0.weight has no shape yet. Call the model once"):
        trax_torch.load_weights(lazy, tmp_path)
    with pytest.raises(TypeError, match="into an nn.Module; got dict"):
        trax_torch.load_weights({}, tmp_path)


def test_weights_that_are_tied_here_must_be_one_there(tmp_path):
    """Otherwise one of two values would be lost."""
    train(Tied(tied=False), tmp_path / "two")
    model = Tied()
    before = tensors_of(model)

    with pytest.raises(IndexError, match="a.weight and b.weight are one weight in the model"):
        trax_torch.load_weights(model, tmp_path / "two")

    assert_untouched(model, before)
    trained, untied = train(model, tmp_path / "one").model, Tied(tied=False)
    trax_torch.load_weights(untied, tmp_path / "one")
    assert torch.equal(outputs(untied), outputs(trained))


def test_weights_of_losses_stay_behind(tmp_path):
    """Also their buffers; what is exported is the model alone."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))
            self.register_buffer("seen", torch.zeros(2))

        def forward(self, y, targets):
            return nn.functional.cross_entropy(y * self.scale, targets)

    trained = train(plain(), tmp_path / "run", loss=Scaled()).model
    assert "loss0:scale" in storage.read(str(tmp_path / "run"), "model")[0]["weights"]

    same = plain()
    trax_torch.load_weights(same, tmp_path / "run")
    trax_torch.export(tmp_path / "run", tmp_path / "exported")

    assert torch.equal(outputs(same), outputs(trained))
    assert load_file(tmp_path / "exported").keys() == plain().state_dict().keys()


def test_what_a_module_keeps_besides_is_set_first_and_taken_back(tmp_path):
    """If one of several refuses, nothing has changed."""
    make = functools.partial(nn.Sequential, Counting(), nn.Linear(2, 2))
    loop = train(make(), tmp_path)
    loop.model[0].kept["calls"] = -5
    loop.save_checkpoint("model")
    model = nn.Sequential(Counting(), nn.Linear(2, 2))
    before = tensors_of(model)

    with pytest.raises(ValueError, match="no such count"):
        trax_torch.load_weights(model, tmp_path)

    assert_untouched(model, before)
    assert model[0].kept["calls"] == 0
    with pytest.raises(ValueError, match=r"0._extra_state is a dict. Let get_extra_state return"):
        trax_torch.export(tmp_path, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("part", ["weights", "state"])
def test_a_damaged_checkpoint_changes_nothing(part, tmp_path):
    train(plain(), tmp_path / "run")
    (file,) = (tmp_path / "run").glob(f"model.*.{part}.safetensors")
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    model = plain()
    before = tensors_of(model)

    for attempt in (
        lambda: trax_torch.load_weights(model, tmp_path / "run"),
        lambda: trax_torch.export(tmp_path / "run", tmp_path / "exported"),
    ):
        with pytest.raises(CheckpointError, match=f"{part}.safetensors is damaged"):
            attempt()

    assert_untouched(model, before)
    assert not (tmp_path / "exported").exists()


def test_weights_are_read_beside_a_run_that_saves_anew(tmp_path, monkeypatch):
    """Its files may go between the reading of the manifest and theirs: then the newer are read."""
    loop = train(plain(), tmp_path)
    read_parts, saves = storage.read_parts, iter([True, True])

    def overtaken(*args):
        if next(saves, False):
            loop.run(1)
            loop.save_checkpoint("model")
        return read_parts(*args)

    monkeypatch.setattr(storage, "read_parts", overtaken)
    same = plain()

    trax_torch.load_weights(same, tmp_path)

    assert loop.step == 5
    assert torch.equal(outputs(same), outputs(loop.model))


def test_only_weights_and_buffers_are_read(tmp_path):
    """Slots and history may be gone: an archive for inference needs none."""
    trained = train(plain(), tmp_path).model
    for file in tmp_path.iterdir():
        if file.is_file() and not re.search(r"json$|weights|state\.", file.name):
            file.unlink()
    assert len([f for f in tmp_path.iterdir() if f.is_file()]) == 3
    same = plain()

    trax_torch.load_weights(same, tmp_path)

    assert torch.equal(outputs(same), outputs(trained))


@pytest.mark.parametrize(
    "damage",
    [
        lambda members: members["extra"].update({"0": {"tensor": "nothing"}}),
        lambda members: members["extra"].update({"0": {"a": 1, "b": 2}}),
        lambda members: members["extra"].update({"0": {"bytes": 7}}),
        lambda members: members.update(tied={"b": "a"}),
        lambda members: members.update(tied=[1]),
    ],
)
def test_a_manifest_made_by_hand_is_refused(damage, tmp_path):
    """Its hash fits; what it says of the model does not."""
    train(plain(), tmp_path)
    manifest = json.loads((tmp_path / "model.json").read_text())
    del manifest["hash"]
    damage(manifest["info"]["members"])
    manifest["hash"] = hashlib.sha256(storage._canonical(manifest)).hexdigest()
    (tmp_path / "model.json").write_bytes(storage._canonical(manifest))

    with pytest.raises(CheckpointError, match="model.json is "):
        trax_torch.load_weights(plain(), tmp_path)


def test_a_place_without_a_checkpoint_is_an_error(tmp_path, monkeypatch):
    """A FileNotFoundError that says what is there; also for names that no checkpoint has."""
    monkeypatch.chdir(tmp_path)
    train(plain(), "run")

    for place, match in (
        ("a_typo", "no checkpoint 'a_typo' in .; its checkpoints are: none"),
        ("run/highest_acuracy", "in run; its checkpoints are: model."),
        ("run/-?", "no checkpoint '-\\?' in run"),
        ("runs/model", "There is no folder runs"),
    ):
        for attempt in (
            lambda place: trax_torch.load_weights(plain(), place),
            lambda place: trax_torch.export(place, "exported"),
            lambda place: MODELS["layers"]().init_from_file(place),
        ):
            with pytest.raises(FileNotFoundError, match=match) as caught:
                attempt(place)
            assert isinstance(caught.value, CheckpointError)


def test_what_is_no_plain_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(CheckpointError, match="pipe is not a plain file"):
        trax_torch.load_weights(plain(), tmp_path / "pipe")


@pytest.mark.parametrize("name", ["model", "model_10", "lowest_loss"])
def test_checkpoints_of_format_version_1_are_read(name, tmp_path):
    folder = GOLDEN / "checkpoint_v1"
    model = nn.Sequential(
        nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)
    )

    trax_torch.load_weights(model, folder / name)

    parts = storage.read(str(folder), name)[0]
    assert torch.equal(model[0].weight, parts["weights"]["0.weight"])
    assert torch.equal(model[1].running_var, parts["state"]["buffer.1.running_var"])
    trax_torch.export(folder / name, tmp_path / "exported")
    assert load_file(tmp_path / "exported").keys() == model.state_dict().keys()


def trax_model():
    return tl.Serial(
        tl.Conv(4, (3, 3)), tl.BatchNorm(), tl.Relu(), tl.Flatten(), tl.Dropout(0.1), tl.Dense(3)
    )


def test_trax_checkpoints_are_read_into_layers_alone(tmp_path):
    """By the folder, by the name, by the file."""
    files = {p.name for p in TRAX.iterdir()}
    assert "model.pkl.gz" in files
    by_file = trax_model()
    by_file.init_from_file(str(TRAX / "model.pkl.gz"))

    for place in (TRAX, TRAX / "model", TRAX / "model.pkl.gz"):
        model = trax_model()
        trax_torch.load_weights(model, place)
        assert_untouched(model, tensors_of(by_file))
    with pytest.raises(ValueError, match="in Trax's order, which layers .* got a Sequential"):
        trax_torch.load_weights(plain(), TRAX)
    with pytest.raises(ValueError, match="python -m trax_torch.interop.trax_checkpoint converts"):
        trax_torch.export(TRAX, tmp_path / "exported")


def test_the_command_exports(tmp_path):
    """And says in one line what is wrong."""
    trained = train(plain(), tmp_path / "run").model

    def command(*args):
        line = [sys.executable, "-W", "error", "-m", "trax_torch.export", *map(str, args)]
        return subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)

    done, failed = command("run", "model.safetensors"), command("run/nothing", "other")

    assert (done.returncode, done.stdout) == (0, "wrote model.safetensors\n")
    same = plain()
    same.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(outputs(same), outputs(trained))
    assert failed.returncode == 1
    assert failed.stderr.startswith("MissingCheckpointError: There is no checkpoint 'nothing' in")
    assert not (tmp_path / "other").exists()


def test_export_is_a_function_however_it_is_imported():
    """The package of the same name holds the command."""
    importlib.import_module("trax_torch.export")
    from trax_torch.export import export

    assert trax_torch.export is export


def test_beside_a_file_of_trax_the_folders_own_checkpoint_comes_first(tmp_path):
    """A run that went on from Trax's is its folder's; Trax's file is read by its name."""
    for file in TRAX.iterdir():
        shutil.copy(file, tmp_path)
    x = torch.ones(4, 5, 5, 3)
    task = TrainTask(
        [(x, torch.zeros(4, dtype=torch.long), torch.ones(4))],
        tl.WeightedCategoryCrossEntropy(),
        optimizers.Momentum(0.1),
    )
    loop = Loop(trax_model(), task, output_dir=str(tmp_path), progress=False)
    loop.run(1)
    loop.save_checkpoint("model")
    of_trax, own = trax_model(), trax_model()

    trax_torch.load_weights(of_trax, tmp_path / "model.pkl.gz")
    trax_torch.load_weights(own, tmp_path)

    assert torch.equal(own.weights[0][0], loop.model.weights[0][0])
    original = trax_checkpoint.read(TRAX / "model.pkl.gz").flat_weights[0]
    assert torch.equal(of_trax.weights[0][0], original)
    assert not torch.equal(own.weights[0][0], original)
