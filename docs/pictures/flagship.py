"""Draws flagship.png, on top of the README: what the first program prints, beside its curves.

    python -m trax_torch.examples.stdlib_lm > console.txt
    python docs/pictures/flagship.py console.txt

All that is drawn is read from what was printed.
"""

import re
import sys
from pathlib import Path

from matplotlib.figure import Figure

DARK, LIGHT, BLUE, ORANGE = "#0d1117", "#c9d1d9", "#58a6ff", "#f0883e"
WIDTH = 66  # characters in a line


def values(text, mode, name):
    """Steps and values of a metric, as Trax's lines have them."""
    found = re.findall(rf"^Step +(\d+): {mode} +{name} \| +([\d.]+)$", text, flags=re.MULTILINE)
    return [int(step) for step, _ in found], [float(value) for _, value in found]


def last_lines(text, n):
    """The last reports and what follows them, without the times and paths of a machine."""
    text = text[: text.rindex("\nCheckpoints and TensorBoard files are in")].rstrip()
    lines = [line[:WIDTH] for line in text.splitlines() if ": Ran " not in line]
    report = next(i for i in range(len(lines) - n + 2, len(lines)) if not lines[i])
    return ["$ python -m trax_torch.examples.stdlib_lm", "...", *lines[report:]]


def draw(text, path):
    """Writes the picture of a console's text."""
    figure = Figure(figsize=(12, 4.6), facecolor=DARK)
    console, top, bottom = (
        figure.add_axes(place)
        for place in ([0.0, 0.0, 0.5, 1.0], [0.57, 0.6, 0.41, 0.3], [0.57, 0.13, 0.41, 0.3])
    )
    console.axis("off")
    lines = last_lines(text, 22)
    console.text(
        0.04, 0.95, "\n".join(lines), color=LIGHT, family="monospace", fontsize=8.6,
        linespacing=1.45, va="top", parse_math=False,
    )  # fmt: skip
    for panel, name, color in ((top, "bits per byte", BLUE), (bottom, "accuracy", ORANGE)):
        steps, numbers = values(text, "eval", name)
        panel.plot(steps, numbers, color=color, marker="o", markersize=4)
        panel.set_title(f"held out: {name}", color=LIGHT, loc="left", fontsize=11)
        panel.annotate(
            f"{numbers[-1]:.2f}", (steps[-1], numbers[-1]), (0, 7), color=color,
            textcoords="offset points", ha="center", fontsize=10,
        )  # fmt: skip
        panel.set_facecolor(DARK)
        panel.tick_params(colors=LIGHT, labelsize=9)
        panel.margins(y=0.25)
        panel.grid(color="#30363d")
        for side in panel.spines.values():
            side.set_color("#30363d")
    bottom.set_xlabel("step", color=LIGHT)
    figure.savefig(path, dpi=140, facecolor=DARK, metadata={"Software": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]).read_text(), Path(__file__).with_name("flagship.png"))
