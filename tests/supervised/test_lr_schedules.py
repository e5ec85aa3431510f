"""Learning-rate schedules."""

import functools
import pickle

import figures
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LambdaLR

from trax_torch.supervised import lr_schedules

SCHEDULES = [name for name in figures.names("schedule") if name != "schedule_sawtooth"]


def build(name):
    info = figures.case(name)
    return getattr(lr_schedules, info["name"])(**info["kwargs"])


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_has_the_values_of_trax(name):
    """Equal to 1e-6, relative, at every step Trax was asked for."""
    schedule = build(name)
    steps, values = figures.part(name, "steps"), figures.part(name, "values")

    for step, value in zip(steps.tolist(), values.tolist(), strict=True):
        assert schedule(step) == pytest.approx(value, rel=1e-6, abs=1e-12), step


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_a_value(name):
    """Picklable, equal to its twin, printable, and defined at 0."""
    schedule = build(name)

    assert pickle.loads(pickle.dumps(schedule)) == schedule == build(name)
    assert hash(schedule) == hash(build(name))
    assert "(" in repr(schedule)
    assert isinstance(schedule(0), float)


MADE = st.one_of(
    st.builds(lr_schedules.constant, st.floats(0, 1)),
    st.builds(lr_schedules.warmup, st.integers(0, 50), st.floats(0, 1)),
    st.builds(lr_schedules.warmup_and_rsqrt_decay, st.integers(0, 50), st.floats(0, 1)),
    st.builds(
        functools.partial(lr_schedules.multifactor, steps_per_cycle=40, steps_per_decay=7),
        st.lists(st.sampled_from(lr_schedules._FACTORS), min_size=1, max_size=3).map(" * ".join),
        st.floats(0.01, 1),
        st.integers(0, 50),
    ),
)


def optimizer_of_one():
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.7)


@given(MADE, st.integers(1, 30))
def test_the_kth_step_of_an_optimizer_uses_the_schedule_at_k(schedule, n_steps):
    """lambda_lr shifts LambdaLR's count by one, so that no step is lost."""
    optimizer = optimizer_of_one()
    scheduler = lr_schedules.lambda_lr(optimizer, schedule)

    for k in range(1, n_steps + 1):
        assert optimizer.param_groups[0]["lr"] == schedule(k)
        optimizer.step()
        scheduler.step()


@given(MADE, st.integers(0, 30))
def test_a_schedule_goes_into_lambda_lr_as_it_is(schedule, n_steps):
    """With a base rate of 1, LambdaLR's rate after n steps is schedule(n)."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = LambdaLR(optimizer, schedule)

    for _ in range(n_steps):
        optimizer.step()
        scheduler.step()

    assert optimizer.param_groups[0]["lr"] == schedule(n_steps)


def test_the_state_of_a_scheduler_is_plain_numbers(tmp_path):
    """It loads where nothing but plain data is allowed, and goes on from there."""
    schedule = lr_schedules.warmup(10, 1.0)
    optimizer = optimizer_of_one()
    scheduler = lr_schedules.lambda_lr(optimizer, schedule)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    torch.save(scheduler.state_dict(), tmp_path / "state")

    other = optimizer_of_one()
    resumed = lr_schedules.lambda_lr(other, schedule)
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    other.step()
    resumed.step()

    assert resumed.get_last_lr() == [schedule(6)]


def test_unknown_factors_and_bad_counts_are_refused_when_built():
    with pytest.raises(ValueError, match="got 'linear_warmpu' in 'constant \\* linear_warmpu'"):
        lr_schedules.multifactor("constant * linear_warmpu")
    with pytest.raises(ValueError, match="steps_per_cycle counts steps, so it is at least 1"):
        lr_schedules.multifactor("cosine_decay", steps_per_cycle=0)
    with pytest.raises(ValueError, match="n_warmup_steps counts steps, so it is at least 0"):
        lr_schedules.warmup(-1, 0.1)
