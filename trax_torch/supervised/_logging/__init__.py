"""What a person reads of a run: console lines, TensorBoard files, a progress bar.

`accumulators` sums statistics on the device between reports, `reports` gives values their names,
`writers` writes them. It measures nothing itself. `Loop`, its parts and callbacks call it.
"""

from trax_torch.supervised._logging.accumulators import Tally, merged
from trax_torch.supervised._logging.reports import PER_SECOND, Reports, of_the_clock
from trax_torch.supervised._logging.writers import Console, Writers

__all__ = ["PER_SECOND", "Console", "Reports", "Tally", "Writers", "merged", "of_the_clock"]
