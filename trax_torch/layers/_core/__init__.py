"""Layers and functions that `layers.core` shows, since Trax keeps them there.

`locally_connected` is a convolution without shared filters, `summaries` are layers for a person to
look at (PrintShape, SummaryScalar, SummaryImage), `probabilities` are functions of distributions.
For `layers.core` alone.
"""

from trax_torch.layers._core.locally_connected import LocallyConnected1d
from trax_torch.layers._core.probabilities import (
    log_gaussian_diag_pdf,
    log_gaussian_pdf,
    log_softmax,
    logsoftmax_sample,
    multigaussian_loss,
    one_hot,
)
from trax_torch.layers._core.summaries import PrintShape, SummaryImage, SummaryScalar

__all__ = [
    "LocallyConnected1d",
    "PrintShape",
    "SummaryImage",
    "SummaryScalar",
    "log_gaussian_diag_pdf",
    "log_gaussian_pdf",
    "log_softmax",
    "logsoftmax_sample",
    "multigaussian_loss",
    "one_hot",
]
