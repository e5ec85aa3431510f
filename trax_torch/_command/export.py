"""`export RUN OUT`: a checkpoint's weights as one plain safetensors file."""

import argparse

from trax_torch.export import export


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("place", metavar="RUN", help="a run's folder, or a checkpoint: run/model_5")
    parser.add_argument("file_name", metavar="OUT", help="the file to write")


def run(args: argparse.Namespace) -> None:
    """Exports what the command line names."""
    export(args.place, args.file_name)
    print(f"wrote {args.file_name}")
