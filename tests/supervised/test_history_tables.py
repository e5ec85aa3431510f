"""A history as a picture, a data frame and a file."""

import csv
import math
import sys

import pytest

from trax_torch.supervised import lr_schedules
from trax_torch.supervised.history import History


def recorded():
    history = History()
    for step in (1, 10, 20):
        history.append("train", "metrics/loss", step, 1 / 3 / step)
        history.append("train", "training/learning_rate", step, 0.1)
        history.append("train", "training/gradients_l2", step, float(step))
    for step in (10, 20):
        history.append("eval", "metrics/loss", step, 2.0 / step)
    history.append("eval", "metrics/accuracy", 20, 0.75)
    history.append("eval", "metrics/accuracy", 20, 0.5)  # measured again
    return history


def lines_of(panel):
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in panel.lines}


def test_a_picture_has_a_panel_for_each_metric_and_a_line_for_each_mode():
    """What is drawn is what was recorded; panels are named, lines told apart by a legend."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    history = recorded()
    figure = history.plot()

    panels = {panel.get_title(loc="left"): panel for panel in figure.axes}
    assert list(panels) == ["accuracy", "loss", "learning rate"]
    assert lines_of(panels["loss"]) == {
        mode: history.get(mode, "metrics/loss") for mode in ("train", "eval")
    }
    assert lines_of(panels["accuracy"]) == {"eval": [(20, 0.75), (20, 0.5)]}
    assert [t.get_text() for t in panels["loss"].get_legend().get_texts()] == ["train", "eval"]
    colors = {line.get_label(): line.get_color() for line in panels["loss"].lines}
    assert panels["accuracy"].lines[0].get_color() == colors["eval"] != colors["train"]
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert figure.get_facecolor() == (1, 1, 1, 1)


def test_a_picture_shows_what_was_asked_for():
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    figure = recorded().plot(["training/gradients_l2"])

    assert [panel.get_title(loc="left") for panel in figure.axes] == ["gradients l2"]


@pytest.mark.parametrize(
    ("history", "names", "error"),
    [
        (recorded(), ["metrics/f1"], r"has no 'metrics/f1' yet. There are metrics/accuracy, "),
        (History(), None, r"has nothing to show yet. Run the loop first"),
        (recorded(), [], r"has nothing to show yet. There are"),
    ],
)
def test_what_was_never_recorded_is_no_picture(history, names, error):
    with pytest.raises(ValueError, match=error):
        history.plot(names)


@pytest.mark.parametrize(
    ("package", "draw"),
    [
        ("matplotlib", lambda: recorded().plot()),
        ("matplotlib", lambda: lr_schedules.plot(lr_schedules.constant(0.1), 5)),
        ("pandas", lambda: recorded().to_dataframe()),
    ],
)
def test_what_is_missing_is_named_with_the_line_to_install_it(monkeypatch, package, draw):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"needs the package {package}.*trax-torch\[plot\]"):
        draw()


def test_a_data_frame_has_a_row_for_each_step():
    """What was not measured at a step is NaN; of what was measured twice, the last counts."""
    pytest.importorskip("pandas", reason="pandas is not installed")
    frame = recorded().to_dataframe()

    assert frame.index.name == "step"
    assert frame.index.tolist() == [1, 10, 20]
    assert frame["train/metrics/loss"].tolist() == [1 / 3, 1 / 3 / 10, 1 / 3 / 20]
    assert math.isnan(frame["eval/metrics/loss"][1])
    assert frame["eval/metrics/accuracy"][20] == 0.5
    assert History().to_dataframe().empty


def test_a_file_gives_back_the_very_numbers(tmp_path):
    """To the last bit; pandas, whose releases round differently, reads the same table."""
    history = recorded()
    history.append("train", "metrics/loss", 30, math.nan)
    history.to_csv(tmp_path / "history.csv")

    with open(tmp_path / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 10, 20, 30]
    assert [float(row["train/metrics/loss"]) for row in rows[:3]] == [
        value for _, value in history.get("train", "metrics/loss")[:3]
    ]
    assert rows[0]["eval/metrics/loss"] == ""
    assert math.isnan(float(rows[3]["train/metrics/loss"]))
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    read = pandas.read_csv(tmp_path / "history.csv", index_col="step")
    pandas.testing.assert_frame_equal(read, history.to_dataframe(), rtol=1e-12)


def test_a_picture_of_schedules_is_the_rate_at_each_step():
    """Of several, by their names; of more than 2,000 steps, so many of them, ends included."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    warm = lr_schedules.warmup(3, 1.0)
    (panel,) = lr_schedules.plot({"warm": warm, "constant": lr_schedules.constant(0.5)}, 6).axes
    assert lines_of(panel) == {
        "warm": [(step, warm(step)) for step in range(1, 7)],
        "constant": [(step, 0.5) for step in range(1, 7)],
    }
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("step", "learning rate")
    assert panel.get_legend() is not None
    (alone,) = lr_schedules.plot(warm, 100_000).axes
    steps = list(alone.lines[0].get_xdata())
    assert (steps[0], steps[-1], len(steps)) == (1, 100_000, 2000)
    assert alone.get_legend() is None
    with pytest.raises(ValueError, match="n_steps counts steps, so it is at least 1; got 0"):
        lr_schedules.plot(warm, 0)
