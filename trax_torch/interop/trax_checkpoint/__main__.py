"""`python -m trax_torch.interop.trax_checkpoint IN OUT_DIR`."""

import argparse

from trax_torch.interop.trax_checkpoint import CheckpointError, convert


def main() -> None:
    """Converts what the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m trax_torch.interop.trax_checkpoint",
        description="Converts a file of Trax's to weights.safetensors and info.json.",
    )
    parser.add_argument("path", metavar="IN", help="a checkpoint, with or without .pkl.gz")
    parser.add_argument("output_dir", metavar="OUT_DIR", help="a folder; made if there is none")
    args = parser.parse_args()
    try:
        names = convert(args.path, args.output_dir)
    except (CheckpointError, OSError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    for name in names:
        print(f"wrote {name}")


if __name__ == "__main__":
    main()
