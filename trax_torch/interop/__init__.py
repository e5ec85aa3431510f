"""Files of other libraries, read without running anything in them.

`trax_checkpoint` reads what Trax wrote: checkpoints in today's format and in the one before, and
the files of `Layer.save_to_file`. Nothing here writes another library's format. `huggingface` and
`grammars` are asked for by name.
"""

from trax_torch.interop import trax_checkpoint

__all__ = ["trax_checkpoint"]
