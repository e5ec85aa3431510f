"""Operations in C++ that this machine's compiler makes for its processor, once, and a folder keeps.

Without a compiler, which `torch.compile` needs on a CPU, too, layers compute in other ways.
"""

import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import torch

_SOURCE = Path(__file__).with_name("products.cpp")
_FLAGS = (
    *("-std=c++20", "-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC"),
    "-ffp-contract=off",  # or a row's last bits might be others with other rows beside it
    "-DTORCH_TARGET_VERSION=0x020b000000000000",  # 2.11: what older ones have not is not used
)
_log = logging.getLogger("trax_torch")


def why_not() -> str:
    """Returns why there are no operations `int8_linear` and `int4_linear`; "" where there are.

    They are looked for once in a process, and then made or loaded.
    """
    with _looking:
        return _look()


_looking = threading.Lock()


@functools.cache
def _look() -> str:
    compiler = shutil.which(os.environ.get("CXX") or "c++") or shutil.which("g++")
    if compiler is None:
        return "there is no C++ compiler: install g++, or name one by CXX"
    library = torch.library.Library("trax_torch", "FRAGMENT")
    for name in ("int8_linear", "int4_linear"):
        library.define(f"{name}(Tensor x, Tensor q, Tensor scale) -> Tensor")
        torch.library.register_fake(f"trax_torch::{name}", _like_the_product, lib=library)
    _kept.append(library)
    try:
        torch.ops.load_library(_made_by(compiler))
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return f"{compiler} could not compile {_SOURCE}: {said.strip()[-500:]}"
    return ""


_kept: list[torch.library.Library] = []  # what is forgotten is no operation any more


def _made_by(compiler: str) -> str:
    """Returns the path of the library, which is made if it is not there."""
    include, lib = (Path(torch.__file__).parent / name for name in ("include", "lib"))
    command = [compiler, *_FLAGS, f"-I{include}", str(_SOURCE), f"-L{lib}", "-ltorch_cpu", "-o"]
    text = repr((_SOURCE.read_bytes(), command, torch.__version__, platform.machine(), _features()))
    folder = _folder()
    path = folder / f"products-{hashlib.sha256(text.encode()).hexdigest()[:32]}.so"
    if not path.exists():
        _log.info("Compiling %s for this processor, to %s.", _SOURCE.name, path)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            made = Path(place) / path.name
            subprocess.run([*command, str(made)], check=True, capture_output=True, text=True)
            made.replace(path)  # at once: others may be about to load it
    return str(path)


def _folder() -> Path:
    """Returns where libraries are kept: the user's own place, or else one for this process."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(cache) / "trax_torch"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return Path(_own_folder().name)


@functools.cache
def _own_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()  # gone when the process ends


def _features() -> str:
    """Returns what instructions the processor has, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), "")


def _like_the_product(x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], q.shape[0])
