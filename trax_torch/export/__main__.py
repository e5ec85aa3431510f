"""`python -m trax_torch.export RUN OUT`."""

import argparse

from trax_torch._errors import CheckpointError
from trax_torch.export import export


def main() -> None:
    """Exports what the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m trax_torch.export",
        description="Writes a checkpoint's weights and buffers to one plain safetensors file, "
        "under the names of the module's own state_dict.",
    )
    parser.add_argument("place", metavar="RUN", help="a run's folder, or a checkpoint: run/model_5")
    parser.add_argument("file_name", metavar="OUT", help="the file to write")
    parser.add_argument(
        "--max-shard-size",
        metavar="SIZE",
        help="writes a new folder OUT of files of at most so many bytes, '5GB', and their index",
    )
    args = parser.parse_args()
    try:
        export(args.place, args.file_name, args.max_shard_size)
    except (CheckpointError, OSError, ValueError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    print(f"wrote {args.file_name}")


if __name__ == "__main__":
    main()
