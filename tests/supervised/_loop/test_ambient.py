"""Torch's process-wide modes around a run: some are refused, what is set is put back."""

import pytest
import torch
from torch import nn

from trax_torch.supervised import EvalTask, Loop, TrainTask


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 4, generator=generator)
    return [(x, x.sum(1, keepdim=True))]


def make_loop(model=None, **settings):
    torch.manual_seed(0)
    model = model or nn.Linear(4, 1)
    task = TrainTask(data(), nn.MSELoss(), torch.optim.SGD(model.parameters(), 0.1))
    evals = EvalTask(data(), nn.MSELoss())
    return Loop(
        model, task, eval_tasks=evals, random_seed=0, progress=False, device="cpu", **settings
    )


@pytest.mark.parametrize("precision", [None, "bf16", "fp32"])
def test_a_run_within_autocast_is_refused(precision):
    """Whose cache would have each step compute with the weights of the first."""
    loop = make_loop(precision=precision)

    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(
            RuntimeError, match=r"is on around run\(\); .* build Loop\(precision='bf16'\)"
        ),
    ):
        loop.run(2)

    loop.run(2)
    assert loop.step == 2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_run_without_gradients_is_refused(mode):
    loop = make_loop()

    with mode(), pytest.raises(RuntimeError, match=r"needs gradients, .* Call run\(\) outside"):
        loop.run(2)

    loop.run(2)
    assert loop.step == 2


class Seen(nn.Linear):
    """Notes how float32 is multiplied when it runs."""

    def forward(self, x):
        tf32 = torch.backends.cudnn.allow_tf32
        self.seen = [*getattr(self, "seen", []), (torch.get_float32_matmul_precision(), tf32)]
        return super().forward(x)


def settings_of_torch():
    """What decides by library; and for all of them, where they are alike."""
    backends = torch.backends
    places = (backends.cuda.matmul, backends.mkldnn.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    found = [backends.fp32_precision, *(place.fp32_precision for place in places)]
    if found[1] == found[2]:
        found += [torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32]
    return found


@pytest.fixture(params=["default", "high", "medium", "mixed"])
def before(request):
    """Settings of torch before a run."""
    places = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    kept = [place.fp32_precision for place in places]
    if request.param == "mixed":
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    elif request.param != "default":
        torch.set_float32_matmul_precision(request.param)
    yield settings_of_torch()
    torch.set_float32_matmul_precision("highest")
    for place, value in zip(places, kept, strict=True):
        place.fp32_precision = value


@pytest.mark.parametrize(
    ("precision", "wanted"), [("fp32", ("highest", False)), ("tf32", ("high", True))]
)
def test_float32_is_multiplied_as_asked_in_steps_and_evals_and_as_before_after(
    precision, wanted, before
):
    model = Seen(4, 1)
    loop = make_loop(model, precision=precision)

    model.seen = []
    loop.run(2)
    assert len(model.seen) >= 3
    assert set(model.seen) == {wanted}
    assert settings_of_torch() == before

    model.seen = []
    loop.run_evals()
    assert set(model.seen) == {wanted}
    assert settings_of_torch() == before


def test_the_settings_are_back_after_a_run_that_fails(before):
    loop = make_loop(precision="tf32", checkpoint_at=lambda step: 1 / (step - 2))

    with pytest.raises(ZeroDivisionError):
        loop.run(3)

    assert settings_of_torch() == before


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_weights_and_losses_are_float32s(precision):
    """On a CPU all that both say holds by default."""
    loops = [make_loop(precision=precision), make_loop()]
    for loop in loops:
        loop.run(3)

    assert torch.equal(loops[0].model.weight, loops[1].model.weight)
    assert loops[0].history.get("eval", "metrics/MSELoss") == loops[1].history.get(
        "eval", "metrics/MSELoss"
    )


def test_a_precision_that_is_none_is_refused():
    with pytest.raises(ValueError, match="precision is one of 'bf16', .*'fp32', 'tf32', or None; "):
        make_loop(precision="fp8")
