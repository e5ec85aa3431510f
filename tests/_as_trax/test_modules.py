"""`import trax`: the modules that a program gets, and the names in them."""

import copy
import importlib
import pickle
import threading
import types

import numpy as np
import pytest

import trax_torch
from trax_torch._as_trax.missing import MissingNameError


def run(code):
    """Runs a program's lines, and returns its names."""
    exec(code, names := {})
    return names


@pytest.mark.usefixtures("trax")
@pytest.mark.parametrize(
    "line",
    [
        "import trax; trax.layers.Dense; trax.supervised.training.Loop; trax.lr.multifactor",
        "from trax import layers as tl; tl.Dense",
        "import trax.layers as tl; tl.Dense",
        "from trax.layers import Dense, Serial",
        "from trax.layers.core import Dense",
        "from trax.layers import *\nfrom trax.shapes import *\nDense, signature",
        "from trax.supervised import training, decoding, lr_schedules; training.Loop",
        "from trax import layers as tl, models, optimizers, shapes; optimizers.Adam",
        "import trax.optimizers.adam; trax.optimizers.adam.Adam",
        "import trax.layers.assert_shape, trax; trax.layers.assert_shape('a->a')",
        "from trax.layers.assert_shape import AssertShape, assert_shape; assert_shape('a->a')",
        "from trax import lr; lr.warmup_and_rsqrt_decay(1, 1.0)",
        "import trax.lr as lr; lr.constant(1.0)",
        "from trax.layers.shapes import signature",
        "import trax.rl.actor_critic, trax.tf_numpy.numpy, trax.trax2keras",
        "from trax.models import HourglassLM, beam_search",
        "from trax.models.research.terraformer import ConfigurableTerraformer",
    ],
)
def test_programs_import_as_they_are_used_to(line):
    run(line)


def test_names_are_ours(trax):
    """The same objects, so that they go together with what is imported by our name."""
    assert trax.layers.Dense is trax_torch.layers.Dense
    assert trax.layers.core.Dense is trax_torch.layers.core.Dense
    assert trax.lr.multifactor is trax_torch.supervised.lr_schedules.multifactor
    assert trax.__version__ == trax_torch.__version__


def test_what_neither_has_is_an_error_at_once(trax):
    """So that `hasattr`, and mistakes in writing, are as they are with any module."""
    assert not hasattr(trax.layers, "Dens")
    with pytest.raises(AttributeError, match="'trax.layers' has no attribute 'Dens': neither Trax"):
        trax.layers.Dens  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Dens'"):
        run("from trax.layers import Dens")
    with pytest.raises(ModuleNotFoundError, match="No module named 'trax.layer'"):
        run("import trax.layer")


@pytest.mark.usefixtures("trax")
@pytest.mark.parametrize(
    "use",
    [
        "HourglassLM(vocab_size=3)",
        "HourglassLM.name",
        "HourglassLM['a']",
        "isinstance(3, HourglassLM)",
        "HourglassLM + 1",
        "list(HourglassLM)",
        "class A(HourglassLM): pass",
    ],
)
def test_what_is_not_here_is_imported_and_raises_when_it_is_used(use):
    """With its name, what to take instead, and the page."""
    names = run("from trax.models import HourglassLM")

    said = r"uses trax.models.HourglassLM, .* take models.TransformerLM .* docs/from_trax.md"
    with pytest.raises(MissingNameError, match=said):
        exec(use, names)


def test_what_is_not_here_is_seen_copied_and_pickled(trax):
    """A notebook shows it; a program that holds it in a table goes on."""
    thing = trax.AsKeras

    assert repr(thing) == "<trax.AsKeras, which is not in trax_torch>"
    for twin in (copy.deepcopy(thing), pickle.loads(pickle.dumps(thing))):
        with pytest.raises(MissingNameError, match="uses trax.AsKeras, .*torch.nn.Module"):
            twin(1)


def test_what_is_not_here_is_no_name_of_a_module(trax):
    """So `dir` and `*` give what there is."""
    trax.models.HourglassLM  # noqa: B018

    assert "TransformerLM" in dir(trax.models)
    assert "HourglassLM" not in dir(trax.models)
    assert "HourglassLM" not in run("from trax.models import *")


def test_functions_and_layers_are_pickled_as_ours(trax):
    """And read again where nobody imported `trax`."""
    assert pickle.loads(pickle.dumps(trax.layers.Dense)) is trax_torch.layers.Dense
    data = pickle.dumps(trax.layers.Dense(3))
    assert b"ctrax_torch" in pickle.dumps(trax.layers.Dense, protocol=0)
    assert pickle.loads(data).n_in == 1


def test_a_pickle_by_traxs_names_is_read(trax):
    """As of a class that a program pickled under Trax."""
    assert pickle.loads(b"ctrax.optimizers.adam\nAdam\n.") is trax.optimizers.Adam


def test_modules_are_loaded_again(trax):
    """A notebook that reloads gets the same names; what it set itself is gone."""
    trax.layers.my_own = 1

    again = importlib.reload(trax.layers)

    assert again is trax.layers
    assert again.Dense is trax_torch.layers.Dense
    assert not hasattr(again, "my_own")


def test_names_may_be_set(trax):
    """As tests of programs do; ours is not changed."""
    trax.layers.Dense, ours = "mine", trax_torch.layers.Dense

    assert run("from trax.layers import Dense")["Dense"] == "mine"
    assert trax_torch.layers.Dense is ours


@pytest.mark.usefixtures("trax")
def test_threads_import_the_same_modules():
    """Python's own locks see to it."""
    found, barrier = [], threading.Barrier(8)

    def work():
        barrier.wait()
        found.append(importlib.import_module("trax.supervised.decoding"))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 8
    assert len(set(map(id, found))) == 1
    assert isinstance(found[0], types.ModuleType)


def test_the_stream_gives_a_symbol_for_each_row(trax):
    """(batch,), as Trax's code does; `trax_torch` gives (batch, 1), as its documentation says."""
    model = trax.models.TransformerLM(
        vocab_size=9, d_model=4, d_ff=4, n_layers=1, n_heads=1, max_len=9, mode="predict"
    )
    model.init(trax.shapes.ShapeDtype((1, 1), np.int32))
    prompt = np.array([[3, 4], [5, 6]])
    arguments = dict(inputs=prompt, batch_size=2, temperature=0.0)

    stream = trax.supervised.decoding.autoregressive_sample_stream(model, **arguments)
    ours = trax_torch.supervised.decoding.autoregressive_sample_stream(model, **arguments)

    for _ in range(3):
        item, other = next(stream), next(ours)
        assert tuple(item.shape) == (2,)
        assert item.tolist() == other[:, 0].tolist()


@pytest.mark.parametrize("use_loop", [True, False])
def test_what_trains_by_older_ways_keeps_a_file_of_traxs_name_too(trax, tmp_path, use_loop):
    """`trainer_lib.train`, by a Loop or a Trainer: it is found, and removed to begin anew."""
    tl, trainer_lib = trax.layers, trax.supervised.trainer_lib

    class Lines:
        def train_stream(self, n_devices):
            while True:
                yield np.ones((2, 3)), np.ones((2, 1)), np.ones((2, 1))

        eval_stream = train_eval_stream = train_stream

    def trained(steps):
        return trainer_lib.train(
            str(tmp_path),
            lambda mode: tl.Serial(tl.Dense(1)),
            tl.L2Loss(),
            Lines,
            trax.optimizers.SGD,
            lambda: trax.lr.constant(0.1),
            steps=steps,
            eval_steps=1,
            eval_frequency=2,
            metrics={"loss": tl.L2Loss()},
            use_loop=use_loop,
        )

    trained(2)
    tl.Serial(tl.Dense(1)).init_from_file(str(tmp_path / "model.pkl.gz"), weights_only=True)
    assert trained(3).step == 3
    (tmp_path / "model.pkl.gz").unlink()
    assert trained(1).step == 1


def test_a_trainer_of_blocks_says_what_stands_for_it(trax):
    """Also at the address where Trax keeps it."""
    for place in (trax.optimizers, trax.optimizers.trainer):
        with pytest.raises(NotImplementedError, match="use_memory_efficient_trainer=True"):
            place.ReversibleSerialTrainer([], trax.layers.L2Loss(), trax.optimizers.Adam)


def test_a_loop_has_what_graders_look_at(trax):
    """Private names of Trax's, by which courses check what was written."""
    tl, training = trax.layers, trax.supervised.training
    data = iter([(np.ones((2, 3)), np.ones((2, 1)), np.ones((2, 1)))] * 3)
    schedule = trax.lr.constant(0.1)
    task = training.TrainTask(data, tl.L2Loss(), trax.optimizers.Adam(), schedule)

    loop = training.Loop(
        tl.Serial(tl.Dense(1)), task, eval_task=training.EvalTask(data, [tl.L2Loss()])
    )

    assert isinstance(loop, trax_torch.supervised.training.Loop)
    assert loop._task is loop._tasks[0] is task
    assert loop._eval_task is loop._eval_tasks[0]
    assert str(task._loss_layer) == "L2Loss_in3"
    assert task._lr_schedule is schedule
    assert (task._n_steps_per_checkpoint, task.optimizer.learning_rate) == (100, 0.0001)
    assert training.Loop(tl.Serial(tl.Dense(1)), task)._eval_task is None


def test_beams_are_pairs_of_tokens_and_scores(trax):
    """As Trax's code gives them: to the full length, whatever is the end; best first."""
    model = trax.models.TransformerLM(
        vocab_size=5, d_model=4, d_ff=4, n_layers=1, n_heads=1, max_len=16
    )
    model.init(trax.shapes.ShapeDtype((1, 1), np.int32))
    prompt = np.array([[3, 4]])

    beams = trax.supervised.decoding.beam_search(model, prompt, 1, 3, eos_id=2, max_length=4)

    ours, scores = trax_torch.supervised.decoding.beam_search(
        model, prompt, n_beams=3, eos_id=-1, max_length=4, length_penalty=0, return_scores=True
    )
    assert len(beams) == 3
    for k, (tokens, score) in enumerate(beams):
        assert (np.shape(tokens), np.shape(score)) == ((1, 4), (1,))
        assert np.array_equal(tokens, ours[:, k])
        assert np.array_equal(score, scores[:, k])
    assert [float(s[0]) for _, s in beams] == sorted((float(s[0]) for _, s in beams), reverse=True)


def test_the_stream_gives_log_probs_alike(trax):
    model = trax.models.TransformerLM(
        vocab_size=9, d_model=4, d_ff=4, n_layers=1, n_heads=1, max_len=9
    )
    model.init(trax.shapes.ShapeDtype((1, 1), np.int32))

    stream = trax.supervised.decoding.autoregressive_sample_stream(model, return_log_probs=True)

    assert [tuple(x.shape) for x in next(stream)] == [(1,), (1,)]
