"""Each line of the pages of facts in docs/ is shown by a test that exists."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
PAGES = sorted(set((ROOT / "docs").glob("*.md")) - {ROOT / "docs" / "index.md"})
EXPLANATIONS = sorted((ROOT / "docs" / "explanations").glob("*.md"))
NAMED = re.compile(r"`([\w/]+\.py)::(test_\w+)`")


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("benchmarks/*.md"), *PAGES])
def test_no_page_holds_what_a_merge_left(page):
    """A page is no program, so nothing else would say so."""
    assert re.findall(r"(?m)^(?:<<<<<<<|=======|>>>>>>>)(?: |$)", page.read_text()) == []


def rows(page):
    """The lines of a page's tables that say something."""
    lines = [line for line in page.read_text().splitlines() if line.startswith("|")]
    heads = {i - 1 for i, line in enumerate(lines) if set(line) <= set("|- ")}
    return [line for i, line in enumerate(lines) if i not in heads and not set(line) <= set("|- ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_line_of_a_table_names_the_test_that_shows_it(page):
    """In its last column; a page has tables."""
    found = rows(page)

    assert len(found) > 10
    assert [row for row in found if not NAMED.search(row.rstrip("| ").rpartition("|")[2])] == []


@pytest.mark.parametrize(
    "page", [*PAGES, *EXPLANATIONS, ROOT / "README.md"], ids=lambda page: page.name
)
def test_the_tests_that_a_page_names_exist(page):
    known = {}
    assert NAMED.search(page.read_text())
    for file, name in NAMED.findall(page.read_text()):
        if file not in known:
            assert (TESTS / file).exists(), file
            body = ast.parse((TESTS / file).read_text()).body
            known[file] = {node.name for node in body if isinstance(node, ast.FunctionDef)}
        assert name in known[file], f"{file}::{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_found_from_the_readme(page):
    assert f"](docs/{page.name})" in (ROOT / "README.md").read_text()


def test_the_readme_leads_to_all_pages():
    assert "](docs/index.md)" in (ROOT / "README.md").read_text()


def test_there_is_a_page():
    assert "checkpoints.md" in [page.name for page in PAGES]
