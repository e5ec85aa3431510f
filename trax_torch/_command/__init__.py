"""`python -m trax_torch`: `train`, `sample`, `info`, `export` and `doctor`, a room each.

`parser` reads the line and calls the room; `text_model` is what a run's folder keeps beside its
checkpoints, so that `sample` finds model and tokenizer again. `__main__` alone calls it.
"""

from trax_torch._command.parser import main

__all__ = ["main"]
