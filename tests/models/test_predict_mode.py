"""Predict mode: the same numbers as eval mode, however a sequence is cut."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trax_torch import layers as tl
from trax_torch import models

LENGTH = 12


@pytest.fixture(scope="module")
def model():
    model = models.TransformerLM(
        vocab_size=9, d_model=16, d_ff=24, n_layers=2, n_heads=4, max_len=LENGTH
    )
    model.init(torch.zeros(1, 2, dtype=torch.int64), rng=0)
    return model.double()


def cuts(total):
    """Ways to cut a sequence into calls."""
    return st.lists(st.integers(1, total), min_size=1, max_size=total).map(
        lambda parts: [p for p in parts if p]
    )


@settings(max_examples=40, deadline=None)
@given(parts=cuts(LENGTH), batch=st.integers(1, 3), seed=st.integers(0, 1000))
def test_predicting_equals_evaluating_for_any_cut_of_a_sequence(model, parts, batch, seed):
    """Eval mode on a sequence shifted by its own ShiftRight = predict mode on its pieces."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(9, (batch, LENGTH), generator=generator)
    seen = torch.cat([torch.zeros(batch, 1, dtype=torch.int64), tokens[:, :-1]], dim=1)
    model.eval()

    with torch.no_grad():
        whole = model(tokens)
        pieces, at = [], 0
        with model.predict(batch, LENGTH):
            for n in parts:
                if at < LENGTH:
                    pieces.append(model(seen[:, at : at + n]))
                at += n
            if at < LENGTH:
                pieces.append(model(seen[:, at:]))

    assert torch.allclose(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-12)


def test_a_position_beyond_the_memory_is_refused_before_anything_is_written(model):
    tokens = torch.ones(1, 3, dtype=torch.int64)
    with torch.no_grad(), model.predict(1, 4):
        model(tokens)
        before = [t.clone() for t in tl.flatten_weights_and_state((), model.state)[1]]
        with pytest.raises(
            tl.LayerError, match="has room for 4 positions; 3 are filled and 3 more"
        ):
            model(tokens)
        after = tl.flatten_weights_and_state((), model.state)[1]

        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        model(tokens[:, :1])


def test_resetting_and_setting_the_state_go_back(model):
    """A reset memory starts afresh; a state that was read and set again goes on from there."""
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad(), model.predict(1, 8):
        first = model(tokens[:, :2])
        state = model.state
        second = model(tokens[:, 2:])

        model.state = state
        again = model(tokens[:, 2:])
        model.reset_cache()
        afresh = model(tokens[:, :2])

    assert torch.equal(again, second)
    assert torch.equal(afresh, first)


def test_predict_mode_comes_and_goes_with_its_block(model):
    """Two runs take turns on one model, which trains in between, and none notices."""
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        with model.predict(1, 8):
            alone = [model(tokens[:, i : i + 1]) for i in range(5)]
        model.train()
        one, other, taken, disturbed = model.predict(1, 8), model.predict(1, 8), [], []
        for i in range(5):
            with one:
                taken.append(model(tokens[:, i : i + 1]))
            assert model.training
            assert model.sublayers[0].mode == "train"
            with other:
                disturbed.append(model(tokens[:, 4 - i : 5 - i]))

    assert torch.equal(torch.cat(taken), torch.cat(alone))
    assert not torch.equal(torch.cat(disturbed), torch.cat(alone))


def test_a_run_is_not_entered_in_its_own_block(model):
    """The model would predict for good; as it is, it comes out as it was."""
    model.train()
    run = model.predict(1, 8)
    with run, pytest.raises(RuntimeError, match="one block at a time, but this one of Serial was"):
        run.__enter__()

    assert (model.mode, model.training) == ("train", True)
    with run:
        assert model.mode == "predict"
    assert model.mode == "train"


@pytest.mark.parametrize("layer", [None, tl.GRU(4), tl.as_layer(torch.nn.Linear(2, 2))])
def test_runs_are_left_in_the_order_of_a_stack(model, layer):
    """What is left too early stays entered; after that, all is as it was."""
    layer = model if layer is None else layer
    layer.train()
    outer, inner = layer.predict(1, 8), layer.predict(1, 8)
    with outer:
        with inner:
            with pytest.raises(RuntimeError, match="this one of .* is not the innermost. Leave"):
                outer.__exit__(None, None, None)
            assert layer.mode == "predict"
        assert layer.mode == "predict"
        with pytest.raises(RuntimeError, match="is not the innermost. .* and each block once"):
            inner.__exit__(None, None, None)

    assert (layer.mode, layer.training) == ("train", True)


def test_a_run_in_the_block_of_another_does_not_disturb_it(model):
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        with model.predict(1, 8):
            alone = [model(tokens[:, :2]), model(tokens[:, 2:])]
        with model.predict(1, 8):
            first = model(tokens[:, :2])
            with model.predict(1, 8):
                model(tokens)
            second = model(tokens[:, 2:])

    assert torch.equal(first, alone[0])
    assert torch.equal(second, alone[1])


def test_a_layer_that_remembers_nothing_has_blocks_too():
    layer = tl.PositionalEncoding(4, stepwise=False)
    run = layer.predict(1, 4)
    for _ in range(2):
        with run:
            assert not layer.training

    assert layer.training


def test_a_memory_may_be_made_anew_in_a_block(model):
    model.train()
    with model.predict(1, 8):
        model.init_cache(1, 8)

    assert model.mode == "train"


def test_another_batch_size_in_the_midst_is_refused(model):
    with torch.no_grad(), model.predict(None, 8):
        model(torch.ones(2, 1, dtype=torch.int64))
        with pytest.raises(tl.LayerError, match="Reset the cache before another batch"):
            model(torch.ones(3, 1, dtype=torch.int64))


def test_rows_can_go_on_from_the_past_of_others(model):
    """reorder_cache(parents): row r continues as row parents[r] would have."""
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    new = torch.tensor([[7], [8]])
    with torch.no_grad(), model.predict(2, 8):
        model(tokens)
        model.reorder_cache(torch.tensor([1, 1]))
        swapped = model(new)
    with torch.no_grad(), model.predict(2, 8):
        model(tokens[[1, 1]])
        expected = model(new)

    assert torch.allclose(swapped, expected, rtol=0, atol=1e-12)


def test_a_model_that_predicts_is_not_saved_with_its_memory(model):
    with torch.no_grad(), model.predict(1, 8):
        model(torch.ones(1, 2, dtype=torch.int64))

        assert not [name for name in model.state_dict() if "memory" in name]


def test_pure_fn_goes_on_in_a_copy_of_the_memory(model):
    tokens = torch.tensor([[3, 1, 4]])
    with torch.no_grad(), model.predict(1, 8):
        model(tokens[:, :2])
        state = model.state
        outputs, new_state = model.pure_fn(tokens[:, 2:], model.weights, state)
        expected = model(tokens[:, 2:])

    assert torch.equal(outputs, expected)
    flat = tl.flatten_weights_and_state((), new_state)[1]
    assert max(t.item() for t in flat if t.dtype == torch.int32) == 3
