"""What a person reads of a run: console lines, TensorBoard files, a progress bar.

`accumulators` sums statistics on the device between reports, `reports` gives values their names,
`writers` writes them. It measures nothing itself. `Loop`, its parts and callbacks call it.
"""

from trax_torch.supervised._logging.accumulators import Accumulators, clocks_running, merged
from trax_torch.supervised._logging.reports import PER_SECOND, Reports, of_the_clock, summaries_of
from trax_torch.supervised._logging.writers import Console, Writers

__all__ = [
    "PER_SECOND",
    "Accumulators",
    "Console",
    "Reports",
    "Writers",
    "clocks_running",
    "merged",
    "of_the_clock",
    "summaries_of",
]
