"""`doctor`: what this machine and this installation can do."""

import argparse
import importlib.metadata
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable

import torch

from trax_torch import _distributed, _tables, _version

_PACKAGES = {  # optional ones, with the extra that brings them
    "transformers": "huggingface",
    "tokenizers": "data",
    "datasets": "data",
    "matplotlib": "plot",
    "pandas": "plot",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "outlines-core": "grammars",
}
_N_BYTES = 2**26


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--folder", default=".", help="where checkpoints would go")
    parser.add_argument("--device", help="of this process, as for Loop")


def run(args: argparse.Namespace) -> None:
    """Prints what is found, line by line; under torchrun the chief does, for all ranks."""
    world = _distributed.join(None, args.device, 60.0)
    lines = [*_versions(), *_devices(world), ("checkpoints", _disk(args.folder))]
    if world.size > 1:
        lines.append(("all-reduce", _all_reduce(world)))
    if world.is_chief:
        print(_tables.items(lines))


def _versions() -> list[tuple[str, str]]:
    there, missing = [], []
    for name, extra in _PACKAGES.items():
        try:
            there.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(f"{name} (trax-torch[{extra}])")
    versions = [f"{n} {importlib.metadata.version(n)}" for n in ("numpy", "safetensors")]
    return [
        ("trax_torch", _version.__version__),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("torch", ", ".join([str(torch.__version__), *versions])),
        ("optional", ", ".join(there) or "none"),
        *([("missing", ", ".join(missing))] if missing else []),
    ]


def _devices(world: _distributed.World) -> list[tuple[str, str]]:
    n_gpus = torch.cuda.device_count()
    gpus = [torch.cuda.get_device_properties(i) for i in range(n_gpus)]
    names = [f"{gpu.name} ({_tables.amount(gpu.total_memory)})" for gpu in gpus]
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    kernels = torch.backends.cpu.get_cpu_capability()
    return [
        ("gpus", ", ".join(names) or "none"),
        ("processor", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {kernels}"),
        ("torch.compile", "for the CPU" if compiler else "not for the CPU: no C++ compiler"),
        ("groups", ", ".join(_distributed.backends()) or "none"),
        ("ranks", f"{world.size}; this one computes on {world.device}"),
    ]


def _disk(folder: str) -> str:
    """Returns at what rate a folder is written to and read, as a checkpoint is."""
    folder = os.path.abspath(os.path.expanduser(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{folder} cannot be written to"
    data = os.urandom(2**20) * (_N_BYTES // 2**20)
    with tempfile.TemporaryFile(dir=folder) as file:

        def write() -> None:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

        rate = _rate(write)
    free = _tables.amount(shutil.disk_usage(folder).free)
    return f"{rate} written in {folder}, {free} free"


def _all_reduce(world: _distributed.World) -> str:
    """Returns at what rate ranks average a tensor."""
    tensor = torch.ones(_N_BYTES // 4, device=world.device)

    def reduce() -> None:
        world.mean_(tensor)
        float(tensor[0])  # waits for a GPU

    reduce()  # the first makes the connections
    return f"{_rate(reduce)} of float32, {_tables.amount(_N_BYTES)} at once"


def _rate(work: Callable[[], None]) -> str:
    start = time.perf_counter()
    work()
    return f"{_tables.amount(_N_BYTES / max(time.perf_counter() - start, 1e-9))}/s"
