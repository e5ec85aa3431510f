"""Type checkers find the mistakes in a user's program, and none where there are none.

By `mypy --strict` and, where it is installed, pyright's strict mode (as basedpyright has it).
"""

import ast
import contextlib
import fcntl
import importlib.metadata
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import trax_torch
from trax_torch.supervised import decoding
from trax_torch.supervised._generation import signatures

ROOT = Path(__file__).parent.parent  # not the installed package's: mypy refuses site-packages
PROGRAMS = Path(__file__).parent / "support" / "typed"


@contextlib.contextmanager
def _alone(path):
    """Waits for tests beside this one: mypy's cache is a database of one writer."""
    path.parent.mkdir(exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def mypy(program, folder):
    """The lines at which mypy's strict mode finds something, and what it says."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", str(program)]
    command += ["--follow-imports=silent", "--cache-dir", str(ROOT / ".mypy_cache" / "users")]
    env = {**os.environ, "MYPYPATH": str(ROOT), "COLUMNS": "200"}
    with _alone(ROOT / ".mypy_cache" / "users.lock"):
        said = subprocess.run(
            command, env=env, cwd=folder, capture_output=True, text=True, timeout=1800
        )
    found = re.findall(r":(\d+): error: (.*)", said.stdout)
    assert found or said.returncode == 0, said.stdout + said.stderr
    return {int(line): text for line, text in found}


def basedpyright():
    """The command, of this environment or another; a test without it is skipped."""
    beside = shutil.which("basedpyright", path=os.path.dirname(sys.executable))
    found = beside or shutil.which("basedpyright")
    if found is None:
        pytest.skip("basedpyright is not installed")
    return found


def pyright(program, folder):
    """The lines at which pyright's strict mode finds something, and what it says."""
    shutil.copy(program, folder)
    settings = {"typeCheckingMode": "strict", "extraPaths": [str(ROOT)]}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [basedpyright(), "--outputjson", "--pythonpath", sys.executable, program.name]
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1800)
    found = json.loads(said.stdout)["generalDiagnostics"]
    return {
        d["range"]["start"]["line"] + 1: d["message"] for d in found if d["severity"] == "error"
    }


@pytest.mark.slow
def test_the_package_is_clean_under_pyright(tmp_path):
    """In its strict mode, less what torch leaves without types: pyproject.toml has the list."""
    said = subprocess.run(
        [basedpyright(), "--outputjson", "--pythonpath", sys.executable, "-p", str(ROOT)],
        capture_output=True,
        text=True,
        timeout=1800,
    )

    found = json.loads(said.stdout)

    assert found["summary"]["filesAnalyzed"] > 100
    assert found["generalDiagnostics"] == []


def planted(program):
    return {
        i for i, line in enumerate(program.read_text().splitlines(), 1) if "# mistake: " in line
    }


@pytest.mark.slow
@pytest.mark.parametrize("check", [mypy, pyright])
def test_a_checker_finds_each_mistake(check, tmp_path):
    """Each line with one, and no other."""
    program = PROGRAMS / "mistakes.py"

    found = check(program, tmp_path)

    assert len(planted(program)) >= 25
    assert set(found) == planted(program), found


@pytest.mark.slow
@pytest.mark.parametrize("check", [mypy, pyright])
def test_a_checker_finds_no_mistake_where_there_is_none(check, tmp_path):
    """All that runs is accepted, and results have the types that the program says."""
    assert check(PROGRAMS / "right.py", tmp_path) == {}


@pytest.mark.parametrize(
    ("function", "typed"),
    [
        (decoding.autoregressive_sample_stream, signatures.SampleStream),
        (decoding.autoregressive_sample, signatures.Sample),
        (decoding.beam_search, signatures.BeamSearch),
    ],
)
def test_what_checkers_know_of_decoding_is_what_it_takes(function, typed):
    """The same arguments, in the same order, with the same defaults: all but the flag's."""
    own = inspect.signature(function).parameters.values()
    (kind,) = ast.parse(inspect.getsource(typed)).body
    calls = [node.args for node in kind.body if isinstance(node, ast.FunctionDef)]

    assert len(calls) == 4  # arrays in, arrays out; and one for each thing a flag may be
    for call in calls:
        defaults = dict(zip([a.arg for a in call.args][::-1], call.defaults[::-1], strict=False))
        defaults |= {
            a.arg: d
            for a, d in zip(call.kwonlyargs, call.kw_defaults, strict=True)
            if d is not None
        }
        known = [a.arg for a in (*call.args, *call.kwonlyargs)]
        assert known == ["self", *(p.name for p in own)]
        assert [a.arg for a in call.kwonlyargs] == [p.name for p in own if p.kind == p.KEYWORD_ONLY]
        for parameter in own:
            if parameter.name in defaults:
                assert ast.literal_eval(defaults[parameter.name]) == parameter.default
            elif not parameter.name.startswith(("return_", "inputs")):
                assert parameter.default is parameter.empty


def test_the_package_says_that_it_has_types():
    assert (Path(trax_torch.__file__).parent / "py.typed").exists()
    assert importlib.metadata.version("typing_extensions")  # `Loop` is generic by a default
