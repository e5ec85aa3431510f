"""Adasum, on ranks that are threads of one process."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trax_torch.optimizers._adasum import adasum_


def merged(gradients):
    """Returns every rank's gradients after the merger; `gradients[rank]` is a list of tensors."""
    size = len(gradients)
    results = [[g.clone() for g in each] for each in gradients]
    sent, meeting = [None] * size, threading.Barrier(size)

    def on_rank(rank):
        def swap(tensor):
            sent[rank] = tensor.clone()
            meeting.wait(120)
            everyones = list(sent)
            meeting.wait(120)
            return everyones

        def mean_(tensor):
            tensor.copy_(torch.stack(swap(tensor)).mean(0))

        adasum_(results[rank], rank, size, lambda tensor, partner: swap(tensor)[partner], mean_)

    threads = [threading.Thread(target=on_rank, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def by_formula(vectors):
    """Merges pairs, pairs of pairs, and so on, in float64, as the paper writes it."""
    if len(vectors) == 1:
        return vectors[0]
    a, b = by_formula(vectors[: len(vectors) // 2]), by_formula(vectors[len(vectors) // 2 :])
    dot, of_a, of_b = (a * b).sum(), (a * a).sum(), (b * b).sum()
    return (1 - dot / (2 * of_a)) * a + (1 - dot / (2 * of_b)) * b


@pytest.mark.parametrize("size", [2, 4, 8])
def test_adasum_adds_up_gradients_that_are_orthogonal(size):
    vectors = torch.diag(torch.arange(1.0, size + 1))
    results = merged([[vector] for vector in vectors])

    for (result,) in results:
        torch.testing.assert_close(result, vectors.sum(0))


@pytest.mark.parametrize("size", [2, 4, 8])
def test_adasum_averages_gradients_that_are_equal(size):
    vector = torch.tensor([3.0, -1.0, 0.5])
    results = merged([[vector] for _ in range(size)])

    for (result,) in results:
        torch.testing.assert_close(result, vector)


def test_adasum_takes_the_whole_gradient_where_other_ranks_have_none():
    vector = torch.tensor([3.0, -1.0])
    results = merged([[vector], [torch.zeros(2)]])

    for (result,) in results:
        torch.testing.assert_close(result, vector)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.sampled_from([2, 4, 8]))
def test_adasum_equals_the_formula_tensor_by_tensor(seed, size):
    """And all ranks hold the same bits."""
    torch.manual_seed(seed)
    shapes = [(3, 4), (5,), (1, 1)]
    gradients = [[torch.randn(shape) for shape in shapes] for _ in range(size)]
    results = merged(gradients)

    for i in range(len(shapes)):
        wanted = by_formula([each[i].double() for each in gradients])
        for rank in range(size):
            torch.testing.assert_close(results[rank][i].double(), wanted, rtol=1e-4, atol=1e-4)
            assert torch.equal(results[rank][i], results[0][i])
