"""Reformers give Trax's outputs, gradients and predictions for Trax's weights."""

import functools

import figures
import pytest
import reformers
import torch

from trax_torch import layers as tl


@pytest.mark.parametrize("name", figures.names("model", reformers.FOLDER))
def test_a_reformer_gives_the_outputs_and_gradients_of_trax(name):
    reformers.assert_like_trax(name, reformers.built(name))


@pytest.mark.parametrize(
    ("name", "part", "attention"),
    [
        ("ReformerLM_0", "predict_singles", {}),
        ("ReformerLM_0", "predict_forgetting", {"predict_mem_len": 6, "predict_drop_len": 2}),
        ("ReformerLM_1", "predict_singles", {"chunk_len": 4, "n_chunks_before": 1}),
    ],
)
@pytest.mark.parametrize("lengths", [[1] * 12, [12], [5, 1, 4, 2]])
def test_a_reformer_predicts_as_trax_does_token_by_token(name, part, attention, lengths):
    """However tokens come; with positions forgotten, and in chunks, too."""
    kind = functools.partial(tl.SelfAttention, **attention)
    model = reformers.built(name, attention_type=kind, mode="predict")
    tokens = reformers.inputs_of(name)
    model.reset_cache()

    with torch.no_grad():
        outputs = torch.cat([model(piece) for piece in tokens.split(lengths, dim=1)], dim=1)

    figures.assert_close(outputs, figures.part(name, part, reformers.FOLDER), 2e-6)
