"""A place that a caller names is found, or its absence is an error that says what is there."""

import pytest
from toys import line_loop

from trax_torch._errors import CheckpointError
from trax_torch.supervised._checkpoint import places


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder 'run', here, of a run of 10 steps: 'model' of step 10, and 'model_5'."""
    monkeypatch.chdir(tmp_path)
    loop = line_loop("run", permanent_checkpoint_at=lambda step: step == 5)
    loop.run(10)
    return "run"


@pytest.mark.parametrize(
    ("place", "step"),
    [
        (("run",), 10),
        (("run/",), 10),
        (("run/model",), 10),
        (("run", "model_5"), 5),
        (("run/model_5",), 5),
        (("run/model_5.json",), 5),
        (("run", "model.pkl.gz"), 10),
    ],
)
def test_a_checkpoint_is_named_by_its_folder_and_name_or_by_its_place(run, place, step):
    loop = line_loop()

    loop.load_checkpoint(*place)

    assert loop.step == step


@pytest.mark.parametrize(
    ("place", "match"),
    [
        (("a_typo",), "no checkpoint 'a_typo' in .; its checkpoints are: none"),
        (("run/a_typo",), "no checkpoint 'a_typo' in run; its checkpoints are: model, model_5"),
        (("run", "highest_acuracy"), "no checkpoint 'highest_acuracy' in run; its checkpoints are"),
        (("runs/a_typo", "model"), "There is no folder runs/a_typo. Name the folder that a run"),
    ],
)
def test_a_place_without_a_checkpoint_is_an_error(run, place, match):
    """A FileNotFoundError that is a CheckpointError; the loop is as it was."""
    loop = line_loop()
    loop.run(1)

    with pytest.raises(FileNotFoundError, match=match) as caught:
        loop.load_checkpoint(*place)

    assert isinstance(caught.value, CheckpointError)
    assert loop.step == 1


def test_a_name_without_a_folder_is_an_error():
    with pytest.raises(ValueError, match="'model_5' lies in a folder, and the Loop has no output"):
        line_loop().load_checkpoint(filename="model_5")


def test_other_files_are_not_taken_for_checkpoints(run):
    """What is listed are checkpoints of ours and Trax's, no other JSON files."""
    for name in ("run/model_2024.json", "run/copied.pkl.gz"):
        with open(name, "w", encoding="utf-8") as f:
            f.write("{}")

    with pytest.raises(FileNotFoundError, match="checkpoints are: copied, model, model_5. Name"):
        line_loop().load_checkpoint("run", "nothing")


def test_a_name_may_end_as_a_file_does(run):
    loop = line_loop("run")
    loop.save_checkpoint("of_a.json")

    loop.load_checkpoint("run/of_a.json")

    assert places.split("run/of_a.json") == ("run", "of_a.json")
    assert places.split("run/model.json") == ("run", "model")
