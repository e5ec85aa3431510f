"""Drawings in the page itself, so that they take its colors: SVG files, and bars of a table."""

import re
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective

MEASURED = Path(__file__).parents[2] / "benchmarks" / "README.md"
_NUMBER = re.compile(r"\**([\d,]+(?:\.\d+)?)")


def setup(app: Any) -> None:
    """The transform of pictures, and the directive of bars."""
    app.add_transform(Inlined)
    app.add_directive("bars", Bars)


def figure(svg: str, words: str) -> list[nodes.Node]:
    """A drawing, read out by its words."""
    label = f'<svg role="img" aria-label="{escape(words, quote=True)}"'
    return [
        nodes.raw("", '<figure class="drawing">', format="html"),
        nodes.raw("", svg.replace("<svg", label, 1), format="html"),
        nodes.raw("", "</figure>", format="html"),
    ]


class Inlined(SphinxTransform):
    """`![words](drawing.svg)` becomes the drawing, without its colors for other places."""

    default_priority = 100

    def apply(self, **kwargs: Any) -> None:
        """Goes through a page's pictures."""
        for image in list(self.document.findall(nodes.image)):
            path = Path(self.document["source"]).parent / image["uri"]
            if path.suffix == ".svg" and path.exists():
                self.env.note_dependency(str(path))
                svg = re.sub(r"<style>.*?</style>\n?", "", path.read_text(), flags=re.DOTALL)
                whole = image.parent if isinstance(image.parent, nodes.paragraph) else image
                whole.replace_self(figure(svg, image.get("alt", "")))


class Bars(SphinxDirective):
    """Bars of a table of `benchmarks/README.md`; the argument is the program of its section.

    Options: `table`, which of the section's, from 1; `columns` and `rows`, separated by semicolons,
    a row by what its first cells say; `unit`.
    """

    required_arguments = 1
    option_spec = {  # noqa: RUF012 - docutils asks for it
        "table": directives.positive_int,
        "columns": directives.unchanged_required,
        "rows": directives.unchanged,
        "unit": directives.unchanged_required,
    }

    def run(self) -> list[nodes.Node]:
        """The drawing; a table, row or column that is not there is an error of the page."""
        self.env.note_dependency(str(MEASURED))
        try:
            head, table = table_of(
                MEASURED.read_text(), self.arguments[0], self.options.get("table", 1)
            )
            columns = [c.strip() for c in self.options["columns"].split(";")]
            asked = self.options.get("rows")
            rows = [r.strip() for r in asked.split(";")] if asked else [row[0] for row in table]
            groups = [(row, values(head, table, row, columns)) for row in rows]
        except LookupError as e:
            raise self.error(str(e)) from None
        return [nodes.raw("", drawn(groups, self.options["unit"]), format="html")]


def table_of(text: str, program: str, number: int) -> tuple[list[str], list[list[str]]]:
    """The cells of the n-th table of the section whose heading names a program, head first."""
    match = re.search(rf"^## .*\(`{re.escape(program)}`\)$(.*?)(?=^## |\Z)", text, re.M | re.S)
    tables = re.findall(r"(?:^\|.*\n)+", match[1], re.M) if match else []
    if len(tables) < number:
        raise LookupError(f"benchmarks/README.md has {len(tables)} tables of {program}.")
    lines = tables[number - 1].strip().splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [cell.replace("`", "") for cell in head], rows


def values(
    head: list[str], table: list[list[str]], row: str, columns: list[str]
) -> list[tuple[str, float]]:
    """The first numbers of a row's cells, by column; cells without one are left out."""
    found = [cells for cells in table if ", ".join(cells).startswith(row)]
    if not found or not set(columns) <= set(head):
        raise LookupError(f"The table has no row {row!r} or no column of {columns}; it has {head}.")
    cells = dict(zip(head, found[0], strict=True))
    numbers = [(column, _NUMBER.match(cells[column])) for column in columns]
    return [(column, float(m[1].replace(",", ""))) for column, m in numbers if m]


def drawn(groups: list[tuple[str, list[tuple[str, float]]]], unit: str) -> str:
    """Groups of bars, each group to its own scale."""
    parts = ['<figure class="bars">']
    for name, bars in groups:
        longest = max(value for _, value in bars)
        parts.append(f"<p><strong>{escape(name)}</strong> <span>{escape(unit)}</span></p>")
        for label, value in bars:
            kind = "ours" if label.startswith("ours") or label == "Loop" else "other"
            bar = f'<i class="{kind}" style="width: {value / longest:.1%}"></i>'
            parts.append(
                f"<div><span>{escape(label)}</span><span>{bar}</span><span>{value:,g}</span></div>"
            )
    return "\n".join([*parts, "</figure>"])
