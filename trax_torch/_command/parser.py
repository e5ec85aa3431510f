"""The line that is typed: a subcommand, whose room adds its arguments and runs it."""

import argparse
from typing import Any

from trax_torch import _version
from trax_torch._command import doctor, export, info, sample, train
from trax_torch._errors import CheckpointError

_COMMANDS: dict[str, tuple[Any, str]] = {
    "train": (train, "train a language model of a text, or go on with one"),
    "sample": (sample, "have a trained one write, token by token, or by beams"),
    "info": (info, "tell what is in a run's folder, and whether it is whole"),
    "export": (export, "write a checkpoint's weights as one plain safetensors file"),
    "doctor": (doctor, "tell what this machine and this installation can do"),
}
_MORE = """
programs:
  python -m trax_torch.examples.stdlib_lm                a language model of Python's own library
  python -m trax_torch.examples.reverse                  an encoder-decoder that writes backwards
  python -m trax_torch.examples.timm_classifier          an image classifier of timm's
  python -m trax_torch.examples.hugging_face_finetune    a model of transformers, fine-tuned
  python -m trax_torch.as_trax script.py                 a program written for Trax, as it is
  python -m trax_torch.interop.trax_checkpoint IN OUT    a checkpoint of Trax's into safetensors
"""


def main(argv: list[str] | None = None) -> None:
    """Does what the command line asks; without a command, lists what there is.

    Args:
      argv: the arguments; by default the process's.

    Raises:
      SystemExit: if that cannot be done, with one line that says why.
    """
    parser = argparse.ArgumentParser(
        prog="python -m trax_torch",
        description="The supervised API of Trax on PyTorch, from a shell.",
        epilog=_MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version.__version__)
    several = parser.add_subparsers(metavar="COMMAND", title="commands")
    for name, (room, what) in _COMMANDS.items():
        command = several.add_parser(
            name,
            help=what,
            description=f"{what[0].upper()}{what[1:]}.",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        room.add_arguments(command)
        command.set_defaults(room=room)
    args = parser.parse_args(argv)
    if not hasattr(args, "room"):
        parser.print_help()
        return
    try:
        args.room.run(args)
    except (CheckpointError, OSError, ImportError, ValueError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
