"""`python -m trax_torch.as_trax` runs programs in which `trax` is this library."""

import os
import subprocess
import sys

import pytest

SAYS = "import sys, trax; print(trax.layers.Dense(2), sys.argv[1:], __name__)"


def python(*arguments, cwd, **env):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **env},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def real(tmp_path):
    """A folder with a package that calls itself trax."""
    (tmp_path / "site" / "trax").mkdir(parents=True)
    (tmp_path / "site" / "trax" / "__init__.py").write_text("layers = 'the real one'\n")
    return tmp_path / "site"


def test_a_script_runs_with_its_arguments(tmp_path):
    """Its folder is where it imports from, and `__main__` is the script."""
    (tmp_path / "apart").mkdir()
    (tmp_path / "apart" / "beside.py").write_text("import trax\nWHAT = trax.layers.Relu().name")
    (tmp_path / "apart" / "script.py").write_text(f"import beside\nprint(beside.WHAT)\n{SAYS}")

    done = python("-m", "trax_torch.as_trax", "apart/script.py", "--a", "b", cwd=tmp_path)

    assert done.stdout == "Relu\nDense_2 ['--a', 'b'] __main__\n", done.stderr


def test_a_module_runs_with_its_arguments(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "program.py").write_text(SAYS)

    done = python("-m", "trax_torch.as_trax", "-m", "package.program", "-m", "b", cwd=tmp_path)

    assert done.stdout == "Dense_2 ['-m', 'b'] __main__\n", done.stderr


def test_a_line_in_the_program_does_the_same(tmp_path):
    """Also a second time, and in what was started by the command."""
    (tmp_path / "script.py").write_text(f"import trax_torch.as_trax\n{SAYS}")

    for command in (["script.py"], ["-m", "trax_torch.as_trax", "script.py"]):
        done = python(*command, cwd=tmp_path)
        assert done.stdout == "Dense_2 [] __main__\n", done.stderr


def test_a_trax_that_is_installed_is_not_shadowed_in_silence(tmp_path, real):
    """It says what is there; told to, it takes its place."""
    (tmp_path / "script.py").write_text(SAYS)
    path = os.pathsep.join([str(real), *filter(None, sys.path)])
    command = ["-m", "trax_torch.as_trax"]

    refused = python(*command, "script.py", cwd=tmp_path, PYTHONPATH=path)
    assert "Trax itself is installed: " + str(real) in refused.stderr
    assert "pip uninstall trax" in refused.stderr
    assert refused.returncode == 1
    done = python(*command, "--replace", "script.py", cwd=tmp_path, PYTHONPATH=path)
    assert done.stdout.startswith("Dense_2")
    settings = {"PYTHONPATH": path, "TRAX_TORCH_AS_TRAX": "replace"}
    assert python(*command, "script.py", cwd=tmp_path, **settings).stdout.startswith("Dense_2")


def test_a_trax_that_was_imported_before_stays(tmp_path, real):
    """Half of each would be neither."""
    path = os.pathsep.join([str(real), *filter(None, sys.path)])
    line = "import trax, trax_torch.as_trax"

    settings = {"PYTHONPATH": path, "TRAX_TORCH_AS_TRAX": "replace"}
    done = python("-c", line, cwd=tmp_path, **settings)

    assert "was imported before. Import trax_torch.as_trax first." in done.stderr


def test_a_plain_folder_of_that_name_is_no_trax(tmp_path):
    """Such as one of notebooks."""
    (tmp_path / "trax").mkdir()
    (tmp_path / "script.py").write_text(SAYS)

    done = python("-m", "trax_torch.as_trax", "script.py", cwd=tmp_path)

    assert done.stdout.startswith("Dense_2"), done.stderr


@pytest.mark.parametrize("arguments", [[], ["-m"], ["--other"]])
def test_what_is_no_program_is_answered_by_the_usage(tmp_path, arguments):
    done = python("-m", "trax_torch.as_trax", *arguments, cwd=tmp_path)

    assert "usage: python -m trax_torch.as_trax [--replace] (script.py | -m module)" in done.stderr
    assert done.returncode == 1


def test_a_script_that_is_not_there_is_named(tmp_path):
    done = python("-m", "trax_torch.as_trax", "script.py", cwd=tmp_path)

    assert "There is no script 'script.py'." in done.stderr
