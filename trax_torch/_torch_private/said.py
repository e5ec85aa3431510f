"""What a release of torch has no longer, and what is done without it: said once."""

import functools
import logging

import torch

_log = logging.getLogger("trax_torch")


@functools.cache
def say(name: str, instead: str) -> None:
    """Says once what a release of torch has no longer, and what is done without it."""
    _log.warning("torch %s has no %s: %s.", torch.__version__, name, instead)
