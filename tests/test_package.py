"""What is handed out: the source archive, the wheel that is made of it, and what they ask for."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What lies in a checkout and is nobody's source: tools' caches, environments, and what git keeps.
NOT_SOURCE = re.compile(
    r"(^|/)(\.[\w.-]*cache|\.git|\.hypothesis|\.ipynb_checkpoints|\.?venv[\w.-]*|__pycache__|build|dist"
    r"|_build|[\w.-]+\.egg-info)(/|$)|^(run|stdlib_lm|reverse|docs/reference)/|\.py[co]$"
)
BUILD = (
    "import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])({out!r}))"
)


def source_files(folder):
    """The files of a checkout, or of an unpacked archive, by their paths in it."""
    found = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return {name for name in found if not NOT_SOURCE.search(name)}


def build(folder, kind, out):
    """The path of the archive that setuptools makes of a folder, by the hook that pip calls."""
    code = BUILD.format(out=os.fspath(out))
    env = {**os.environ, "PYTHONWARNINGS": "ignore"}  # of setuptools' own
    done = subprocess.run(
        [sys.executable, "-c", code, f"build_{kind}"],
        cwd=folder, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The source archive of this checkout, unpacked, and the wheel that is made of that."""
    pytest.importorskip("setuptools", minversion="77", reason="builds with setuptools 77 or later")
    place = tmp_path_factory.mktemp("archives")
    for name in source_files(ROOT):
        (place / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place / "source" / name)
    with tarfile.open(build(place / "source", "sdist", place)) as archive:
        archive.extractall(place / "unpacked", filter="data")
    (unpacked,) = (place / "unpacked").iterdir()
    return unpacked, build(unpacked, "wheel", place)


@pytest.mark.slow
def test_the_source_archive_holds_all_that_the_repository_does(archives):
    """So its tests find what they read: golden figures, pages, findings, CI's script."""
    unpacked, _ = archives

    made = {"PKG-INFO"}  # setup.cfg is there, with lines that setuptools adds
    assert source_files(unpacked) - made == source_files(ROOT) - made
    for name in ("tests/golden/README.md", "docs/checkpoints.md", "README.md", ".ci/run"):
        assert (unpacked / name).read_bytes() == (ROOT / name).read_bytes()
    assert os.access(unpacked / ".ci" / "run", os.X_OK)


@pytest.mark.slow
def test_the_wheel_holds_the_package_alone(archives):
    """All of it, and under 1 MB: no tests, pages or pictures."""
    _, wheel = archives
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        text = archive.read(next(n for n in names if n.endswith("/METADATA"))).decode()
        bytes_installed = sum(item.file_size for item in archive.infolist())

    inside = {n for n in names if ".dist-info/" not in n}
    assert inside == {n for n in source_files(ROOT) if n.startswith("trax_torch/")}
    assert wheel.stat().st_size < 1_000_000
    assert bytes_installed < 3_000_000
    metadata = message_from_string(text)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Author"] == "trax_torch authors"
    assert "pytorch" in metadata["Keywords"]
    assert metadata.get_all("Project-URL") == ["Trax, https://github.com/google/trax"]


@pytest.mark.slow
def test_the_package_runs_from_its_wheel_alone(archives, tmp_path):
    """In another folder, where no file of the checkout is in reach: the README's plain example."""
    _, wheel = archives
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    (code,) = [block for block in blocks if "TrainTask(loader, nn." in block]
    listed = "import runpy\nrunpy.run_module('trax_torch', run_name='__main__')\n"
    where = "import trax_torch\nprint(trax_torch.__file__)\n"
    (tmp_path / "train.py").write_text(where + code.replace("until=100", "until=50") + listed)

    env = {**os.environ, "PYTHONPATH": os.fspath(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "train.py"],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert done.stdout.startswith(os.fspath(tmp_path / "site" / "trax_torch"))
    assert "Step     50:" in done.stdout
    assert "doctor" in done.stdout  # the list of commands
    assert (tmp_path / "run" / "model.json").is_file()


def settings():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_all_extras_but_those_of_developers_are_in_all():
    """`pip install 'trax-torch[all]'` names them, so that each is written once."""
    extras = dict(settings()["options.extras_require"])
    (named,) = re.findall(r"trax-torch\[(.*?)\]", extras["all"])

    assert set(named.split(",")) == set(extras) - {"all", "test", "ecosystem", "docs"}


def test_nothing_that_an_extra_brings_is_installed_with_the_package():
    """What torch alone needs, and six small libraries."""
    needed = settings()["options"]["install_requires"].split("\n")
    names = {re.split(r"[ ><=]", line.strip())[0] for line in needed} - {""}

    assert names == {
        *("torch", "numpy", "safetensors", "tensorboard", "tqdm", "typing-extensions"),
    }
