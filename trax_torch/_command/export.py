"""`export RUN OUT`: a checkpoint's weights as one plain safetensors file."""

import argparse

from trax_torch.export import export


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("place", metavar="RUN", help="a run's folder, or a checkpoint: run/model_5")
    parser.add_argument("file_name", metavar="OUT", help="the file to write")
    parser.add_argument(
        "--max-shard-size",
        metavar="SIZE",
        help="writes a new folder OUT of files of at most so many bytes, '5GB', and their index",
    )


def run(args: argparse.Namespace) -> None:
    """Exports what the command line names."""
    export(args.place, args.file_name, args.max_shard_size)
    print(f"wrote {args.file_name}")
