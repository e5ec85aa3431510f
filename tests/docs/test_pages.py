"""What the pages of docs/start and docs/guides show, runs, and prints what they say.

A page is gone through from top to bottom in a folder of its own. Its blocks of ```python share
their names, as in a session; one that begins with `# NAME.py` is saved under that name instead, for
a command below it. Blocks of ```sh are run by bash. A block of ```text is what the block before it
printed; `...` stands for anything. Blocks of ```py are of other libraries: they are read, not run.
"""

import ast
import contextlib
import doctest
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import packages
import pytest
import torch

from trax_torch._command import parser

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("docs/start/*.md"), *ROOT.glob("docs/guides/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")
FILE = re.compile(r"# (\w+\.py)\n")

# Commands that are not run, and why.
NOT_RUN = {
    "python3 -m venv .venv && . .venv/bin/activate && pip install .": "tests have it installed",
}
# What a test takes less of.
LESS = {"--steps 600": "--steps 4 --eval-every 2"}


def name_of(page):
    return str(page.relative_to(ROOT / "docs"))


def blocks(page):
    """The blocks of a page, each with its kind."""
    return FENCE.findall(page.read_text())


def others(code):
    """What a block imports that this package does not depend on."""
    known = {"torch", "numpy", "safetensors", "tqdm", "tensorboard", "trax_torch"}
    nodes = ast.walk(ast.parse(code))
    named = [alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names]
    named += [n.module for n in ast.walk(ast.parse(code)) if isinstance(n, ast.ImportFrom)]
    return sorted({name.split(".")[0] for name in named} - known - set(sys.stdlib_module_names))


def run_python(code, names, page):
    for name in others(code):
        packages.needed(name)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            exec(compile(code, page.name, "exec"), names)
        except ImportError as error:
            if "pip install 'trax-torch[" not in str(error):  # an extra that is not installed
                raise
            pytest.skip(str(error))
    return out.getvalue()


def run_shell(lines):
    """What commands print; those of this package are run here, which is as good, and faster."""
    for more, less in LESS.items():
        lines = lines.replace(more, less)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        match shlex.split(lines):
            case ["python", script]:
                runpy.run_path(script, run_name="__main__")
                return out.getvalue()
            case ["python", "-m", "trax_torch", *args]:
                parser.main(args)
                return out.getvalue()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    asked = ["bash", "-euo", "pipefail", "-c", lines]
    done = subprocess.run(
        asked, env={**os.environ, "PATH": path}, capture_output=True, text=True, errors="replace"
    )
    assert done.returncode == 0, f"{lines}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def check_printed(want, got):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.OutputChecker().check_output(want, got, flags), f"{want}\nis not\n{got}"


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of torch's exporter to ONNX
@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_does_what_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names, printed, n_compared = {"__name__": "__main__"}, "", 0
    for kind, code in blocks(page):
        if kind == "python" and (found := FILE.match(code)):
            Path(found[1]).write_text(code)
        elif kind == "python":
            printed = run_python(code, names, page)
        elif kind == "sh" and code.strip() not in NOT_RUN:
            printed = run_shell(code)
        elif kind == "text":
            check_printed(code, printed)
            n_compared += 1
    assert n_compared


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_are_of_kinds_that_are_known(page):
    found = blocks(page)

    assert {kind for kind, _ in found} <= {"python", "sh", "text", "py"}
    assert page.read_text().count("```") == 2 * len(found)
    for kind, code in found:
        if kind == "py":
            ast.parse(code)
    saved = {name[1] for kind, code in found if kind == "python" and (name := FILE.match(code))}
    commands = "\n".join(code for kind, code in found if kind == "sh")
    assert [name for name in saved if name not in commands] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_a_page_links_to_is_there(page):
    links = LINK.findall(page.read_text())

    assert [link for link in links if not (page.parent / link).exists()] == []


def test_each_page_is_reached_by_links_from_the_readme():
    """On the way from it through these pages, and those beside them."""
    reached, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop().resolve()
        if page.suffix == ".md" and page.exists() and page not in reached:
            reached.add(page)
            ahead += [page.parent / link for link in LINK.findall(page.read_text())]

    assert [name_of(page) for page in PAGES if page not in reached] == []


def test_what_is_not_run_stands_on_a_page():
    commands = {code.strip() for page in PAGES for kind, code in blocks(page) if kind == "sh"}

    assert set(NOT_RUN) <= commands
    assert all(any(more in command for command in commands) for more in LESS)
