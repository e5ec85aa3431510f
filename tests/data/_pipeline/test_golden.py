"""Stages give what Trax's give: values, shapes and types."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from pipelines import assert_same

from trax_torch import data

FIGURES = json.loads((Path(__file__).parents[2] / "golden/pipelines/figures.json").read_text())
EXAMPLES = [(np.array(x), np.array(y)) for x, y in FIGURES["examples"]]
GIVEN = {
    "examples": lambda: EXAMPLES,
    "tokens": lambda: [x for x, _ in EXAMPLES],
    "masked": lambda: [(x, np.arange(len(x)) % 3 == 1) for x, _ in EXAMPLES],
    "batches": lambda: data.batch(EXAMPLES, 4),
}


def arrays(figure):
    if isinstance(figure, list):
        return tuple(map(arrays, figure))
    return np.array(figure["values"], figure["dtype"])


def by_numbers(setting):
    """JSON has strings for keys, and lists for shapes."""
    if not isinstance(setting, dict):
        return setting
    return {int(k): tuple(x) if isinstance(x, list) else x for k, x in setting.items()}


@pytest.mark.parametrize(
    "case", FIGURES["stages"], ids=lambda c: f"{c['stage']} {c['given']} {c['kwargs']}"
)
def test_a_stage_gives_what_traxs_gives(case):
    """With seed=, where it draws: as Trax after np.random.seed."""
    kwargs = {key: by_numbers(setting) for key, setting in case["kwargs"].items()}
    if case["seed"] is not None:
        kwargs["seed"] = case["seed"]

    given = list(getattr(data, case["stage"])(**kwargs)(GIVEN[case["given"]]()))

    assert_same([_as_arrays(x) for x in given], [arrays(x) for x in case["gives"]])


def _as_arrays(x):
    return tuple(map(_as_arrays, x)) if isinstance(x, (tuple, list)) else np.asarray(x)


@pytest.mark.parametrize("case", FIGURES["parallel"], ids=lambda c: str(c["counters"]))
def test_streams_are_mixed_as_traxs_are(case):
    n, expected = case.pop("n"), case.pop("gives")
    mixed = data.Parallel([lambda i=i: itertools.repeat(i) for i in range(n)], **case)()

    assert list(itertools.islice(mixed, len(expected))) == expected


@pytest.mark.parametrize("case", FIGURES["pad_to_max_dims"], ids=str)
def test_arrays_are_padded_to_traxs_shapes(case):
    tensors = [np.ones(shape) for shape in case["shapes"]]
    padded = data.inputs.pad_to_max_dims(tensors, case["boundary"], case["strict_pad_on_len"])

    assert list(padded.shape) == case["gives"]
    assert padded.sum() == sum(t.sum() for t in tensors)


@pytest.mark.parametrize("case", FIGURES["random_spans_noise_mask"], ids=str)
def test_spans_of_noise_are_traxs(case):
    assert data.random_spans_noise_mask(*case["args"]).tolist() == case["gives"]
