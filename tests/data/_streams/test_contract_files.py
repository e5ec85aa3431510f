"""Data that other packages stream from local files runs the laws of `test_contract.py`."""

import functools
import json

import pytest
import streams
import torch

pytestmark = [
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),  # torchdata's
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor"),  # of Hugging Face's
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # streams
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # leave files open
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rows")


def read(folder, kind="json"):
    """12 rows of three files of lines of JSON, of text, or of a parquet file."""
    datasets = pytest.importorskip("datasets")
    for i in range(3):
        rows = range(4 * i, 4 * i + 4)
        if kind == "parquet":
            path = str(folder / f"{i}.parquet")
            datasets.Dataset.from_dict({"x": list(rows)}).to_parquet(path)
            continue
        lines = [json.dumps({"x": x}) if kind == "json" else str(x) for x in rows]
        (folder / f"{i}.{kind}").write_text("\n".join(lines))
    files = [str(folder / f"{i}.{kind}") for i in range(3)]
    cache = str(folder / "cache")
    rows = datasets.load_dataset(
        kind, data_files=files, split="train", streaming=True, cache_dir=cache
    )
    if kind == "text":
        rows = rows.map(lambda row: {"x": int(row["text"])}, remove_columns=["text"])
    return rows.with_format("torch")


def shuffled(folder):
    return read(folder).shuffle(seed=3, buffer_size=5)


def loader(rows, **kwargs):
    return torch.utils.data.DataLoader(rows, 3, **kwargs)


def stateful(rows, **kwargs):
    found = pytest.importorskip("torchdata.stateful_dataloader")
    return found.StatefulDataLoader(rows, 3, **kwargs)


def collated(rows):
    x = torch.tensor([[float(row["x"])] for row in rows])
    return x, torch.zeros_like(x)


def lit(folder, **kwargs):
    """12 rows of three of litdata's chunks."""
    litdata = pytest.importorskip("litdata")
    chunks = folder / "chunks"
    if not chunks.exists():
        cache = litdata.streaming.Cache(str(chunks), chunk_size=4)
        for i in range(12):
            cache[i] = {"x": float(i)}
        cache.done()
        cache.merge()
    return litdata.StreamingDataset(str(chunks), **kwargs)


def lit_loader(rows, **kwargs):
    litdata = pytest.importorskip("litdata")
    return litdata.StreamingDataLoader(rows, batch_size=3, collate_fn=collated, **kwargs)


IN_ORDER = {
    "json": lambda folder: read(folder).batch(3),
    "text": lambda folder: read(folder, "text").batch(3),
    "parquet": lambda folder: read(folder, "parquet").batch(3),
    "text, torchdata": lambda folder: stateful(read(folder, "text")),
    "litdata": lambda folder: lit_loader(lit(folder)),
}
SHUFFLED = {
    "json, shuffled": lambda folder: shuffled(folder).batch(3),
    "json, in a loader": lambda folder: loader(shuffled(folder)),
    "litdata, shuffled": lambda folder: lit_loader(lit(folder, shuffle=True, seed=3)),
    "litdata, in torch's loader": lambda folder: loader(
        lit(folder, shuffle=True), collate_fn=collated
    ),
    "litdata, torchdata": lambda folder: stateful(lit(folder, shuffle=True), collate_fn=collated),
}
ALL = IN_ORDER | SHUFFLED


def of(kinds):
    return pytest.mark.parametrize("make", kinds.values(), ids=kinds)


@of(ALL)
def test_resumed_at_each_cut_it_is_the_stream_that_was_not_stopped(make, folder):
    streams.check_each_cut(functools.partial(make, folder))


@of(ALL)
def test_what_others_draw_in_between_changes_nothing(make, folder):
    streams.check_others_between(functools.partial(make, folder))


@of(ALL)
def test_two_tasks_on_one_object_have_each_what_it_would_have_alone(make, folder):
    streams.check_two_tasks(functools.partial(make, folder))


@of(ALL)
def test_it_goes_back_in_one_process(make, folder):
    streams.check_going_back(functools.partial(make, folder))


@of(SHUFFLED)
def test_epochs_differ(make, folder):
    streams.check_epochs_differ(functools.partial(make, folder))
