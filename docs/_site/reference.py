"""Writes the reference before Sphinx reads: a page of each public module, from its docstrings."""

import ast
import contextlib
import inspect
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _site import markdown, names
from trax_torch import _command

# The parts of the reference, and the modules that each begins with; the longest that fits counts.
PARTS = {
    "Training": ["trax_torch", "trax_torch.supervised", "trax_torch.export"],
    "Layers and models": ["trax_torch.layers", "trax_torch.models", "trax_torch.shapes"],
    "Optimizers": ["trax_torch.optimizers"],
    "Data": ["trax_torch.data"],
    "Numbers": ["trax_torch.fastmath"],
    "Other libraries' files": ["trax_torch.interop"],
}

COMMANDS = ("train", "sample", "info", "export", "doctor")


def setup(app: Any) -> None:
    """Has the pages written when Sphinx begins."""
    app.connect("builder-inited", lambda app: write(Path(app.srcdir) / "reference"))


def write(folder: Path) -> None:
    """Writes `index.rst`, a page of each module, and `commands.rst`; what has not changed stays."""
    pages = {f"{module}.rst": module_page(module) for module in names.modules()}
    pages["commands.rst"] = commands_page()
    pages["index.rst"] = index_page()
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*"):
        if old.name not in pages:
            old.unlink() if old.is_file() else shutil.rmtree(old)
    for name, text in pages.items():
        if not (folder / name).exists() or (folder / name).read_text() != text:
            (folder / name).write_text(text)


def part_of(module: str) -> str:
    """The part of the reference that a module's page is in."""
    begins = {b: part for part, modules in PARTS.items() for b in modules}
    fits = [b for b in begins if module == b or module.startswith(f"{b}.")]
    return begins[max(fits, key=len)]


def index_page() -> str:
    """All parts, and a table of contents of each."""
    lines = [*_heading("Reference", "="), "Every public name, from its docstring.", ""]
    for part in PARTS:
        inside = [module for module in names.modules() if part_of(module) == part]
        lines += [".. toctree::", f"   :caption: {part}", "   :maxdepth: 1", ""]
        lines += [f"   {module.removeprefix('trax_torch.')} <{module}>" for module in inside] + [""]
    lines += [".. toctree::", "   :caption: Commands", "   :maxdepth: 1", "", "   commands", ""]
    return "\n".join(lines)


def commands_page() -> str:
    """What is run by `python -m`: what `--help` says, and docstrings of modules."""
    lines = ["Commands", "========", "", ".. py:module:: trax_torch.__main__", ""]
    for words in ([], *([name] for name in COMMANDS)):
        title = " ".join(["python -m trax_torch", *words])
        lines += [*_heading(f"``{title}``", "-"), ".. code-block:: text", ""]
        lines += [f"   {line}" for line in _help(words).splitlines()] + [""]
    for module in [names.NOT_IMPORTED, *names.programs()]:
        path = Path(names.trax_torch.__path__[0], *module.split(".")[1:]).with_suffix(".py")
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        lines += [f".. py:module:: {module}", "", *_heading(f"``python -m {module}``", "-")]
        lines += [*markdown.as_rst(text.splitlines()), ""]
    return "\n".join(lines)


def _heading(title: str, under: str) -> list[str]:
    return [title, under * len(title), ""]


def _help(words: list[str]) -> str:
    """What a command says of itself, 80 columns wide."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "82"
    try:
        with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
            _command.main([*words, "--help"])
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
    return said.getvalue()


def module_page(module: str) -> str:
    """A module's docstring, a table of its names, and what is at home here."""
    title = f"``{module}``"
    inside = [name for name in names.names() if name.module == module]
    lines = [*_heading(title, "="), f".. automodule:: {module}", ""]
    numpys = [name for name in inside if names.is_numpys(name)]
    inside = [name for name in inside if not names.is_numpys(name)]
    if len(inside) > 1:
        lines += _table(inside)
    for name in inside:
        if name.home == name.address:
            lines += _entry(name)
    if numpys:
        lines += [*_heading("As in numpy", "-"), ".. rst-class:: numpys", ""]
        lines += [f"- :public-name:`{name.address}`" for name in numpys] + [""]
    return "\n".join(lines)


def _table(inside: list[names.Name]) -> Iterator[str]:
    yield from (".. list-table::", "   :widths: auto", "   :class: names", "")
    for name in inside:
        yield f"   * - :py:obj:`{name.name} <{name.home}>`"
        yield f"     - {' '.join(markdown.as_rst([names.summary(name.thing)]))}"
    yield ""


def _entry(name: names.Name) -> Iterator[str]:
    thing = name.thing
    if isinstance(thing, type):
        yield f".. autoclass:: {name.address}"
        yield "   :members:"
        stops = _public_ancestors(thing)
        if stops is not None:
            yield f"   :inherited-members: {', '.join(stops)}"
    elif inspect.isroutine(thing) or hasattr(thing, "__code__"):
        yield f".. autofunction:: {name.address}"
    else:
        yield f".. autodata:: {name.address}"
        if len(repr(thing)) > 60:
            yield "   :no-value:"
    yield ""


def _public_ancestors(thing: type) -> list[str] | None:
    """Where to stop, if what a class has from the package's private rooms is described with it."""
    ancestors = thing.__mro__[1:]
    private = [c for c in ancestors if c.__module__.startswith("trax_torch.") and _is_private(c)]
    if not private:
        return None
    return [c.__name__ for c in ancestors if c not in private]


def _is_private(c: type) -> bool:
    return any(part.startswith("_") for part in f"{c.__module__}.{c.__name__}".split("."))
