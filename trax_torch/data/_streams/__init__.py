"""Data as a stream of batches that knows its place and finds it again.

`stream` draws, tells the position and goes there; `passes` goes through data that has an end,
`own` is what data of ours tells of its passes, `share` cuts a rank's rows. Tasks call it; pipelines
begin with the kinds that it knows.
"""

from trax_torch.data._streams.kinds import keeps_a_state, source_of
from trax_torch.data._streams.own import OtherExamplesError
from trax_torch.data._streams.passes import generators_of, why_empty
from trax_torch.data._streams.share import share_of
from trax_torch.data._streams.skipping import Skipping
from trax_torch.data._streams.stream import BatchStream

__all__ = [
    "BatchStream",
    "OtherExamplesError",
    "Skipping",
    "generators_of",
    "keeps_a_state",
    "share_of",
    "source_of",
    "why_empty",
]
