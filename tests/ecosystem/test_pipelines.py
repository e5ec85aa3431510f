"""Sources of other libraries begin pipelines that keep their place, which go into loaders."""

import itertools

import numpy as np
import pytest
import torch
from pipelines import assert_same, through_a_file

from trax_torch import data

pytestmark = pytest.mark.filterwarnings(
    "ignore:'set_vital' is deprecated:UserWarning"
)  # torchdata's


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, i):
        return i


class Pipeline(torch.utils.data.IterableDataset):
    def __iter__(self):
        rows = [(np.arange(i % 5 + 1), i) for i in range(24)]
        return data.Serial(rows, data.Shuffle(4, seed=1), data.Batch(2))()


def loader(**kwargs):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    return stateful.StatefulDataLoader(Rows(), batch_size=2, **kwargs)


def shuffled():
    return loader(shuffle=True, generator=torch.Generator().manual_seed(0))


def nodes():
    tn = pytest.importorskip("torchdata.nodes")
    return tn.Loader(tn.Batcher(tn.IterableWrapper(range(24)), 2))


def hf_rows():
    return pytest.importorskip("datasets").Dataset.from_dict({"x": list(range(24))})


SOURCES = {
    "torchdata": loader,
    "torchdata, shuffled": shuffled,
    "torchdata, workers": lambda: loader(num_workers=2),
    "torchdata, nodes": nodes,
    "datasets": hf_rows,
    "datasets, iterable": lambda: hf_rows().to_iterable_dataset(num_shards=3),
    "datasets, shuffled": lambda: (
        hf_rows().to_iterable_dataset(num_shards=3).shuffle(seed=1, buffer_size=4)
    ),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("called", [False, True], ids=["object", "function"])
def test_a_pipeline_from_another_librarys_source_goes_on(source, called):
    """At each cut of its pass, to the last bit; also where the library's state is not enough."""

    def make():
        first = (lambda _: SOURCES[source]()) if called else SOURCES[source]()
        return data.Serial(first, data.Shuffle(3, seed=1))()

    pipeline, states, given = make(), [], []
    for example in pipeline:
        given.append(example)
        states.append(through_a_file(pipeline.state_dict()))
    for cut, state in enumerate(states, start=1):
        if cut % 5 == 0 or cut == len(states):
            resumed = make()
            resumed.load_state_dict(state)
            assert_same(list(resumed), given[cut:])


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_pipeline_in_torchdatas_loader_goes_on(n_workers):
    """Each worker's own; torchdata asks them for their places."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def make():
        return stateful.StatefulDataLoader(Pipeline(), batch_size=None, num_workers=n_workers)

    whole = make()
    iterator = iter(whole)
    list(itertools.islice(iterator, 5))
    state = whole.state_dict()
    resumed = make()
    resumed.load_state_dict(state)

    for mine, other in itertools.islice(zip(resumed, iterator, strict=False), 5):
        assert_same([np.asarray(x) for x in mine], [np.asarray(x) for x in other])
