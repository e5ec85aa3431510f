"""Programs to run with `python -m trax_torch.examples.NAME`."""
