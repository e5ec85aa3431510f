"""What people write first, and get wrong: each mistake is answered, none in silence.

A row is a mistake and words that its message must hold: what was needed, what came, what to do.
"""

import inspect
import os
import re
import traceback

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import trax_torch
from trax_torch import layers as tl
from trax_torch import models, optimizers
from trax_torch.supervised import EvalTask, Loop, TrainTask, callbacks, decoding
from trax_torch.supervised._generation import habits as decoding_habits
from trax_torch.supervised._loop import habits as loop_habits
from trax_torch.supervised._tasks import habits as task_habits

ROWS = torch.linspace(-1, 1, 48).view(12, 4)
CLASSES = torch.arange(12) % 3


def loader(x=ROWS, y=CLASSES, size=6, **settings):
    return DataLoader(TensorDataset(x, y), size, **settings)


def net(n_in=4, n_hidden=5, n_out=3, n_last=None):
    return nn.Sequential(nn.Linear(n_in, 5), nn.ReLU(), nn.Linear(n_last or n_hidden, n_out))


def task(model, data=None, loss=None, optimizer=None, **settings):
    if optimizer is None:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
    data = loader() if data is None else data
    return TrainTask(data, loss or nn.CrossEntropyLoss(), optimizer, **settings)


def loop(model=None, *, evals=None, data=None, loss=None, **settings):
    model = net() if model is None else model
    settings.setdefault("progress", False)
    return Loop(model, task(model, data, loss), eval_tasks=evals, **settings)


def trained(model=None, n_steps=1, **settings):
    made = loop(model, **settings)
    made.run(n_steps)
    return made


def classes_of(labels, loss=None):
    return trained(data=loader(y=labels), loss=loss)


def amounts(model, targets, loss):
    return trained(model, data=[(ROWS, targets)], loss=loss)


def evals(metrics=None, data=None, **settings):
    data = loader() if data is None else data
    return EvalTask(data, metrics or nn.CrossEntropyLoss(), **settings)


def language_model(vocab_size=10, max_len=8, init=True, **settings):
    model = models.TransformerLM(
        vocab_size, d_model=8, d_ff=8, n_layers=1, n_heads=2, max_len=max_len, **settings
    )
    if init:
        model.init(np.ones((1, 1), np.int64), rng=0)
    return model


def tokens_trained(ids, *more, **settings):
    data = [(ids, ids, *more)]
    loss = tl.WeightedCategoryCrossEntropy()
    Loop(
        language_model(init=False, **settings),
        TrainTask(data, loss, optimizers.Adam(0.01)),
        progress=False,
    ).run(1)


def with_a_third(thing):
    model = net()
    return Loop(model, task(model), thing)


class Inner(nn.Module):
    """A user's own module, whose mistake is in a line of its own."""

    def __init__(self, forward):
        super().__init__()
        self.first = nn.Linear(4, 3)
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


class HidesModules(nn.Module):
    """One that torch does not see the whole of, and one without a forward."""

    def __init__(self, forward=True):
        super().__init__()
        self.parts = [nn.Linear(4, 5)] if forward else nn.ModuleList([nn.Linear(4, 5)])
        self.last = nn.Linear(5, 3)
        if forward:
            self.forward = lambda x: self.last(self.parts[0](x))


def resumed_with(tmp_path, other, **settings):
    trained(output_dir=str(tmp_path))
    return Loop(other, task(other), output_dir=str(tmp_path), progress=False, **settings)


def resumed_with_another_optimizer(tmp_path):
    trained(output_dir=str(tmp_path))
    model = net()
    adam = torch.optim.Adam(model.parameters())
    return Loop(model, task(model, optimizer=adam), output_dir=str(tmp_path), progress=False)


def two_loops_in_one_folder(tmp_path):
    first, second = (loop(output_dir=str(tmp_path)) for _ in range(2))
    first.run(1)
    second.run(1)


def generator():
    while True:
        yield ROWS, CLASSES


CE = nn.CrossEntropyLoss

# The mistake, what is written, and words that the message must hold.
MISTAKES = [
    # what goes where
    ("task before model", lambda p: Loop(task(net()), net()), "Loop(model, tasks)"),
    ("data for a task", lambda p: Loop(net(), loader()), "TrainTask(loader, loss, optimizer)"),
    ("an eval task third", lambda p: with_a_third(evals()), "eval_tasks="),
    ("an eval task among tasks", lambda p: Loop(net(), [evals()]), "eval_tasks="),
    ("a train task to measure", lambda p: loop(evals=task(net())), "EvalTask(loader, metrics)"),
    ("a list of modules", lambda p: Loop([nn.Linear(4, 3)], task(net())), "nn.Sequential("),
    ("a class for a model", lambda p: Loop(nn.Linear, task(net())), "Linear(...)"),
    ("weights for a model", lambda p: Loop(net().state_dict(), task(net())), "load_state_dict"),
    ("no model", lambda p: Loop(None, task(net())), "nn.Module; got NoneType"),
    # words of other libraries
    ("max_epochs", lambda p: loop(max_epochs=3), "loop.run(n_steps)"),
    ("lr of a loop", lambda p: loop(lr=0.1), "optimizers.Adam(0.001)"),
    ("lr of a task", lambda p: task(net(), lr=0.1), "optimizers.Adam(0.001)"),
    ("batch_size", lambda p: task(net(), batch_size=8), "DataLoader(dataset, batch_size="),
    ("criterion", lambda p: TrainTask(loader(), criterion=CE()), "loss_layer="),
    ("a metric of a task", lambda p: task(net(), metrics=[CE()]), "EvalTask(loader, metrics)"),
    ("gpus", lambda p: loop(gpus=2), "torchrun"),
    ("seed", lambda p: loop(seed=3), "random_seed=0"),
    ("fp16", lambda p: loop(fp16=True), "precision="),
    ("max_grad_norm", lambda p: loop(max_grad_norm=1.0), "clip_grad_norm=1.0"),
    ("logger", lambda p: loop(logger="tensorboard"), "loggers=["),
    ("a slip of the pen", lambda p: loop(output_dri="run"), "Did you mean 'output_dir'?"),
    ("no such thing", lambda p: loop(xyz=3), "It takes model, tasks,"),
    ("epochs of a run", lambda p: loop().run(epochs=3), "loop.run(n_epochs=3)"),
    ("data of a run", lambda p: loop().run(data=loader()), "TrainTask(loader, loss, optimizer)"),
    ("fit", lambda p: loop().fit(loader()), "Write loop.run(n_steps)"),
    ("train", lambda p: loop().train(), "Write loop.run(n_steps)"),
    ("evaluate", lambda p: loop().evaluate(), "loop.run_evals()"),
    ("predict", lambda p: loop().predict(ROWS), "loop.eval_model(x)"),
    ("save", lambda p: loop().save("x"), "loop.save_checkpoint('model')"),
    ("load", lambda p: loop().load_weights("x"), "loop.load_checkpoint('run')"),
    ("global_step", lambda p: loop().global_step, "loop.step"),
    ("another slip", lambda p: loop().run_eval_s(), "Did you mean 'run_evals'?"),
    # settings
    ("'mse' for a loss", lambda p: task(net(), loss="mse"), "nn.MSELoss()"),
    ("a class for a loss", lambda p: task(net(), loss=CE), "CrossEntropyLoss(...)"),
    (
        "a loss that must be told how many items there are",
        lambda p: task(net(), loss=lambda outputs, targets, num_items_in_batch: outputs.sum()),
        "Give it a default of None",
    ),
    ("'adam'", lambda p: Loop(net(), task(net(), optimizer="adam")), "optimizers.Adam(0.001)"),
    (
        "an optimizer of another model",
        lambda p: Loop(net(), task(net(n_out=7))),
        "Make it of model.parameters()",
    ),
    ("a number for a schedule", lambda p: task(net(), lr_schedule=0.1), "lr_schedules.constant("),
    ("a precision of Lightning's", lambda p: loop(precision="16-mixed"), "got '16-mixed'"),
    ("a backend for compile", lambda p: loop(compile="inductor"), "True or False"),
    ("a seed with a point", lambda p: loop(random_seed=1.5), "whole number, such as 0; got 1.5"),
    ("steps with a point", lambda p: loop().run(1e2), "Write 100."),
    ("half a step", lambda p: loop().run(2.5), "whole number; got 2.5"),
    (
        "a metric that nobody measures",
        lambda p: loop(evals=evals(), checkpoint_low_metric="val_loss"),
        "they measure ['CrossEntropyLoss']",
    ),
    ("two metrics of one name", lambda p: evals([CE(), CE()]), "Give metric_names"),
    ("'accuracy'", lambda p: evals("accuracy"), "layers.CategoryAccuracy()"),
    # callbacks
    (
        "a callback made already",
        lambda p: loop(callbacks=[callbacks.Monitor(loop())]),
        "callbacks=[Monitor]",
    ),
    (
        "a callback that needs more",
        lambda p: loop(evals=evals(), callbacks=[callbacks.EarlyStopping]),
        "functools.partial(EarlyStopping, metric=..., patience=...)",
    ),
    ("a function for one", lambda p: loop(callbacks=lambda loop: None), "TrainingStepCallback"),
    # data
    (
        "a generator that ends",
        lambda p: trained(data=iter([(ROWS, CLASSES)] * 2), n_steps=5),
        "ended after 2 batches",
    ),
    ("a generator not called", lambda p: loop(data=generator), "Call a generator function first"),
    (
        "no rows",
        lambda p: loop(data=loader(ROWS[:0], CLASSES[:0])),
        "dataset has no rows",
    ),
    (
        "less than one batch",
        lambda p: loop(data=loader(size=100, drop_last=True)),
        "fewer than batch_size=100",
    ),
    (
        "no batch to measure",
        lambda p: evals(data=loader(size=100, drop_last=True)),
        "fewer than batch_size=100",
    ),
    ("no data", lambda p: loop(data=5), "an iterable such as a DataLoader; got int"),
    # what does not fit, and where
    ("more features", lambda p: trained(net(n_in=6)), "0 (Linear(in_features=6"),
    ("more features, inside", lambda p: trained(net(n_last=7)), "Sequential > 2 (Linear(in_f"),
    ("float classes", lambda p: classes_of(CLASSES.float()), "targets.long()"),
    ("int32 classes", lambda p: classes_of(CLASSES.int()), "targets.long()"),
    ("classes from 1", lambda p: classes_of(CLASSES + 1), "numbered 0 to 2, and targets from 1 to"),
    ("an axis too many", lambda p: classes_of(CLASSES[:, None]), "targets.squeeze(-1)"),
    (
        "classes last",
        lambda p: amounts(nn.Linear(4, 3), CLASSES.view(4, 3), CE()),
        "For outputs (12, 3) targets have shape (12,)",
    ),
    (
        "outputs (N, 1), targets (N,)",
        lambda p: amounts(nn.Linear(4, 1), ROWS.sum(1), nn.MSELoss()),
        "(12, 1) and (12,). Write targets.view_as(outputs)",
    ),
    (
        "yes or no as integers",
        lambda p: amounts(nn.Linear(4, 1), (CLASSES > 1).long()[:, None], nn.BCEWithLogitsLoss()),
        "targets.float()",
    ),
    ("float64 weights", lambda p: trained(net().double()), "float64"),
    (
        "images with channels last",
        lambda p: trained(
            nn.Conv2d(3, 3, 2), data=[(torch.ones(2, 5, 5, 3), torch.zeros(2).long())]
        ),
        "x.movedim(-1, 1)",
    ),
    (
        "a batch of one row",
        lambda p: trained(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), data=loader(size=1)),
        "drop_last=True",
    ),
    (
        "ids past an nn.Embedding",
        lambda p: trained(
            nn.Sequential(nn.Embedding(5, 3)), data=[(torch.arange(6), torch.zeros(6).long())]
        ),
        "num_embeddings=6",
    ),
    (
        "a fixed batch size in forward",
        lambda p: trained(Inner(lambda m, x: m.first(x).view(7, -1)), loss=CE()),
        "x.shape[0]",
    ),
    (
        "a mistake of one's own",
        lambda p: trained(Inner(lambda m, x: m.frist(x))),
        "no attribute 'frist'",
    ),
    ("a rate too large", lambda p: amounts(net(n_out=1), ROWS[:, :1] * 1e30, nn.MSELoss()), "rate"),
    (
        "a loss of many numbers",
        lambda p: trained(loss=nn.CrossEntropyLoss(reduction="none")),
        "reduction='mean'",
    ),
    ("outputs cut off", lambda p: trained(Inner(lambda m, x: m.first(x).detach())), "detach()"),
    (
        "changed in place",
        lambda p: trained(Inner(lambda m, x: torch.sigmoid(m.first(x)).add_(1))),
        "x = x + y for x += y",
    ),
    (
        "nothing to train",
        lambda p: Loop(
            net().requires_grad_(False), TrainTask(loader(), CE(), optimizers.Adam(0.01))
        ),
        "requires_grad_(True)",
    ),
    ("modules in a list", lambda p: trained(HidesModules()), "nn.ModuleList("),
    ("no forward", lambda p: trained(HidesModules(forward=False)), "def forward(self, x)"),
    (
        "a function for a loss, float classes",
        lambda p: classes_of(CLASSES.float(), functional.cross_entropy),
        "targets.long()",
    ),
    (
        "a lambda for a loss, classes from 1",
        lambda p: classes_of(CLASSES + 1, lambda o, t: functional.cross_entropy(o, t)),
        "number the classes from 0",
    ),
    ("a dataset for a loader", lambda p: loop(data=TensorDataset(ROWS, CLASSES)), "DataLoader("),
    ("texts for tensors", lambda p: trained(data=[(["a", "b"], CLASSES[:2])]), "collate_fn="),
    ("a number for eval_at", lambda p: loop(eval_at=100), "lambda step: step % 100 == 0"),
    ("a negative rate", lambda p: task(net(), lr_schedule=lambda step: -0.1), "0 or more"),
    # checkpoints
    ("no folder to load", lambda p: loop().load_checkpoint(str(p / "no" / "model")), "no folder"),
    ("nowhere to save", lambda p: loop().save_checkpoint("model"), "Loop(..., output_dir='run')"),
    ("another model", lambda p: resumed_with(p, net(n_out=4)), "weights are another model's"),
    ("another optimizer", resumed_with_another_optimizer, "saved with the optimizer SGD"),
    ("two runs at once", two_loops_in_one_folder, "an output_dir of its own"),
    ("a path for a name", lambda p: loop(output_dir=str(p)).save_checkpoint("a/b"), "a/b"),
    # tokens
    (
        "too long a sequence",
        lambda p: tokens_trained(np.ones((2, 9), np.int64), np.ones((2, 9), np.float32)),
        "larger max_len",
    ),
    (
        "ids outside the vocabulary",
        lambda p: tokens_trained(np.full((2, 4), 10), np.ones((2, 4), np.float32)),
        "vocab_size of 11",
    ),
    ("no weights", lambda p: tokens_trained(np.ones((2, 4), np.int64)), "(inputs, targets, weig"),
    (
        "a text for a prompt",
        lambda p: decoding.autoregressive_sample(language_model(), "Once"),
        "got 'Once'. Encode the text",
    ),
    (
        "one sequence alone",
        lambda p: decoding.autoregressive_sample(language_model(), np.array([1, 2])),
        "One sequence is one row",
    ),
    (
        "more tokens than room",
        lambda p: decoding.autoregressive_sample(language_model(), max_length=20, eos_id=-1),
        "ask for at most 8",
    ),
    (
        "max_new_tokens",
        lambda p: decoding.autoregressive_sample(language_model(), max_new_tokens=20),
        "max_length",
    ),
    (
        "num_beams",
        lambda p: decoding.beam_search(language_model(), num_beams=3),
        "n_beams",
    ),
    (
        "no weights to decode with",
        lambda p: decoding.autoregressive_sample(language_model(init=False)),
        "model.init(signature)",
    ),
    (
        "a module without a cache",
        lambda p: decoding.autoregressive_sample(nn.Embedding(5, 5)),
        "eval_mode=True",
    ),
    ("a function for a layer", lambda p: tl.Serial(tl.Dense(3), torch.relu), "layers.Fn('Name'"),
]


@pytest.mark.parametrize(
    ("write", "words"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES]
)
def test_a_mistake_is_answered_by_what_to_do(write, words, tmp_path):
    """By an error, or a warning, with the words that help."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  # warnings are errors here
        write(tmp_path)

    assert words in "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])


def test_most_typical_mistakes_are_listed():
    """At least so many kinds, each under a name of its own."""
    assert len({name for name, _, _ in MISTAKES}) == len(MISTAKES) >= 45


def lines_of(error):
    """Returns the files and functions of the traceback of an error, outermost first."""
    return [(entry.filename, entry.name) for entry in traceback.extract_tb(error.__traceback__)]


def caught_of(run):
    with pytest.raises(Exception) as caught:  # noqa: PT011  # which one, the caller asks
        run()
    return caught.value


def test_the_traceback_of_a_models_mistake_has_the_users_lines_and_where_it_failed():
    """No line of ours is between: of ours there is the one that says what happened."""
    made = loop(Inner(lambda model, x: nn.Linear(7, 3)(x)))

    error = caught_of(lambda: made.run(1))

    here, ours = __file__, os.path.dirname(trax_torch.__file__)
    mine, theirs = lines_of(error), lines_of(error.__cause__)
    assert [f for f, _ in mine[:-1]] == [here] * (len(mine) - 1)
    assert mine[-1][0].startswith(ours)
    assert [name for f, name in theirs if f == here] == ["forward", "<lambda>"]
    assert theirs[-1][0].endswith("linear.py")
    assert not [f for f, _ in theirs if f.startswith(ours)]


def test_the_traceback_of_an_error_that_we_mean_ends_where_it_was_raised():
    """Our own lines between the user's and that one are left out."""
    error = caught_of(lambda: loop(data=loader(ROWS[:0], CLASSES[:0])))

    mine = lines_of(error)
    assert [f == __file__ for f, _ in mine] == [True] * (len(mine) - 1) + [False]


def test_the_traceback_of_a_fault_of_ours_is_whole(monkeypatch):
    """What we did not mean to raise is for us to find: every line is needed."""
    made = loop()
    monkeypatch.setattr(made._parts.trainers[0], "_keyed", None)

    error = caught_of(lambda: made.run(1))

    assert isinstance(error, TypeError)
    names = [name for _, name in lines_of(error)]
    assert {"run", "take", "one_step"} <= set(names)


def test_a_loop_has_what_it_has_and_no_more():
    """`hasattr` and `getattr` with a default answer as of any object; copies and pickles work."""
    made = loop()

    assert not hasattr(made, "fit")
    assert getattr(made, "evaluate", None) is None
    assert hasattr(made, "step")
    assert made.step == 0


def test_a_property_that_fails_says_why():
    """An AttributeError of a property's own is not taken for a missing property."""

    class Broken(Loop):
        @property
        def mine(self):
            return self._no_such_thing

    model = net()
    broken = Broken(model, task(model), progress=False)

    with pytest.raises(AttributeError, match="no attribute '_no_such_thing'"):
        _ = broken.mine


def test_ids_outside_the_vocabulary_are_told_of_once(recwarn):
    """One look at what comes first: later calls cost nothing, and give what Trax gives."""
    layer = tl.Embedding(4, 2)
    layer.init(np.ones((1,), np.int64), rng=0)

    with pytest.warns(UserWarning, match="ids from -1 to 7 came, and are clipped"):
        first = layer(torch.tensor([7, -1]))
    again = layer(torch.tensor([7, -1]))

    assert torch.equal(first, again)
    assert torch.equal(first, layer(torch.tensor([3, 0])))


def test_a_loss_may_repeat_targets_but_not_outputs():
    """One target for all is no mistake; all pairs of outputs and targets are."""
    loss = tl.as_layer(nn.L1Loss())
    outputs = torch.ones(3, 2)

    with pytest.warns(UserWarning, match="target size"):  # torch's own
        assert loss((outputs, torch.zeros(1))) == 1
    with pytest.raises(tl.LayerError, match=r"got \(3, 1\) and \(3,\)"):
        loss((outputs[:, :1], torch.zeros(3)))


def test_a_layer_error_names_the_layer_by_the_users_line():
    """Not by a line of ours, where a model of ours makes its layers."""
    error = caught_of(lambda: language_model()(np.ones((1, 9), np.int64)))

    assert error.caller[0] == __file__
    assert "tests/test_mistakes.py, line" in str(error)


TABLES = [
    (Loop, loop_habits.OF_LOOP),
    (Loop.run, loop_habits.OF_RUN),
    (TrainTask, task_habits.OF_TRAIN_TASK),
    (EvalTask, task_habits.OF_EVAL_TASK),
    (decoding.autoregressive_sample, decoding_habits.OF_DECODING),
]


@pytest.mark.parametrize(("door", "table"), TABLES, ids=lambda each: getattr(each, "__name__", ""))
def test_what_is_to_be_written_exists(door, table):
    """No word of others is one of ours, and each argument that is advised is one."""
    own = set(inspect.signature(door).parameters)

    assert not own & set(table)
    for advice in table.values():
        argument = re.match(r"(\w+)=", advice)
        assert argument is None or argument[1] in own | {"n_beams", "n_groups"}, advice


def test_what_arguments_were_called_is_taken_with_a_note(caplog):
    """`task=` and `eval_task=` are those of Trax 1.3.4; beside today's they are refused."""
    caplog.set_level("INFO", "trax_torch")

    model = net()
    made = Loop(model, task=task(model), eval_task=evals(), progress=False)

    assert (len(made.tasks), len(made.eval_tasks)) == (1, 1)
    assert "Loop(eval_task=) was its name in Trax 1.3.4; it is eval_tasks=." in caplog.text
    with pytest.raises(TypeError, match="Loop has no argument 'eval_task'"):
        Loop(model, task(model), eval_task=evals(), eval_tasks=evals())


def test_what_a_loop_is_said_to_have_it_has():
    """No word of others is an attribute, and each that is advised is one."""
    for word, advice in loop_habits.OF_ATTRIBUTES.items():
        assert not hasattr(Loop, word), word
        for name in re.findall(r"\bloop\.(\w+)", advice):
            assert hasattr(Loop, name), advice


@pytest.mark.parametrize("kept", ["frozen", "registered", "the model's own"])
def test_modules_in_a_list_that_need_not_train_are_no_mistake(kept):
    """A frozen teacher, and parts that are also registered, are left alone."""
    model = net()
    teacher = nn.Linear(4, 3)
    if kept == "frozen":
        model.teachers = [teacher.requires_grad_(False)]
    elif kept == "registered":
        model.again, model.part = {"part": teacher}, teacher
    else:
        model.shown = (model[0], model[2])

    made = loop(model)  # warnings are errors here

    assert made.model is model
