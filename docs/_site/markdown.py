"""Docstrings are Markdown's in manner, which is put reStructuredText's way before it is read."""

import re
from typing import Any

_SECTION = re.compile(r"(Args|Returns|Raises|Yields|Example|Examples|Attributes):$")
_CODE = re.compile(r"(`+)([^`]+)\1(?=(\w?))")
_MARKS = re.compile(r"([*|\\])|(?<=\w)_(?!\w)")


def setup(app: Any) -> None:
    """Before napoleon reads the sections."""
    app.connect("autodoc-process-docstring", _read, priority=400)


def _read(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    is_of_its_type = (
        what == "data" and "\n".join(lines).strip() == (type(thing).__doc__ or "").strip()
    )
    lines[:] = [] if is_of_its_type else as_rst(lines)


def as_rst(lines: list[str]) -> list[str]:
    """A docstring's lines as reStructuredText, but for the sections, which are napoleon's.

    Code between single backticks is code; stars and bars outside of it are themselves; what is
    indented after an empty line is a literal block; tables of bars are tables.
    """
    out: list[str] = []
    section = ""
    for block in _blocks(lines):
        if not block[0].strip():
            out += block
            continue
        if not block[0].startswith(" "):
            match = _SECTION.match(block[0])
            section = match[1] if match else ""
        if section == "Args":
            block = _names_on_one_line(block)
        if block[0].lstrip().startswith(">>>") or section.startswith("Example"):
            out += block
        elif block[0].lstrip().startswith("| "):
            out += _table(block)
        elif section:
            out += _escaped(block)
        elif block[0].startswith("  "):
            out += ["::", "", *block]
        else:
            out += _escaped(_paragraphs(block))
    return out


def _blocks(lines: list[str]) -> list[list[str]]:
    """Runs of empty lines, and what is between them."""
    blocks: list[list[str]] = []
    for line in lines:
        if not blocks or bool(blocks[-1][0].strip()) != bool(line.strip()):
            blocks.append([])
        blocks[-1].append(line)
    return blocks


def _paragraphs(block: list[str]) -> list[str]:
    """Without what indents the lines that a paragraph goes on in; an item keeps its own."""
    out: list[str] = []
    for line in block:
        is_item = line.lstrip().startswith("- ")
        if is_item and out and not any(before.lstrip().startswith("- ") for before in out):
            out.append("")
        is_in_item = any(before.lstrip().startswith("- ") for before in out)
        out.append(line if is_item or is_in_item else line.strip())
    return out


def _names_on_one_line(block: list[str]) -> list[str]:
    """Arguments that are told of together, over several lines, in one."""
    out: list[str] = []
    for line in block:
        goes_on = out and out[-1].endswith(",") and ": " not in out[-1]
        goes_on = goes_on and re.match(r"  [\w*]", out[-1]) and line.startswith("    ")
        if goes_on:
            out[-1] += f" {line.strip()}"
        else:
            out.append(line)
    return out


def _escaped(block: list[str]) -> list[str]:
    """As it stands, with code between two backticks, and no mark that is none in Markdown."""
    text = "\n".join(block)
    out, at = [], 0
    for match in _CODE.finditer(text):
        out.append(_MARKS.sub(lambda m: f"\\{m[0]}", text[at : match.start()]))
        out.append(f"``{match[2]}``" + ("\\ " if match[3] else ""))
        at = match.end()
    out.append(_MARKS.sub(lambda m: f"\\{m[0]}", text[at:]))
    return "".join(out).splitlines()


def _table(block: list[str]) -> list[str]:
    out = [".. list-table::", "   :header-rows: 1", ""]
    for line in block:
        if set(line) <= set("|- "):
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        marks = ["* - ", *["  - "] * (len(cells) - 1)]
        out += [f"   {m}{c}" for m, c in zip(marks, _escaped(cells), strict=True)]
    return out
