"""Programs written for Trax run as they are: `import trax` means this library.

    python -m trax_torch.as_trax script.py ARGS
    python -m trax_torch.as_trax -m module ARGS

or, in a program or a notebook's first cell, before `trax` is imported:

    import trax_torch.as_trax

It holds for the process. Where Trax itself is installed it is not shadowed in silence: that is an
error, unless `--replace` before the script, or the environment's `TRAX_TORCH_AS_TRAX=replace`, says
so. A process that is spawned, not forked, needs the import, too. Names of Trax that are not here
may be imported; they say what to take instead when they are used. docs/from_trax.md lists them, and
where Trax's code differs from its documentation, what is done here.
"""

import os
import runpy
import sys

from trax_torch import _as_trax, _public_names

__dir__ = _public_names.names_of(__name__)

_USAGE = "python -m trax_torch.as_trax [--replace] (script.py | -m module) [ARGS ...]"


def main(arguments: list[str]) -> None:
    """Runs a script or a module in which `trax` means this library.

    Args:
      arguments: `[--replace]`, then a path, or `-m` and a module's name, then what it is given.

    Raises:
      SystemExit: if that is not what came.
      ImportError: if Trax itself is installed, and `--replace` is not given.
    """
    replace = arguments[:1] == ["--replace"]
    arguments = arguments[replace:]
    is_module = arguments[:1] == ["-m"]
    arguments = arguments[is_module:]
    if not arguments or arguments[0].startswith("-"):
        raise SystemExit(f"usage: {_USAGE}")
    _as_trax.install(replace)
    target = arguments[0]
    sys.argv[:] = arguments
    if is_module:
        runpy.run_module(target, run_name="__main__", alter_sys=True)
        return
    if not os.path.exists(target):
        raise SystemExit(f"There is no script {target!r}. usage: {_USAGE}")
    if not sys.flags.safe_path:
        sys.path[0] = os.path.dirname(os.path.abspath(target))
    runpy.run_path(target, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
else:
    _as_trax.install()
