"""KV caches of foreign models, which what runs again in a backward pass would fill once more."""

import contextlib
from collections.abc import Generator, Iterable
from typing import Any

from torch import nn


def cache_settings_of(modules: Iterable[nn.Module]) -> list[Any]:
    """Returns the configs, in the way of transformers, that tell models to keep a KV cache."""
    configs = (vars(part).get("config") for module in modules for part in module.modules())
    found = {id(c): c for c in configs if isinstance(getattr(c, "use_cache", None), bool)}
    return list(found.values())


@contextlib.contextmanager
def without_cache(configs: Iterable[Any]) -> Generator[None]:
    """Has models keep none for a while: in training nobody asks for one."""
    on = [config for config in configs if config.use_cache]
    for config in on:
        config.use_cache = False
    try:
        yield
    finally:
        for config in on:
            config.use_cache = True
