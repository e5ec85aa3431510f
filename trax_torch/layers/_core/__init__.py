"""Layers and functions that `layers.core` shows, since Trax keeps them there.

`locally_connected` is a convolution without shared filters, `summaries` are layers for a person to
look at (PrintShape, SummaryScalar, SummaryImage), `probabilities` are functions of distributions,
`bfloat16` says where float32 takes its place, `products` are others than torch's where quicker.
For `layers.core` alone.
"""

from trax_torch.layers._core.bfloat16 import is_slow_bfloat16
from trax_torch.layers._core.locally_connected import LocallyConnected1d
from trax_torch.layers._core.probabilities import (
    log_gaussian_diag_pdf,
    log_gaussian_pdf,
    log_softmax,
    logsoftmax_sample,
    multigaussian_loss,
    one_hot,
)
from trax_torch.layers._core.products import (
    by_onednn,
    is_quicker_by_onednn,
    is_quicker_turned_round,
    turned_round,
)
from trax_torch.layers._core.summaries import PrintShape, SummaryImage, SummaryScalar

__all__ = [
    "LocallyConnected1d",
    "PrintShape",
    "SummaryImage",
    "SummaryScalar",
    "by_onednn",
    "is_quicker_by_onednn",
    "is_quicker_turned_round",
    "is_slow_bfloat16",
    "log_gaussian_diag_pdf",
    "log_gaussian_pdf",
    "log_softmax",
    "logsoftmax_sample",
    "multigaussian_loss",
    "one_hot",
    "turned_round",
]
