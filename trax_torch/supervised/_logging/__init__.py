"""What a person reads of a run: console lines, TensorBoard files, a progress bar.

`accumulators` sums statistics on the device between reports, `reports` gives values their names,
`console` prints and `event_files` writes them, `logger_list` tells loggers, whose tables are in
`table_files`. It measures nothing itself. `Loop`, its parts, callbacks and loggers call it.
"""

from trax_torch.supervised._logging import table_files
from trax_torch.supervised._logging.accumulators import Accumulators, clocks_running, merged
from trax_torch.supervised._logging.console import Console
from trax_torch.supervised._logging.event_files import EventFile
from trax_torch.supervised._logging.logger_list import Logger
from trax_torch.supervised._logging.reports import PER_SECOND, Reports, of_the_clock, summaries_of

__all__ = [
    "PER_SECOND",
    "Accumulators",
    "Console",
    "EventFile",
    "Logger",
    "Reports",
    "clocks_running",
    "merged",
    "of_the_clock",
    "summaries_of",
    "table_files",
]
