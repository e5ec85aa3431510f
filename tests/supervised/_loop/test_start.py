"""The seed that a run begins with."""

import pytest
import torch
from torch import nn
from toys import assert_same_run, line_loop

from trax_torch.supervised import Loop, TrainTask, training


def plain_loop(folder=None, **kwargs):
    """A module with dropout, in a loop that is given no seed."""
    x = torch.randn(64, 4)
    data = torch.utils.data.TensorDataset(x, (x.sum(1) > 0).long())
    model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 2))
    loader = torch.utils.data.DataLoader(data, 16)
    task = TrainTask(loader, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    return Loop(model, task, output_dir=folder, progress=False, **kwargs)


def test_manual_seed_repeats_a_run_that_was_given_no_seed():
    def run(seed):
        torch.manual_seed(seed)
        loop = plain_loop()
        loop.run(3)
        return loop

    one, same, other = run(0), run(0), run(1)

    assert one.random_seed == same.random_seed != other.random_seed
    assert_same_run(one, same)


def test_loops_of_one_script_have_seeds_of_their_own():
    torch.manual_seed(0)

    assert len({plain_loop().random_seed for _ in range(3)}) == 3


def test_the_seed_that_was_drawn_is_printed_and_repeats_the_run(capsys):
    torch.manual_seed(5)
    drawn = plain_loop()
    said = capsys.readouterr().out
    torch.manual_seed(5)
    given = plain_loop(random_seed=drawn.random_seed)
    drawn.run(3)

    assert f"Random seed: {drawn.random_seed}\n" in said
    assert "Random seed" not in capsys.readouterr().out
    assert given.random_seed == drawn.random_seed


def test_a_run_that_goes_on_has_the_seed_it_began_with(tmp_path, capsys):
    first = plain_loop(str(tmp_path))
    first.run(1)
    second = plain_loop(str(tmp_path))

    assert second.random_seed == first.random_seed
    assert capsys.readouterr().out.count(f"Random seed: {first.random_seed}\n") == 2


def test_a_seed_that_was_asked_for_is_readable():
    assert line_loop(random_seed=11).random_seed == 11


def test_verify_resume_needs_no_seed_where_torchs_is_set():
    def make(folder):
        torch.manual_seed(0)
        return plain_loop(folder)

    training.verify_resume(make, n_steps=3)


def test_init_host_and_devices_draws_its_seed_from_torchs_generator():
    seeds = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        seeds.append(training.init_host_and_devices()[-1])

    assert seeds[0] == seeds[1] != seeds[2]


@pytest.mark.parametrize("seed", [0, 7])
def test_init_host_and_devices_takes_the_seed_it_is_given(seed):
    assert training.init_host_and_devices(random_seed=seed)[-1] == seed
