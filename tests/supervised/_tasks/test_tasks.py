"""What a run learns from and measures: data that begins, goes on and ends, and names."""

import logging

import pytest
import torch
from torch import nn
from toys import batches, eval_task, line_loop, train_task

from trax_torch import layers as tl
from trax_torch import optimizers
from trax_torch.supervised import EvalTask, Loop, TrainingStepCallback, TrainTask


def test_a_data_loader_is_gone_through_again_and_again():
    """Epoch after epoch, with every item once in each."""
    items = [(torch.full((3,), float(i)), torch.tensor([float(i)])) for i in range(6)]
    seen = []

    class Spy(nn.Module):
        def forward(self, output, target):
            seen.extend(target[:, 0].tolist())
            return ((output - target) ** 2).mean()

    loader = torch.utils.data.DataLoader(items, batch_size=2, shuffle=True)
    sample = next(iter(loader))
    task = TrainTask(loader, Spy(), optimizers.SGD(1e-4), sample_batch=sample)
    Loop(nn.Linear(3, 1), task, progress=False).run(6)

    assert sorted(seen[:6]) == sorted(seen[6:]) == [0, 1, 2, 3, 4, 5]


def test_data_that_is_empty_or_no_data_is_refused():
    with pytest.raises(ValueError, match="labeled_data ended after 0 batches"):
        TrainTask(iter([]), tl.L2Loss(), optimizers.SGD(0.1))
    with pytest.raises(ValueError, match="is empty: going through it gives no batch"):
        EvalTask([], tl.L2Loss())
    with pytest.raises(TypeError, match="Call a generator function first"):
        TrainTask(batches, tl.L2Loss(), optimizers.SGD(0.1))
    with pytest.raises(ValueError, match="batches that are tuples .*; got str"):
        TrainTask(iter(["a text"]), tl.L2Loss(), optimizers.SGD(0.1))


def test_data_that_ends_ends_the_run_with_a_reason():
    """As many steps as batches: the one that was the sample comes last."""
    three = [batch for _, batch in zip(range(3), batches(), strict=False)]
    loop = line_loop(task=TrainTask(iter(three), tl.L2Loss(), optimizers.SGD(0.1)))
    with pytest.raises(ValueError, match="ended after 3 batches. Give an iterator that goes on"):
        loop.run(5)
    assert loop.step == 3
    assert torch.equal(loop.batch[0], torch.as_tensor(three[0][0]))


# Where data goes on


def test_data_may_begin_anew(tmp_path):
    """resume_data='restart' goes on with the weights and the first batches."""
    line_loop(tmp_path).run(5)
    seen = []

    class Look(TrainingStepCallback):
        def on_step_end(self, step):
            seen.append(self._loop.batch[0])

    def first_seen(**kwargs):
        seen.clear()
        line_loop(tmp_path, callbacks=[Look], save_at_end=False, **kwargs).run(1)
        return seen[0]

    first = [torch.as_tensor(x) for (x, _, _), _ in zip(batches(), range(8), strict=False)]
    assert torch.equal(first_seen(resume_data="restart"), first[1])  # 0 is the sample
    assert torch.equal(first_seen(), first[6])


def test_going_forward_is_logged(tmp_path, caplog):
    line_loop(tmp_path).run(5)
    with caplog.at_level(logging.INFO, "trax_torch"):
        line_loop(tmp_path)

    assert "TrainTask's labeled_data: going forward by 5 batches" in caplog.text


# Names


def test_eval_tasks_say_what_is_wrong_with_their_names():
    with pytest.raises(ValueError, match="got 1 names for 2 metrics"):
        eval_task(metrics=[tl.L2Loss(), tl.L2Loss()], metric_names=["a"])
    with pytest.raises(ValueError, match="Each metric needs a name of its own"):
        eval_task(metrics=[tl.L2Loss(), tl.L2Loss()])
    with pytest.raises(ValueError, match="n_eval_batches counts batches; got -1"):
        eval_task(n_eval_batches=-1)
    with pytest.raises(ValueError, match="n_eval_batches is 0 on every rank"):
        line_loop(evals=eval_task(n_eval_batches=0)).run(1)


@pytest.mark.parametrize("prefix", ["..", "a/b", "", "x" * 200, "a\n", "\0"])
def test_an_export_prefix_is_a_plain_folder_name(prefix):
    with pytest.raises(ValueError, match="plain folder name"):
        train_task(export_prefix=prefix)
