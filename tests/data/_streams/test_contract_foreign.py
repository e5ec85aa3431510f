"""Data of other packages runs the laws of `test_contract.py`, whatever its own state is worth."""

import io
import logging
import tarfile

import pytest
import streams
import torch
from streams import Epochs, Rows, seeded

pytestmark = [
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),  # torchdata's, of torch 2.14
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # webdataset
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # leaves files open
]


def collated(rows):
    x = torch.tensor([[float(row["x"])] for row in rows])
    return x, torch.zeros_like(x)


def stateful_loader(dataset=None, **kwargs):
    found = pytest.importorskip("torchdata.stateful_dataloader")
    return found.StatefulDataLoader(dataset or Rows(), 3, **kwargs)


def nodes(shuffled=False):
    tn = pytest.importorskip("torchdata.nodes")
    sampler = torch.utils.data.RandomSampler(range(12), generator=seeded() if shuffled else None)
    if not shuffled:
        sampler = torch.utils.data.SequentialSampler(range(12))
    rows = tn.MapStyleWrapper(map_dataset=Rows(), sampler=sampler)
    batches = tn.Batcher(rows, batch_size=3, drop_last=False)
    return tn.Mapper(batches, torch.utils.data.default_collate)


def node_loader():
    return pytest.importorskip("torchdata.nodes").Loader(nodes())


def hugging_face(n_shards=3):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"x": list(range(12))})
    return rows.to_iterable_dataset(num_shards=n_shards).with_format("torch")


def map_style():
    rows = pytest.importorskip("datasets").Dataset.from_dict({"x": list(range(12))})
    return torch.utils.data.DataLoader(
        rows.with_format("torch"), 3, shuffle=True, generator=seeded()
    )


class Tuples:
    """Hands batches and states through, and says nothing of epochs."""

    def __init__(self, data):
        self.data = data

    def __iter__(self):
        for batch in self.data:
            yield batch["x"][:, None], batch["x"][:, None] * 0

    def state_dict(self):
        return self.data.state_dict()

    def load_state_dict(self, state):
        self.data.load_state_dict(state)


def accelerated(dataset=None, is_stateful=False, **kwargs):
    accelerate = pytest.importorskip("accelerate")
    if is_stateful:
        pytest.importorskip("torchdata.stateful_dataloader")
    settings = accelerate.DataLoaderConfiguration(use_stateful_dataloader=is_stateful)
    accelerator = accelerate.Accelerator(cpu=True, dataloader_config=settings)
    return accelerator.prepare_data_loader(
        torch.utils.data.DataLoader(dataset or Rows(), 3, **kwargs)
    )


@pytest.fixture(scope="module")
def tar(tmp_path_factory):
    """A tar file of 12 rows, as webdataset reads them."""
    path = tmp_path_factory.mktemp("shards") / "rows.tar"
    with tarfile.open(path, "w") as file:
        for i in range(12):
            info = tarfile.TarInfo(f"{i:04}.cls")
            info.size = len(text := str(i).encode())
            file.addfile(info, io.BytesIO(text))
    return str(path)


def web(path, shuffle=None):
    wds = pytest.importorskip("webdataset")
    rows = wds.WebDataset(path, shardshuffle=False)
    rows = rows if shuffle is None else shuffle(rows)
    return rows.decode().to_tuple("cls").map(lambda row: (float(row[0]), 0.0)).batched(3)


KINDS = {
    "torchdata": stateful_loader,
    "torchdata, shuffled": lambda: stateful_loader(shuffle=True, generator=seeded()),
    "torchdata, by torch's generator": lambda: stateful_loader(shuffle=True),
    "torchdata, items that draw": lambda: stateful_loader(Rows(lambda: torch.rand(()))),
    "torchdata, epochs": lambda: stateful_loader(Epochs()),
    "torchdata over hugging face": lambda: stateful_loader(hugging_face(), collate_fn=collated),
    "nodes": node_loader,
    "a node": nodes,
    "hugging face": lambda: hugging_face().batch(3),
    "hugging face, shuffled": lambda: hugging_face().shuffle(seed=3, buffer_size=5).batch(3),
    "hugging face, rows": map_style,
    "hugging face, in a loader": lambda: torch.utils.data.DataLoader(
        hugging_face().shuffle(seed=3, buffer_size=5), 3, collate_fn=collated
    ),
    "hugging face, wrapped": lambda: Tuples(hugging_face().batch(3)),
    "accelerate": lambda: accelerated(shuffle=True, generator=seeded()),
    "accelerate, stateful": lambda: accelerated(is_stateful=True),
    "accelerate, stateful, shuffled": lambda: accelerated(
        is_stateful=True, shuffle=True, generator=seeded()
    ),
    "accelerate, stateful, over hugging face": lambda: accelerated(
        hugging_face().shuffle(seed=3, buffer_size=5), is_stateful=True
    ),
}
SHUFFLED = [
    "torchdata, shuffled",
    "torchdata, by torch's generator",
    "torchdata, epochs",
    "hugging face, shuffled",
    "hugging face, rows",
    "hugging face, in a loader",
    "accelerate",
    "accelerate, stateful, shuffled",
    "accelerate, stateful, over hugging face",
]
all_kinds = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


@all_kinds
def test_resumed_at_each_cut_it_is_the_stream_that_was_not_stopped(make):
    streams.check_each_cut(make)


@all_kinds
def test_what_others_draw_in_between_changes_nothing(make):
    streams.check_others_between(make)


@pytest.mark.parametrize("name", [name for name in KINDS if "node" not in name])
def test_two_tasks_on_one_object_have_each_what_it_would_have_alone(name):
    streams.check_two_tasks(KINDS[name])


@all_kinds
def test_it_goes_back_in_one_process(make):
    streams.check_going_back(make)


@pytest.mark.parametrize("name", SHUFFLED)
def test_epochs_differ(name):
    streams.check_epochs_differ(KINDS[name])


def test_two_tasks_on_one_node_are_warned_of(caplog):
    """It gives each batch once, to whoever asks."""
    one = node_loader()
    with caplog.at_level(logging.WARNING, "trax_torch"):
        pair = [streams.begun(lambda: one) for _ in range(2)]

    assert pair
    assert "A Loader keeps one place, and 2 streams draw from it" in caplog.text


def test_webdataset_is_drawn_again(tar):
    streams.check_each_cut(lambda: web(tar))
    streams.check_others_between(lambda: web(tar))


def test_a_shuffle_by_the_clock_is_told(tar, caplog):
    """webdataset seeds `shuffle` by the time unless it is given a generator."""
    first, second = (
        streams.begun(lambda: web(tar, lambda rows: rows.shuffle(12))) for _ in range(2)
    )
    streams.drawn(first, 2)
    with caplog.at_level(logging.WARNING, "trax_torch"):
        second.seek(streams.saved(first))

    assert "the batches at the place of the save are others" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: stateful_loader(shuffle=True, num_workers=1),
        lambda: stateful_loader(hugging_face(), collate_fn=collated, num_workers=1),
    ],
    ids=["torchdata", "torchdata over hugging face"],
)
def test_workers_change_nothing(make):
    streams.check_each_cut(make, cuts=(2, 3, 6))
    streams.check_two_tasks(make)
