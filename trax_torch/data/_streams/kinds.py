"""One adapter for each kind of data: how a pass begins, and how it is as new again.

A kind that a stream does not know is an iterable, or an iterator, and drawn from as that.
"""

import copy
import inspect
import logging
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from trax_torch import _signals, _torch_private
from trax_torch.data._streams import rows, workers
from trax_torch.data._streams.own import OwnStream
from trax_torch.data._streams.skipping import Skipping, can_skip

_log = logging.getLogger("trax_torch")

# What is drawn from, and who draws from it: of data with a state, and loaders with workers that
# persist, two users would undo each other's.
_users: "weakref.WeakKeyDictionary[Any, weakref.WeakSet[Source]]" = weakref.WeakKeyDictionary()


class Source:
    """An iterator, or an iterable that begins anew by itself.

    Attributes:
      data: what is drawn from.
      keeps_state: whether its state_dict is to be relied on.
      is_checked: whether a state is to be checked by the batch after it.
      skipping: begins passes at later batches, where that can be.
    """

    is_checked = True
    skipping: Skipping | None = None

    def __init__(self, data: Any, keeps_state: bool = False):
        self.data = data
        self.keeps_state = keeps_state

    def begin(self, where: dict[str, Any] | None = None) -> Iterator[Any]:
        """Begins a pass.

        Args:
          where: the place where it begins, for data that can go to a later one; None where nobody
            will ask.
        """
        return iter(self.data)

    def renew(self) -> None:
        """Has the next pass begin as the first one did, as far as that is known."""


class WithState(Source):
    """Data with state_dict and load_state_dict of its own."""

    def __init__(self, data: Any):
        data = _not_in_use(data, self)
        super().__init__(data, keeps_state=True)
        self.is_checked = not isinstance(data, OwnStream)
        self._fresh = _state_of(data) if self.is_checked else None
        if not hasattr(data, "__next__"):
            _note_user(data, self)

    def renew(self) -> None:
        """Loads the state that the data had when the stream was built."""
        if self._fresh is not None:
            self.data.load_state_dict(copy.deepcopy(self._fresh))


class Loader(Source):
    """A DataLoader; its workers, if any, outlive a signal to stop."""

    def __init__(self, data: Any):
        dataset = getattr(data, "dataset", None)
        keeps_state = keeps_a_state(data)
        if hasattr(data, "next_iter_state") and _is_asked_by_its_loader(dataset):
            keeps_state = False  # torchdata's asks it in another way, in vain
        if hasattr(data, "use_stateful_dataloader") and hasattr(data, "next_iter_state"):
            data = _torch_private.accelerates_alone(data)
        is_in_use = bool(_users.get(data)) if _persists(data) else False
        if is_in_use or (keeps_state and hasattr(data, "next_iter_state")):  # torchdata's
            data = _torch_private.loader_without_workers(data)
        if (apart := _not_in_use(dataset, self)) is not dataset:
            data = _torch_private.loader_without_workers(data, apart)
            _forget_state(data)
        super().__init__(data, keeps_state)
        if _persists(data):
            _users.setdefault(data, weakref.WeakSet()).add(self)
        if not keeps_state and can_skip(data):
            self.skipping = Skipping(data, _signals.worker_init)
        self._dataset = apart if keeps_state and keeps_a_state(apart) else None
        self._fresh = None if self._dataset is None else _state_of(apart)
        if self._dataset is not None:
            _note_user(apart, self)

    def begin(self, where: dict[str, Any] | None = None) -> Iterator[Any]:
        """Begins a pass, which may start workers."""
        loader = self.data
        if _persists(loader) and _is_told_by_copies(loader.dataset):
            _torch_private.let_workers_go(loader)  # their copies of it would not hear of the epoch
        if self.skipping is not None and where is not None:
            return self.skipping.begin(where)
        if not loader.num_workers:
            return rows.begin(loader)
        own = loader.worker_init_fn
        loader.worker_init_fn = _signals.worker_init(own)
        try:
            return workers.begin(loader)
        finally:
            loader.worker_init_fn = own

    def renew(self) -> None:
        """Drops the place that a state brought it to, and workers that have drawn."""
        _forget_state(self.data)
        if self.skipping is not None:
            self.skipping.let_go()
        if self.keeps_state and hasattr(self.data, "next_iter_state"):
            self.data.load_state_dict({})
            self.data.next_iter_state = None
        if self._fresh is not None and self._dataset is not None:
            self._dataset.load_state_dict(copy.deepcopy(self._fresh))


def source_of(data: Any) -> Source:
    """Returns the adapter for data: an iterator or an iterable of batches."""
    nodes = sys.modules.get("torchdata.nodes")
    if nodes is not None and isinstance(data, nodes.BaseNode):
        data = nodes.Loader(data)  # which begins it, and has its state
    if isinstance(data, DataLoader):
        return Loader(data)
    return WithState(data) if keeps_a_state(data) else Source(data)


def keeps_a_state(data: Any) -> bool:
    """Tells whether data can say where it is, and go there."""
    has_both = hasattr(data, "state_dict") and hasattr(data, "load_state_dict")
    # Accelerate's loaders have both, mean them only if asked to, and draw ahead of what they tell.
    is_accelerates = hasattr(data, "use_stateful_dataloader")
    return has_both and not is_accelerates and not _is_asked_by_its_loader(data)


def is_array(batch: Any) -> bool:
    """Tells whether a batch is a lone array or tensor."""
    return isinstance(batch, torch.Tensor) or hasattr(batch, "__array__")


def _not_in_use(data: Any, source: Source) -> Any:
    """Returns what streams of Hugging Face's or litdata's, or a copy if it is gone through already.

    Two passes at a time would move one place; what is copied of the rows are references.
    """
    is_litdata = any(each.__module__.startswith("litdata.") for each in type(data).__mro__)
    if not is_litdata and type(data).__module__ != "datasets.iterable_dataset":
        return data
    if _users.get(data):  # a pass of litdata's makes all that it keeps anew
        data = copy.copy(data) if is_litdata else copy.deepcopy(data)
    _users.setdefault(data, weakref.WeakSet()).add(source)
    return data


def _is_asked_by_its_loader(data: Any) -> bool:
    """Tells whether a state is given to who says how much was drawn: a litdata dataset's."""
    if not callable(state_dict := getattr(data, "state_dict", None)):
        return False
    try:
        given = inspect.signature(state_dict).parameters.values()
    except ValueError:  # compiled, it has none to show
        return False
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(each.kind in named and each.default is each.empty for each in given)


def _forget_state(loader: Any) -> None:
    """Has the next pass of a litdata loader begin at its first batch, whatever was loaded."""
    if getattr(loader, "restore", None) is True:
        loader.restore = False


def _note_user(data: Any, source: Source) -> None:
    """Notes who draws from data whose state is that of who drew last: two are told by no state."""
    try:
        users = _users.setdefault(data, weakref.WeakSet())
    except TypeError:  # nothing refers to it weakly
        return
    users.add(source)
    if len(users) > 1:
        for user in users:
            user.keeps_state = False
        _log.warning(
            "A %s keeps one place, and %d streams draw from it, so none goes by it: batches are "
            "counted. Where it gives each batch once, to whoever asks, they are mixed up: give "
            "each task one of its own.",
            type(data).__name__,
            len(users),
        )


def _state_of(data: Any) -> Any:
    try:
        return copy.deepcopy(data.state_dict())
    except Exception:  # some have none before they began
        return None


def _persists(loader: Any) -> bool:
    return bool(loader.persistent_workers)


def _is_told_by_copies(dataset: Any) -> bool:
    """Tells whether a dataset has epochs that its copies in workers do not hear of."""
    shares = type(dataset).__module__.startswith("datasets.")  # tells them by shared memory
    return callable(getattr(dataset, "set_epoch", None)) and not shares
