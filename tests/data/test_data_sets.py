"""TFDS and data_streams: data sets of Hugging Face and of tfds, without TensorFlow."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from packages import needed

from trax_torch import data
from trax_torch import layers as tl
from trax_torch.data import TFDS, data_streams
from trax_torch.supervised.training import EvalTask, Loop, TrainTask

N_TRAIN = 10


def example(split, i):
    return {"text": f"{split} \u00e9 {i}", "label": i % 2, "pair": {"en": f"e{i}", "de": f"d{i}"}}


def rows(split, n):
    return [example(split, i) for i in range(n)]


class _Gone(OSError):
    pass


@pytest.fixture
def hub(monkeypatch):
    """Stands in for Hugging Face's library, where it would ask the hub; notes what it is asked."""
    asked = []

    def load_dataset(path, config=None, cache_dir=None):
        asked.append((path, config, cache_dir))
        if "absent" in path:
            raise _Gone("Couldn't reach it")
        return {
            "train": rows("train", N_TRAIN),
            "test": rows("test", 3),
            "validation_matched": rows("matched", 2),
            "validation_mismatched": rows("mismatched", 2),
        }

    library = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", library)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    return asked


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder `mine` of files, which Hugging Face's library reads."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    library = needed("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    library.disable_progress_bars()
    (tmp_path / "mine").mkdir()
    for split, n in (("train", N_TRAIN), ("test", 3)):
        lines = "".join(json.dumps(row) + "\n" for row in rows(split, n))
        (tmp_path / "mine" / f"{split}.jsonl").write_text(lines)
    yield str(tmp_path)
    library.enable_progress_bars()


@pytest.fixture
def prepared(tmp_path):
    """A folder where tfds has prepared the data set `mine`."""
    needed("array_record")
    library = needed("tensorflow_datasets")

    class Mine(library.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = library.core.Version("1.0.0")

        def _info(self):
            text, label = library.features.Text(), library.features.ClassLabel(num_classes=2)
            pair = library.features.Translation(["en", "de"])
            features = {"text": text, "label": label, "pair": pair}
            return library.core.DatasetInfo(
                builder=self,
                features=library.features.FeaturesDict(features),
                supervised_keys=("text", "label"),
                disable_shuffling=True,
            )

        def _split_generators(self, _):
            return {"train": enumerate(rows("train", N_TRAIN)), "test": enumerate(rows("test", 3))}

        def _generate_examples(self):
            raise AssertionError("splits are generators")

    library.disable_progress_bar()
    Mine(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    assert "tensorflow" not in sys.modules
    return str(tmp_path)


@pytest.fixture(params=["folder", "prepared"])
def read_by(request):
    """The folder of the data set `mine`, by each library; skips where it is not installed."""
    return request.getfixturevalue(request.param)


def take(stage, n):
    stream = stage()
    return [next(stream) for _ in range(n)]


def test_examples_are_those_of_the_files_again_and_again(read_by):
    """Tuples of the keys, in their order, with texts as bytes and numbers of numpy, as in Trax."""
    stage = TFDS("mine", read_by, keys=("label", "text", "de"), shuffle_train=False)

    given = take(stage, N_TRAIN + 2)

    expected = rows("train", N_TRAIN)
    for (label, text, de), row in zip(given, expected + expected[:2], strict=True):
        assert isinstance(text, bytes)
        assert text.decode() == row["text"]
        assert isinstance(label, np.integer)
        assert label == row["label"]
        assert de == row["pair"]["de"].encode()


def test_training_is_shuffled_anew_in_each_pass_and_evals_are_not(read_by):
    np.random.seed(0)
    given = [text for (text,) in take(TFDS("mine", read_by, keys=["text"]), 2 * N_TRAIN)]
    evals = [text for (text,) in take(TFDS("mine", read_by, keys="text", train=False), 4)]

    passes = given[:N_TRAIN], given[N_TRAIN:]
    every = [row["text"].encode() for row in rows("train", N_TRAIN)]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(every)
    assert len({tuple(passes[0]), tuple(passes[1]), tuple(every)}) == 3
    assert evals == [row["text"].encode() for row in [*rows("test", 3), example("test", 0)]]


def test_a_place_in_a_data_set_is_kept(read_by):
    def stream(seed):
        np.random.seed(seed)
        return TFDS("mine", read_by, keys=["text", "label"])()

    whole = stream(1)
    expected = [next(whole) for _ in range(3 * N_TRAIN)]
    for cut in (0, 3, N_TRAIN, 2 * N_TRAIN - 1):
        first, again = stream(1), stream(2)
        for _ in range(cut):
            next(first)
        again.load_state_dict(first.state_dict())
        assert [next(again) for _ in range(3 * N_TRAIN - cut)] == expected[cut:]


def test_what_saves_itself_to_disk_is_a_folder_too(folder, tmp_path):
    """All splits, or one, which is then for training."""
    library = needed("datasets")
    library.DatasetDict({"train": library.Dataset.from_list(rows("train", 4))}).save_to_disk(
        tmp_path / "all"
    )
    library.Dataset.from_list(rows("train", 4)).save_to_disk(tmp_path / "one")

    for name in ("all", "one"):
        stage = TFDS(name, folder, keys=["label"], shuffle_train=False)
        assert [int(label) for (label,) in take(stage, 4)] == [0, 1, 0, 1]
    assert take(TFDS(str(tmp_path / "one"), keys=["label"]), 1)


def test_a_data_set_may_be_changed_before_keys_are_chosen(folder):
    """By the methods of Hugging Face's own class."""
    stage = TFDS(
        "mine",
        folder,
        tfds_preprocess_fn=lambda d: d.filter(lambda x: x["label"] == 1).map(
            lambda x: {"n": len(x["text"])}
        ),
        keys=("n", "label"),
    )

    assert take(stage, 5) == [(len("train \u00e9 0"), 1)] * 5


@pytest.mark.parametrize(
    ("name", "data_dir", "asked"),
    [
        ("imdb_reviews", None, ("stanfordnlp/imdb", None, None)),
        ("imdb_reviews/plain_text", None, ("stanfordnlp/imdb", "plain_text", None)),
        ("glue/mnli", "/no", ("nyu-mll/glue", "mnli", "/no")),
        ("cnn_dailymail", None, ("abisee/cnn_dailymail", "3.0.0", None)),
        ("someone/something", None, ("someone/something", None, None)),
    ],
)
def test_names_of_tfds_are_looked_for_on_the_hub(hub, name, data_dir, asked):
    assert take(TFDS(name, data_dir, keys=["text"]), 1)
    assert hub == [asked]


def test_evals_are_of_the_split_that_is_meant(hub):
    """What is held out, else glue/mnli's matched or mismatched ones, else validation or test."""

    def first(name="someone/something", **settings):
        ((text,),) = take(TFDS(name, keys=["text"], train=False, **settings), 1)
        return text.decode()

    assert first() == "test \u00e9 0"
    assert first("glue/mnli") == "matched \u00e9 0"
    assert first("glue/mnli", use_alt_eval=True) == "mismatched \u00e9 0"
    assert first(eval_holdout_size=0.25) == "train \u00e9 8"


def test_what_is_held_out_is_not_trained_on(hub):
    settings = {"keys": ["text"], "eval_holdout_size": 0.25}
    train = {text for (text,) in take(TFDS("a", **settings), 16)}
    held_out = {text for (text,) in take(TFDS("a", train=False, **settings), 4)}

    assert len(train) == 8
    assert len(held_out) == 2
    assert not train & held_out


def test_each_host_has_its_own_rows_of_training(hub, monkeypatch):
    """As many as torchrun started, if the call does not say; evals are the same for all."""
    seen = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        stage = TFDS("a", keys=["text"], eval_holdout_size=0.1, shuffle_train=False)
        seen.append([text for (text,) in take(stage, 3)])
        assert take(TFDS("a", keys=["text"], train=False), 1)[0][0].startswith(b"test")
    first = TFDS("a", keys=["text"], host_id=0, n_hosts=1, shuffle_train=False)

    every = [text for (text,) in take(first, N_TRAIN)]
    assert [text for share in seen for text in share] == every[:9]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"keys": None}, ValueError, r"got keys=None, and a has \['text', 'label', 'pair'\]. Name"),
        ({"keys": ["txt"]}, ValueError, r"features of the data set; got 'txt', and it has .*Name"),
        ({"dataset_name": "t2t_wmt"}, ValueError, r"got 't2t_wmt', a problem of tensor2tensor's"),
        ({"eval_holdout_size": 1}, ValueError, r"from 0 to less than 1, .* got 1. Give 0.1"),
        ({"eval_holdout_size": 0.01}, ValueError, r"of an example or more; got 0.01"),
        ({"n_hosts": 11}, ValueError, r"11 hosts needs a training example; a has 10 .*Hold out"),
        ({"host_id": 2, "n_hosts": 2}, ValueError, r"one of n_hosts=2, from 0 on; got 2. Leave"),
        (
            {"dataset_name": "absent"},
            FileNotFoundError,
            r"needs the data set 'absent', and .* \(Couldn't reach it\).*save_to_disk.*data_dir=",
        ),
    ],
)
def test_what_is_not_there_is_told_of(hub, settings, error, message):
    with pytest.raises(error, match=message):
        TFDS(**{"dataset_name": "a", "keys": ["text"], **settings})


def test_a_split_that_is_not_there_is_told_of(hub, monkeypatch):
    monkeypatch.setattr(
        sys.modules["datasets"], "load_dataset", lambda *_, **__: {"dev": rows("d", 1)}
    )

    with pytest.raises(ValueError, match="a needs a split train; it has dev. Hold out"):
        TFDS("a", keys=["text"])
    with pytest.raises(ValueError, match="a needs a split validation or test; it has dev"):
        TFDS("a", keys=["text"], train=False)


def test_libraries_that_are_not_there_are_asked_for(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)

    with pytest.raises(ImportError, match=r"needs the package datasets.*'trax-torch\[data\]'"):
        TFDS("imdb_reviews", keys=["text"])
    (tmp_path / "mine" / "1.0.0").mkdir(parents=True)
    (tmp_path / "mine" / "1.0.0" / "features.json").touch()
    with pytest.raises(ImportError, match=r"package tensorflow_datasets.*'trax-torch\[tfds\]'"):
        TFDS("mine", str(tmp_path), keys=["text"])


def test_a_name_that_tfds_does_not_have_is_looked_for_on_the_hub(hub, monkeypatch):
    monkeypatch.delitem(sys.modules, "tensorflow_datasets")
    needed("tensorflow_datasets")

    assert take(TFDS("someone/something", keys=["text"]), 1)
    assert hub == [("someone/something", None, None)]


def test_streams_give_inputs_and_targets(prepared):
    """Those that the data set calls so; both streams are shuffled, and none ends."""
    train, evals = data_streams("mine", prepared, shuffle_buffer_size=4)

    given = take(train, 2 * N_TRAIN)
    assert all(text.decode()[-1] in "02468" for text, label in given if label == 0)
    assert len({text for text, _ in given[:N_TRAIN]} | {text for text, _ in given}) == N_TRAIN
    assert {text[:4] for text, _ in take(evals, 7)} == {b"test"}


def test_streams_are_changed_before_and_after_targets_are_taken(hub):
    """By functions of a stream of features, and of features and targets; a mask goes along."""

    def bare(stream, is_training):
        return map(lambda x: {**x, "n": len(x["text"]), "kind": [1, int(is_training)]}, stream)

    def after(stream, is_training):
        return map(lambda x: ({**x[0], "mask": is_training}, x[1] + 1), stream)

    train, evals = data_streams(
        "a",
        preprocess_fn=after,
        bare_preprocess_fn=bare,
        shuffle_buffer_size=2,
        input_name="kind",
        target_name="n",
    )

    for stage, is_training in ((train, True), (evals, False)):
        stream = stage()
        kind, target, mask = next(stream)
        assert kind.tolist() == [1, is_training]
        assert target == len("train e 0" if is_training else "test e 0") + 2  # e is of two bytes
        assert mask is is_training
        state = stream.state_dict()
        expected = [next(stream)[1] for _ in range(15)]
        again = stage()
        again.load_state_dict(state)
        assert [next(again)[1] for _ in range(15)] == expected


def test_streams_need_to_know_what_is_what(hub):
    with pytest.raises(
        ValueError, match=r"got input_name=None, target_name='label', and a has .*Name both"
    ):
        data_streams("a", target_name="label")


def test_lists_and_images_are_arrays(hub, monkeypatch):
    """Of numbers, if they are of one shape; images have an axis of colors."""
    image = needed("PIL.Image").fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    row = {"ids": [1, 2], "rows": [[1], [2, 3]], "texts": ["a", "b"], "image": image, "none": None}
    monkeypatch.setattr(sys.modules["datasets"], "load_dataset", lambda *_, **__: {"train": [row]})

    ((ids, ragged, texts, picture, none),) = take(TFDS("a", keys=list(row)), 1)

    assert (ids.dtype, ids.tolist()) == (np.int64, [1, 2])
    assert [x.tolist() for x in ragged] == [[1], [2, 3]]
    assert texts.tolist() == [b"a", b"b"]
    assert (picture.shape, picture.dtype) == ((2, 3, 1), np.uint8)
    assert none is None


def test_a_program_of_trax_trains_and_goes_on(hub, tmp_path):
    """From texts by ids to batches in buckets; in one go or in three, to the same weights."""

    def batches(train):
        return data.Serial(
            TFDS("a", keys=("text", "label"), train=train),
            data.Tokenize(keys=[0], vocab_type="char", n_reserved_ids=1),
            data.Shuffle(queue_size=4, seed=0),
            data.FilterByLength(max_length=20, length_keys=[0]),
            data.BucketByLength([8, 16], [2, 2, 2], length_keys=[0]),
            data.AddLossWeights(),
        )()

    def loop(folder):
        model = tl.Serial(
            tl.Embedding(data.vocab_size("char", n_reserved_ids=1), 8), tl.Mean(axis=1), tl.Dense(2)
        )
        np.random.seed(0)
        loss, recipe = tl.WeightedCategoryCrossEntropy(), torch.optim.Adam
        task = TrainTask(batches(True), loss, recipe, n_steps_per_checkpoint=5)
        evals = EvalTask(batches(False), [loss], n_eval_batches=2)
        return Loop(model, task, eval_tasks=evals, output_dir=folder, random_seed=0, verbose=False)

    whole = loop(str(tmp_path / "whole"))
    whole.run(15)
    for _ in range(3):
        cut = loop(str(tmp_path / "cut"))
        cut.run(5)

    assert cut.step == whole.step == 15
    for a, b in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        assert torch.equal(a, b)
