"""What Adafactor promises beyond the contract."""

import pytest
import torch

from trax_torch.optimizers import Adafactor


def parameter(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    p = torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
    p.grad = torch.randn(shape, generator=generator).to(dtype)
    return p


def slots(recipe, *shape, dtype=torch.float32):
    p = parameter(*shape, dtype=dtype)
    state = recipe.bind([p]).state[p]
    return {k: (tuple(v.shape), v.dtype) for k, v in state.items() if k != "step"}


def test_memory_is_that_of_rows_and_columns():
    """One number per row and per column; a full table where there are no two axes, or on demand."""
    f32 = torch.float32

    assert slots(Adafactor(), 7, 5) == {"v_row": ((7,), f32), "v_col": ((5,), f32)}
    assert slots(Adafactor(), 3, 7, 5) == {"v_row": ((3, 7), f32), "v_col": ((3, 5), f32)}
    assert slots(Adafactor(), 5) == {"v": ((5,), f32)}
    assert slots(Adafactor()) == {"v": ((), f32)}
    assert slots(Adafactor(factored=False), 7, 5) == {"v": ((7, 5), f32)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_second_moments_are_wide_and_momentum_is_as_asked(dtype):
    """Averages with a decay near 1 stand still in bfloat16, so they are never kept in it."""
    wide = torch.promote_types(dtype, torch.float32)
    thin = Adafactor(do_momentum=True, momentum_in_bfloat16=True)

    assert slots(Adafactor(do_momentum=True), 5, dtype=dtype) == {
        "v": ((5,), wide),
        "m": ((5,), dtype),
    }
    assert slots(thin, 5, dtype=dtype) == {"v": ((5,), wide), "m": ((5,), torch.bfloat16)}


def test_decay_falls_to_0_over_n_steps():
    """At step t it is rate * max(0, 1 - t / n), so step n has none."""
    p = parameter(4, 3)
    bound = Adafactor(0.0, weight_decay_rate=0.1, weight_decay_n_steps=4).bind([p])
    shares = []
    for _ in range(6):
        before = p.detach().clone()
        bound.step()
        shares.append(1 - (p / before).mean().item())

    assert shares == pytest.approx([0.075, 0.05, 0.025, 0, 0, 0], abs=1e-6)


def test_a_step_is_clipped_to_its_threshold():
    """The RMS of an absolute step is at most lr * clipping_threshold, and is it where clipped."""
    for threshold in (0.25, 0.5, None):
        p = parameter(6, 5)
        start = p.detach().clone()
        recipe = Adafactor(
            0.1,
            multiply_by_parameter_scale=False,
            clipping_threshold=threshold,
            weight_decay_rate=0,
        )
        recipe.bind([p]).step()
        rms = (p - start).square().mean().sqrt().item()

        if threshold is None:
            assert rms > 0.1
        else:
            assert rms == pytest.approx(0.1 * threshold, rel=1e-4)


def test_no_threshold_is_no_clipping():
    p, q = parameter(6, 5), parameter(6, 5)

    Adafactor(clipping_threshold=None).bind([p]).step()
    Adafactor(do_clipping=False).bind([q]).step()

    assert torch.equal(p, q)


def test_a_weight_of_zeros_moves():
    """epsilon2 is the least scale of a weight."""
    p = torch.nn.Parameter(torch.zeros(4, 3))
    p.grad = torch.ones(4, 3)

    Adafactor(0.1, epsilon2=0.01).bind([p]).step()

    assert torch.allclose(p, torch.tensor(-0.1 * 0.01))


def test_zero_gradients_give_zero_steps():
    """Also in rows, columns and weights that never had another."""
    for shape in ((4, 3), (5,)):
        p = parameter(*shape)
        start = p.detach().clone()
        p.grad.zero_()

        Adafactor(weight_decay_rate=0).bind([p]).step()

        assert torch.equal(p, start)


def test_each_parameter_counts_its_own_steps():
    """One that had no gradient at first starts at step 1 when it gets one."""
    early, late, alone = parameter(4, 3), parameter(4, 3, seed=1), parameter(4, 3, seed=1)
    bound, fresh = Adafactor().bind([early, late]), Adafactor().bind([alone])
    kept, late.grad = late.grad, None
    bound.step()
    late.grad = kept
    bound.step()
    fresh.step()

    assert [bound.state[p]["step"] for p in (early, late)] == [2, 1]
    assert torch.equal(late, alone)


@pytest.mark.parametrize("kwargs", [{"beta1": 0.9}, {"momentum_in_bfloat16": True}])
def test_momentum_without_do_momentum_is_refused(kwargs):
    """Trax trains without it and says nothing."""
    with pytest.raises(ValueError, match="mean nothing without momentum. Add do_momentum=True"):
        Adafactor(**kwargs)
