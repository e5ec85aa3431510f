"""Data as a stream of batches that knows its place and finds it again.

`stream` draws, tells the position and goes there; `passes` goes through data that has an end,
`own` is what data of ours tells of its passes, `share` cuts a rank's rows. Tasks call it.
"""

from trax_torch.data._streams.own import OtherExamplesError
from trax_torch.data._streams.passes import why_empty
from trax_torch.data._streams.share import share_of
from trax_torch.data._streams.stream import BatchStream

__all__ = ["BatchStream", "OtherExamplesError", "share_of", "why_empty"]
