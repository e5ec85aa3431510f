"""Pickles as data: what Python, numpy and Trax wrote, read without running anything in it.

`machine` interprets, `records` and `plain_data` say what may come out, `files` reads and writes
whole files, `trax_files` reads Trax's. This wing knows no layer; `interop.trax_checkpoint` fills
layers with what it read. Everyone above the ground floor may call it.
"""

from trax_torch.interop._pickle.files import pickle_to_file, unpickle_from_file
from trax_torch.interop._pickle.trax_files import TraxCheckpoint, read

__all__ = ["TraxCheckpoint", "pickle_to_file", "read", "unpickle_from_file"]
