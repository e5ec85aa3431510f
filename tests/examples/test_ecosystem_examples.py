"""The examples with other libraries learn, save, go on, and are what the README shows."""

import inspect
import re
import textwrap

import pytest

from trax_torch.examples import hugging_face_finetune, timm_classifier

pytestmark = [
    # peft 0.21 asks transformers 5.24 by an older name
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


def lines_that_matter(example):
    """The lines of an example that are marked so, without their indent."""
    source = inspect.getsource(example)
    marked = source.partition("    # The lines that matter:\n")[2].partition("    # and that")[0]
    return textwrap.dedent(marked).splitlines()


@pytest.mark.parametrize("example", [hugging_face_finetune, timm_classifier])
def test_the_lines_that_matter_are_few(example):
    assert 10 < len(lines_that_matter(example)) <= 12


def test_adapters_of_a_causal_model_learn_and_go_on(tmp_path, capsys):
    """The loss of sums it has not seen falls by half; the adapter is saved beside checkpoints."""
    for name in ("transformers", "peft"):
        pytest.importorskip(name)
    args = ["--output-dir", str(tmp_path / "run"), "--batch-size", "16", "--eval-every", "20"]
    args += ["--learning-rate", "0.02"]

    hugging_face_finetune.main([*args, "--steps", "40"])
    first = capsys.readouterr().out
    loss = hugging_face_finetune.main([*args, "--steps", "40"])
    second = capsys.readouterr().out

    losses = [float(x) for x in re.findall(r"eval +loss \| +([\d.]+)", first)]
    assert losses[0] > 6
    assert loss == pytest.approx(losses[-1])
    assert loss < 0.5 * losses[0]
    assert "three plus four is" in first
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
    assert "at step 40." in second
    assert first.splitlines()[-2:] == second.splitlines()[-2:]  # the answer is the same


def test_an_image_classifier_learns_and_goes_on(tmp_path, capsys):
    """It names most digits right that it has not seen."""
    for name in ("timm", "torchmetrics", "sklearn"):
        pytest.importorskip(name)
    args = ["--output-dir", str(tmp_path / "run"), "--image-size", "16", "--eval-every", "40"]

    accuracy = timm_classifier.main([*args, "--steps", "40"])
    first = capsys.readouterr().out
    assert timm_classifier.main([*args, "--steps", "40"]) == accuracy
    second = capsys.readouterr().out

    assert accuracy > 0.3  # 0.1 by chance
    assert f"{accuracy:.1%} of 297 digits are right." in first
    assert re.search(r"eval +accuracy \| +0", first)
    assert "at step 40." in second
