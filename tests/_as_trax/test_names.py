"""Every name of Trax that programs use is there, or says what to take instead."""

import importlib
from pathlib import Path

import pytest

from trax_torch._as_trax import addresses
from trax_torch._as_trax.missing import Missing, MissingNameError

TABLE = Path(__file__).parents[1] / "golden" / "trax_names" / "demand.tsv"
ROWS = [line.split("\t") for line in TABLE.read_text().splitlines()[1:]]
OFTEN = [name for name, n_programs, _ in ROWS if int(n_programs) >= 3]
SELDOM = [name for name, n_programs, _ in ROWS if int(n_programs) < 3]


def find(name):
    """What a program gets that imports a module and asks it for a name."""
    parent, _, last = name.rpartition(".")
    if addresses.is_module(name):
        return importlib.import_module(name)
    return getattr(importlib.import_module(parent), last)


def is_used(thing):
    """Whether a name can be used: a function can be called, a module holds something."""
    return not isinstance(thing, Missing)


@pytest.mark.usefixtures("trax")
@pytest.mark.parametrize("name", OFTEN)
def test_what_three_programs_use_is_there(name):
    """A name of the table that at least 3 of 139 public programs use."""
    assert is_used(find(name))


@pytest.mark.usefixtures("trax")
@pytest.mark.parametrize("name", SELDOM)
def test_what_fewer_use_is_there_or_raises_by_its_name(name):
    """At use; importing it is no error."""
    thing = find(name)
    if not is_used(thing):
        with pytest.raises(MissingNameError, match=name.replace(".", r"\.")):
            thing()


@pytest.mark.usefixtures("trax")
@pytest.mark.parametrize("module", sorted(addresses.names()))
def test_each_name_of_trax_is_found_or_raises_by_its_name(module):
    """All public names of Trax 1.4.1, module by module, may be imported."""
    for name in addresses.names()[module]:
        thing = find(f"{module}.{name}")
        if not is_used(thing):
            with pytest.raises(MissingNameError, match=f"uses {module}.{name}, "):
                thing(1, 2, a=3)


def test_the_table_is_that_of_all_programs():
    assert (len(ROWS), len(OFTEN)) == (267, 115)
    assert ROWS[0] == ["trax.layers", "101", "17"]


@pytest.mark.usefixtures("trax")
def test_the_page_says_what_is_there():
    """docs/from_trax.md lists every name of the table, in the right column."""
    page = (TABLE.parents[3] / "docs" / "from_trax.md").read_text()
    told = {}
    for line in page.partition("## Names")[2].splitlines():
        if line.startswith("| `trax"):
            _, module, there, missing, *_ = (part.strip() for part in line.split("|"))
            module = module.strip("`")
            told |= {f"{module}.{name}": True for name in there.split(", ") if name != "-"}
            told |= {f"{module}.{name}": False for name in missing.split(", ") if name != "-"}
            told[module] = True

    assert {name for name, *_ in ROWS} <= told.keys()
    assert {name: is_used(find(name)) for name, *_ in ROWS} == {n: told[n] for n, *_ in ROWS}
