"""Pictures: matplotlib, which some have, and how ours look. Nobody else names it.

A figure is made without pyplot, so that nothing pops up, and no state of a user's own pictures
changes: a notebook shows it, and `figure.savefig(path)` writes it.
"""

import functools
import io
from typing import Any

from trax_torch import _extras

_INK, _LINES = "#333333", "#dddddd"
COLORS = ("#1f6fb2", "#d2691e", "#2e8b57", "#8a4fbf", "#b8860b", "#c2447a", "#4a5a6a", "#17a2a2")


def figure(
    n_panels: int, who: str, n_columns: int = 1, size: tuple[float, float] = (7, 2.6)
) -> Any:
    """Returns a figure on white with empty panels.

    Args:
      n_panels: how many panels, at least 1.
      who: needs it, for the message where matplotlib is missing.
      n_columns: how many stand side by side.
      size: of a panel, in inches.

    Returns:
      `(figure, panels)`: of matplotlib, and a list of its `Axes`.

    Raises:
      ImportError: if there is no matplotlib; says how to install it.
    """
    _extras.needed("matplotlib", who, "plot")
    n_rows = -(-n_panels // n_columns)
    width, height = size[0] * n_columns, size[1] * n_rows
    made = _kind()(figsize=(width, height), facecolor="white", layout="constrained")
    panels = [made.add_subplot(n_rows, n_columns, i + 1) for i in range(n_panels)]
    for panel in panels:
        panel.set_facecolor("white")
        panel.tick_params(colors=_INK, labelsize=8)
        for name, spine in panel.spines.items():
            spine.set_color(_LINES)
            spine.set_visible(name in ("left", "bottom"))
    return made, panels


@functools.cache
def _kind() -> Any:
    """Returns a figure's class, which a notebook shows where nobody imported pyplot, too."""
    from matplotlib.figure import Figure

    base: Any = Figure  # which a type checker may not find
    return type("Picture", (base,), {"_repr_png_": _as_png})


def _as_png(picture: Any) -> bytes:
    written = io.BytesIO()
    picture.savefig(written, format="png", dpi=110)
    return written.getvalue()


def label(panel: Any, x: str = "", y: str = "", title: str = "", legend: bool = False) -> None:
    """Names a panel's axes, and what its lines are."""
    panel.set_xlabel(x, color=_INK, fontsize=9)
    panel.set_ylabel(y, color=_INK, fontsize=9)
    panel.set_title(title, color=_INK, fontsize=10, loc="left")
    panel.grid(True, color=_LINES, linewidth=0.6)
    panel.set_axisbelow(True)
    if legend:
        panel.legend(fontsize=8, frameon=False, labelcolor=_INK)
