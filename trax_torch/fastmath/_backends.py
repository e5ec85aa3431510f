"""Which backend computes: torch, whatever name a program gives it."""

import contextlib
import contextvars
import enum
import logging
import os
from collections.abc import Generator

from trax_torch import _distributed

_log = logging.getLogger("trax_torch")


class Backend(enum.Enum):
    """Trax's names for what computes, and torch's, which does."""

    JAX = "jax"
    TFNP = "tensorflow-numpy"
    NUMPY = "numpy"
    TORCH = "torch"


_name = contextvars.ContextVar("backend", default="torch")


def set_backend(name: "str | Backend | None") -> None:
    """Notes another name for the backend; torch goes on computing.

    Args:
      name: one of Trax's, or 'torch'; None for 'torch'.

    Raises:
      ValueError: if it is none of these.

    Source: Trax `fastmath/ops.py::set_backend`.
    """
    _name.set(_checked(name))


@contextlib.contextmanager
def use_backend(name: "str | Backend") -> Generator[None]:
    """Notes another name for the backend in a block; torch goes on computing.

    Example:
      >>> with use_backend(Backend.NUMPY):
      ...     backend_name()
      'numpy'
      >>> backend_name()
      'torch'

    Source: Trax `fastmath/ops.py::use_backend`.
    """
    before = _name.set(_checked(name))
    try:
        yield
    finally:
        _name.reset(before)


def backend_name() -> str:
    """Returns the name of the backend: 'torch', unless a program has set another."""
    return _name.get()


def is_backend(backend: Backend) -> bool:
    """Tells whether a backend is the one that is named.

    Example:
      >>> is_backend(Backend.TORCH), is_backend(Backend.JAX)
      (True, False)
    """
    return _name.get() == backend.value


def _checked(name: "str | Backend | None") -> str:
    name = "torch" if name is None else name.value if isinstance(name, Backend) else name
    known = [backend.value for backend in Backend]
    if name not in known:
        raise ValueError(f"A backend is one of {', '.join(known)}; got {name!r}. Leave it out.")
    if name != "torch":
        _log.info("Backend %s is asked for; torch computes, by whatever name.", name)
    return name


def global_device_count() -> int:
    """Returns how many devices train together: one each rank, on all machines.

    Source: Trax `fastmath/ops.py::global_device_count`.
    """
    return _distributed.launched()[1]


def local_device_count() -> int:
    """Returns how many devices of this machine train together: one each rank.

    Source: Trax `fastmath/ops.py::local_device_count`.
    """
    return int(os.environ.get("LOCAL_WORLD_SIZE", global_device_count()))


def device_count() -> int:
    """Returns `global_device_count()`, under the name it had in older releases of Trax."""
    return global_device_count()
