"""Pages made of files that lie elsewhere: what surprised us in other libraries."""

from pathlib import Path
from typing import Any

from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]


def setup(app: Any) -> None:
    """The directive that a page is written with."""
    app.add_directive("findings", Findings)


class Findings(SphinxDirective):
    """A heading and the words of each `findings/*.sh`."""

    def run(self) -> list[Any]:
        """What stands in the page."""
        parts = []
        for path in sorted((ROOT / "findings").glob("*.sh")):
            self.env.note_dependency(str(path))
            title, text = finding(path.read_text())
            parts.append(f"## {title}\n\n{text}\n\nTo see it: `findings/{path.name}`\n")
        return self.parse_text_to_nodes("\n".join(parts), allow_section_headings=True)


def finding(script: str) -> tuple[str, str]:
    """The first sentence of a script's head, and the rest as Markdown: what was seen is a block."""
    lines = []
    for line in script.splitlines()[1:]:
        if not line.startswith("#"):
            break
        lines.append(line[1:].removeprefix(" "))
    paragraphs = "\n".join(lines).split("\n\n")
    title = " ".join(paragraphs[0].split()).rstrip(".")
    out, block = [], []
    for line in "\n\n".join(paragraphs[1:]).splitlines():
        if line.startswith("  "):
            block.append(line[2:])
            continue
        if block:
            out += ["", "```text", *block, "```", ""]
            block = []
        out.append(line)
    if block:
        out += ["", "```text", *block, "```", ""]
    return title, "\n".join(out)
