"""The house: imports go down, wings are entered by their doors, and rooms stay small."""

import ast
import collections
import graphlib
from pathlib import Path

import pytest

import trax_torch

PACKAGE = Path(trax_torch.__file__).parent

# Ground floor last. Who lives on a floor imports from floors below, and from its own rooms.
FLOORS = [
    {""},
    {"__main__"},
    {"_command"},
    {"as_trax"},
    {"_as_trax"},
    {"examples", "export"},
    {"supervised"},
    {"supervised.callbacks", "supervised.trainer_lib"},
    {"supervised._series_evaluation"},
    {"supervised._callback"},
    {"supervised.training", "supervised.decoding", "supervised.loggers"}
    | {"supervised._rate_search"},
    {"supervised._loop", "supervised._generation"},
    {"supervised._checkpoint"},
    {"supervised._logging"},
    {"supervised._tasks"},
    {"interop.huggingface"},
    {"models", "optimizers", "data", "interop"},
    {"layers"},
    {"interop._pickle", "fastmath", "_sharding"},
    {"shapes", "_distributed", "_digest", "_recompute"},
    {"_dtensors"},
    {"_roll_call"},
    {"_nest", "_seeds", "_signals", "_errors", "_durable", "_torch_private", "_version"}
    | {
        "_memory_order",
        "_heap",
        "_last_words",
        "_rendezvous",
        "_public_names",
        "_mistakes",
        "_generators",
        "supervised.lr_schedules",
        "supervised.history",
    },
    {"_pictures"},
    {"_extras", "_tables"},
]


def name_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in SOURCES.items()}
DOORS = {name for name, path in SOURCES.items() if path.name == "__init__.py"}


def handed_out(door):
    """The names in a module's __all__."""
    for node in TREES[door].body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def imports_of(name):
    """Yields (where from, what, the module of ours that it is of), at any depth in a file."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from ((a.name, None, a.name) for a in node.names if a.name in SOURCES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports by dots"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in SOURCES or node.module in SOURCES:
                    yield node.module, alias.name, inner if inner in SOURCES else node.module


def is_inside(name, package):
    return name == package or name.startswith(package + ".")


def private_parts(module):
    """Yields (owner, private room or wing) for each private part of a module's name."""
    parts = module.split(".")
    for i, part in enumerate(parts):
        if part.startswith("_") and not part.startswith("__"):
            yield ".".join(parts[:i]), ".".join(parts[: i + 1])


def trespasses(name):
    """What a module imports although it is none of its business."""
    for module, what, target in imports_of(name):
        if what is not None and target == module and what.startswith("_") and what[1:2] != "_":
            yield f"{name} imports {what}, which is private to {module}"
        for owner, private in private_parts(target):
            if is_inside(name, private) or (target == private and private in DOORS):
                continue
            if target == private and is_inside(name, owner):
                continue
            if module == private and what in handed_out(private):  # a whole room, by the door
                continue
            yield f"{name} imports {target} past the door of {private}"


def graph():
    """Which modules each needs: what it imports, and the doors that Python opens on the way."""
    needs = collections.defaultdict(set)
    for name in SOURCES:
        for _, _, target in imports_of(name):
            parts = target.split(".")
            on_the_way = {".".join(parts[:i]) for i in range(2, len(parts))}
            needs[name] |= {target} | {p for p in on_the_way if not is_inside(name, p)}
        needs[name].discard(name)
    return needs


def floor_of(name):
    short = name.removeprefix("trax_torch").removeprefix(".")
    found = [
        (len(resident), floor, resident)
        for floor, residents in enumerate(FLOORS)
        for resident in residents
        if short == resident or (resident and is_inside(short, resident))
    ]
    assert found, f"{name} lives on no floor: give it one"
    return max(found)[1:]


def test_nobody_imports_in_a_circle():
    """Also counted: imports inside functions, and packages that are opened on the way."""
    order = list(graphlib.TopologicalSorter(graph()).static_order())

    assert len(order) == len(SOURCES)


@pytest.mark.parametrize("name", SOURCES)
def test_wings_are_entered_by_their_doors(name):
    """A private room is its package's; from outside, its wing's door says what may be had."""
    assert list(trespasses(name)) == []


@pytest.mark.parametrize("name", SOURCES)
def test_imports_go_down(name):
    floor, resident = floor_of(name)
    for _, _, target in imports_of(name):
        below, other = floor_of(target)
        assert below > floor or other == resident, f"{name} imports {target}"


@pytest.mark.parametrize("door", sorted(d for d in DOORS if list(private_parts(d))))
def test_a_wings_door_says_what_it_does_and_holds_no_logic(door):
    """In five lines or so; then names alone."""
    text, *rest = TREES[door].body

    assert len(ast.literal_eval(text.value).strip().splitlines()) <= 7
    for node in rest:
        assert isinstance(node, (ast.ImportFrom, ast.Assign)), f"{door}: {ast.unparse(node)}"
    assert handed_out(door)


@pytest.mark.parametrize("door", sorted(d for d in DOORS if list(private_parts(d))))
def test_a_wings_door_hands_out_nothing_that_nobody_takes(door):
    """What rooms of the wing alone use, they take from each other."""
    taken = set()
    for name in SOURCES:
        if is_inside(name, door):
            continue
        taken |= {what for module, what, _ in imports_of(name) if module == door}
        for node in ast.walk(TREES[name]):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == door.split(".")[-1]:
                taken.add(node.attr)

    assert sorted(set(handed_out(door)) - taken) == []


def code_lines(function):
    """How long a function is without its docstring."""
    lines = function.end_lineno - function.lineno + 1
    text = ast.get_docstring(function, clean=False)
    return lines - (len(text.splitlines()) if text else 0)


@pytest.mark.parametrize("name", SOURCES)
def test_a_room_can_be_held_in_mind(name):
    """Files have at most 500 lines, functions 60 of code."""
    functions = [n for n in ast.walk(TREES[name]) if isinstance(n, ast.FunctionDef)]

    assert len(SOURCES[name].read_text().splitlines()) <= 500
    assert {f.name: code_lines(f) for f in functions if code_lines(f) > 60} == {}
