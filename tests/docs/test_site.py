"""The site holds every public name, and is not made where something in it is wrong."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import trax_torch
import trax_torch.examples
from trax_torch._command import parser

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def site(monkeypatch):
    """The rooms of docs/_site that need no Sphinx."""
    monkeypatch.syspath_prepend(DOCS)
    return importlib.import_module("_site.reference"), importlib.import_module("_site.markdown")


def public_names():
    """What `dir()` of each public module shows, as (module, name)."""
    for info in pkgutil.walk_packages(trax_torch.__path__, "trax_torch."):
        parts = info.name.split(".")
        if any(p.startswith("_") for p in parts) or "examples" in parts or parts[-1] == "as_trax":
            continue
        module = importlib.import_module(info.name)
        for name in dir(module):
            if not name.startswith("_") and not inspect.ismodule(getattr(module, name)):
                yield info.name, name


def test_every_public_name_is_written(site, tmp_path):
    """On its module's page, described there or led to where it is; and each page is listed."""
    reference, _ = site
    reference.write(tmp_path)

    pages = {page.stem: page.read_text() for page in tmp_path.glob("*.rst")}
    described = set(re.findall(r"^\.\. auto\w+:: (\S+)$", "".join(pages.values()), re.MULTILINE))
    described |= set(re.findall(r":public-name:`(.*?)`", pages["trax_torch.fastmath.numpy"]))
    missing = []
    for module, name in public_names():
        led_to = re.search(rf":py:obj:`{name} <(.*?)>`", pages[module])
        address = led_to[1] if led_to else f"{module}.{name}"
        if address not in described:
            missing.append(f"{module}.{name}")

    assert missing == []
    assert len(described) > 700
    for page in pages.keys() - {"index"}:
        assert f" <{page}>" in pages["index"] or f"   {page}\n" in pages["index"]


def test_every_command_is_written(site):
    """With what `--help` says of it, and with the programs that are run."""
    page = site[0].commands_page()

    assert set(site[0].COMMANDS) == set(parser._COMMANDS)
    for name in parser._COMMANDS:
        assert f"``python -m trax_torch {name}``\n---" in page
        assert f"usage: python -m trax_torch {name} [-h]" in page
    for info in pkgutil.iter_modules(trax_torch.examples.__path__):
        assert f"``python -m trax_torch.examples.{info.name}``\n---" in page


def test_what_is_gone_is_gone_from_the_reference(site, tmp_path):
    reference, _ = site
    (tmp_path / "trax_torch.gone.rst").write_text("x")

    reference.write(tmp_path)

    assert not (tmp_path / "trax_torch.gone.rst").exists()


@pytest.mark.parametrize(
    ("markdown", "rst"),
    [
        ("A `Loop` keeps it.", "A ``Loop`` keeps it."),
        ("Some `ShapeDtype`s.", r"Some ``ShapeDtype``\ s."),
        ("(x, *context), below |d|, `*kept*`", r"(x, \*context), below \|d\|, ``*kept*``"),
        ("Source: one,\n  two.", "Source: one,\ntwo."),
        ("So:\n\n    x = 1\n\nis one.", "So:\n\n::\n\n    x = 1\n\nis one."),
        ("Args:\n  a, b,\n    c: three.", "Args:\n  a, b, c: three."),
        ("Example:\n  >>> 2 ** 3\n  8", "Example:\n  >>> 2 ** 3\n  8"),
        ("One:\n- `a`\n- b", "One:\n\n- ``a``\n- b"),
        ("| a | b |\n| --- | --- |\n| 1 | `2` |", ".. list-table::\n   :header-rows: 1\n\n"
         "   * - a\n     - b\n   * - 1\n     - ``2``"),
    ],
)  # fmt: skip
def test_docstrings_are_read_as_markdown(site, markdown, rst):
    assert "\n".join(site[1].as_rst(markdown.split("\n"))) == rst


def test_a_findings_words_are_a_heading_text_and_what_was_seen(site):
    """Of each script, without its shell."""
    pytest.importorskip("sphinx", reason="extra docs")
    pages = importlib.import_module("_site.pages")
    head = "#!/bin/sh\n# It is\n# odd.\n#\n# Why so.\n#\n# Seen:\n#   one\n#   two\nset -e\n# no\n"

    assert pages.finding(head) == ("It is odd", "Why so.\n\nSeen:\n\n```text\none\ntwo\n```\n")
    for script in (DOCS.parent / "findings").glob("*.sh"):
        title, text = pages.finding(script.read_text())
        assert len(title) > 20, script
        assert "```text" in text or "Seen" not in text, script


def test_bars_are_of_a_measured_table(site):
    """What is not there is an error, and no empty drawing."""
    pytest.importorskip("sphinx", reason="extra docs")
    drawings = importlib.import_module("_site.drawings")
    text = (
        "## Steps (`bench_a.py`)\n\n| model | `Loop` | other |\n| --- | --- | --- |\n"
        "| MLP | **1,336** (1,109 to 1,806) | 2.5 |\n| LM | 7 | |\n\n## Else\n| x |\n| --- |\n"
    )
    head, table = drawings.table_of(text, "bench_a.py", 1)

    assert drawings.values(head, table, "MLP", ["Loop", "other"]) == [
        ("Loop", 1336),
        ("other", 2.5),
    ]
    assert drawings.values(head, table, "LM", ["Loop", "other"]) == [("Loop", 7)]
    for program, number in (("bench_a.py", 2), ("bench_b.py", 1)):
        with pytest.raises(LookupError, match="tables of bench"):
            drawings.table_of(text, program, number)
    for row, column in (("RNN", "Loop"), ("MLP", "mine")):
        with pytest.raises(LookupError, match="no row"):
            drawings.values(head, table, row, [column])


def build(folder, pages, extensions):
    """What Sphinx says of a small site, warnings being errors; empty if all is well."""
    pytest.importorskip("sphinx", reason="extra docs")
    pytest.importorskip("myst_nb", reason="extra docs")
    folder.mkdir()
    (folder / "conf.py").write_text(
        f"import sys; sys.path.insert(0, {str(DOCS)!r}); extensions = {extensions!r}\n"
        "nb_execution_mode = 'off'\n"
    )
    for name, text in pages.items():
        (folder / name).write_text(text)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", folder, folder / "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert (done.returncode == 0) == (not done.stderr)
    return done.stderr


@pytest.mark.slow
def test_a_link_that_leads_nowhere_fails_the_build(tmp_path):
    page = "# A page\n\n[one](other.md)\n\n```{toctree}\nother\n```\n"
    other = "# Another\n\n[back](index.md)\n"
    broken = other.replace("index", "nowhere")

    assert build(tmp_path / "whole", {"index.md": page, "other.md": other}, ["myst_nb"]) == ""
    said = build(tmp_path / "broken", {"index.md": page, "other.md": broken}, ["myst_nb"])
    assert "nowhere.md" in said


@pytest.mark.slow
def test_a_name_without_a_place_fails_the_build(tmp_path):
    said = build(tmp_path / "site", {"index.md": "# A page\n"}, ["myst_nb", "_site.links"])

    assert "trax_torch.supervised.training.Loop has no place in the reference" in said
