"""Labeled data as a stream of batches that knows its position.

The position is what a checkpoint keeps, so that a resumed run sees the batches it would have seen.
"""

import contextlib
import copy
import inspect
import logging
import weakref
from collections.abc import Generator, Iterator
from typing import Any

from trax_torch import _seeds
from trax_torch._digest import digest
from trax_torch.data._streams import kinds, passes
from trax_torch.data._streams.numbers import Numbers
from trax_torch.data._streams.own import OtherExamplesError, OwnStream

_log = logging.getLogger("trax_torch")

_NONE = object()  # no batch
_AT_END = "the end of a pass"  # in the place of a digest of the next batch
_AGAIN = "drawn again from its first batch on"
_BY_INDICES = "by the indices of a pass, without drawing again what they stand for"
_BY_STATE = "by its own state_dict"


class BatchStream:
    """Batches from an iterator, or from an iterable gone through again and again.

    Args:
      labeled_data: an iterator of batches; or an iterable such as a `DataLoader`.
      name: how messages call it.

    Attributes:
      n_taken: how many batches were drawn.
      keeps_position: whether the position matters: not where all is gone through each time.

    Raises:
      TypeError: if it is neither.
    """

    def __init__(self, labeled_data: Any, name: str):
        if not hasattr(labeled_data, "__iter__") and not hasattr(labeled_data, "__next__"):
            advice = "Call a generator function first."
            if hasattr(labeled_data, "__getitem__"):
                advice = "Write DataLoader(dataset, batch_size=32, shuffle=True) for a dataset."
            raise TypeError(
                f"{name} needs labeled_data to be an iterator of batches or an iterable such as a "
                f"DataLoader; got {type(labeled_data).__name__}. {advice}"
            )
        self._name = name
        self._source = kinds.source_of(labeled_data)
        self._data = self._source.data
        self._own = self._data if isinstance(self._data, OwnStream) else None
        self._numbers = Numbers(passes.generators_of(self._data))
        self._repeats = not hasattr(self._data, "__next__")
        self._held: list[Any] = [] if self._repeats else [self._data]
        # What holds a stream is held by it in turn, callbacks by their loop, say; of such things a
        # DataLoader's queues may go before its iterator, which then waits five seconds for each of
        # its workers. Held from here, too, it goes when the stream has gone, and they after it.
        weakref.finalize(self, self._held.clear).atexit = False
        self.n_taken = 0
        self._epoch = -1  # the pass under way, from 0
        self._n_in_pass = 0  # how many batches of it were drawn
        self._is_first = True  # whether the next batch is a pass's first
        self._rest: dict[str, Any] | None = None  # the position in a pass to go on from
        self._tail: tuple[int, str] | None = None  # which pass that was, and its next batch
        self._why_again = _AGAIN
        self._first: Any = None  # the batch that was a sample, until it is trained on
        self._sampled = ""  # its digest
        self._n_twice = 0  # 1 if it was
        self._last: Any = None  # the batch that was drawn last
        self._ahead: list[Any] = []  # the next batch, or its error, if it was looked at already
        self._told: dict[str, Any] | None = None  # the position that was told then
        self.keeps_position = True

    def next(self) -> Any:
        """Returns the next batch: a list or a lone array as a tuple, else as it came.

        Raises:
          ValueError: if the data has no (more) batches, or what it gives is no batch.
        """
        self._told = None
        drawn = self._ahead.pop() if self._ahead else self._draw()
        if isinstance(drawn, Exception):
            raise drawn
        self._last = batch = self._as_batch(drawn)
        self.n_taken += 1
        return batch

    def next_own(self) -> Any:
        """Returns `next` without rows that a sampler repeats; None if none is left."""
        return passes.own_rows(self._data, self.next(), self._n_in_pass - 1, self._name)

    def sample(self, given: Any) -> Any:
        """Returns the batch that was given to take shapes from, or the next one for None.

        That one is the last of an iterator's that ends, so that none is dropped.
        """
        if given is not None:
            return self._as_batch(given)
        self._first = self.next()
        self._sampled = digest(self._first)
        return self._first

    def key(self, seed: int | None, *keys: int | str, rank: int = 0) -> None:
        """Has what is drawn from now on drawn with random numbers of this stream's own.

        A stream that was keyed before stays as it is.

        Args:
          seed: of the run; for None, where the process-wide generators are rules the numbers.
          *keys: what tells it from other streams of the run.
          rank: of this process; shares of the same data are keyed alike on all ranks.
        """
        if self._own is not None:
            self._own.key(seed, *keys)
            return
        keys = (*keys, *([rank] if rank else []))
        own = _seeds.ambient_keys(*keys) if seed is None else [_seeds.derive(seed, *keys)] * 3
        self._numbers.key(own, self.n_taken)

    @property
    def draws_from(self) -> list[str]:
        """Which process-wide generators batches were seen to move: 'torch', 'numpy', 'random'."""
        return self._numbers.draws_from

    @property
    def n_batches(self) -> int | None:
        """How many batches `epoch` goes through; None where the data does not say."""
        if self._own is not None:
            return self._own.n_batches
        return passes.n_batches_of(self._data)

    @property
    def repeats(self) -> bool:
        """Whether the data is gone through again and again, alone or as a share of it."""
        return self._repeats if self._own is None else self._own.repeats

    @property
    def n_passes(self) -> int:
        """How many passes through the data are complete, of which the next has begun."""
        if self._own is not None:
            return self._own.n_passes
        return max(0, self._epoch + (self._rest is not None))

    @property
    def fits_any_size(self) -> bool:
        """Whether one position serves any number of ranks; see `share_of`."""
        return not self.keeps_position or bool(getattr(self._data, "fits_any_size", False))

    @property
    def batch_size(self) -> int | None:
        """How many rows a batch has, where the data says so, as a `DataLoader` does; else None."""
        sampler = getattr(self._data, "batch_sampler", None)
        sizes = [getattr(data, "batch_size", None) for data in (self._data, sampler)]
        return next((n for n in sizes if isinstance(n, int)), None)

    def epoch(self) -> Generator[Any, None, None]:
        """Yields all batches from the first one on, once; the position stays where it is.

        Where a sampler repeats rows to give all ranks equally many, the repeated ones are left out.
        """
        if self._own is not None:
            yield from self._own.epoch()
            return
        batches = passes.without_padding(self._data, self._one_pass(), self._name)
        with contextlib.closing(batches):
            yield from map(self._as_batch, batches)

    def _one_pass(self) -> Iterator[Any]:
        numbers, iterator = self._numbers.of_whole_passes(), None
        for k in range(2**32):
            with numbers.drawing(-1, k, begins=k == 0):
                iterator = self._source.begin() if iterator is None else iterator
                batch = next(iterator, _NONE)
            if batch is _NONE:
                return
            yield batch

    def _as_batch(self, batch: Any) -> Any:
        if isinstance(batch, tuple):
            return batch
        if isinstance(batch, list):
            return tuple(batch)
        if kinds.is_array(batch):
            return (batch,)
        is_none = batch is None or isinstance(batch, (str, bytes, int, float, Iterator))
        if is_none or inspect.isroutine(batch) or inspect.isclass(batch):
            raise ValueError(
                f"{self._name} needs batches that are tuples of arrays or tensors, (inputs, "
                f"targets) or (inputs, targets, weights), or mappings of them by the names of the "
                f"model's arguments; got {type(batch).__name__}."
            )
        return batch

    # Drawing

    def _draw(self) -> Any:
        """Returns the next batch, of the next pass where one has ended."""
        while True:
            begins, is_rest = not self._held, self._rest is not None
            batch = self._step()
            if batch is not _NONE:
                return batch if self._tail is None else self._not_the_tail(batch)
            if not self._repeats or (begins and not is_rest and self._tail is None):
                return self._after_the_end()
            if begins and not is_rest:  # it stays at the end, where its state brought it
                self._begin_anew()
            self._held.clear()

    def _step(self) -> Any:
        """Returns the next batch of the pass under way, or of a new one; `_NONE` at its end."""
        if not self._held:
            self._begin_pass()
        k, is_first = self._n_in_pass, self._is_first
        with self._numbers.drawing(self._epoch, k, begins=is_first):
            if not self._held:
                self._held.append(self._source.begin(self._where if self.keeps_position else None))
            batch = next(self._held[0], _NONE)
        self._n_in_pass, self._is_first = k + (batch is not _NONE), False
        return batch

    def _begin_pass(self) -> None:
        """Begins a pass, or the rest of one; a whole one is begun with its first batch."""
        rest, self._rest = self._rest, None
        self._epoch += 1
        self._n_in_pass, self._is_first = 0, True
        passes.tell_epoch(self._data, self._epoch)
        if rest is None:
            return
        self._n_in_pass = rest.get("n_in_pass", 0)
        with self._numbers.drawing(self._epoch, self._n_in_pass, begins=True):
            self._held.append(self._source.begin())
        # torchdata's loader draws again what it shuffles by, but not all it drew then
        self._numbers.goes_on_at(rest.get("generators", []))
        self._is_first = False

    def _not_the_tail(self, batch: Any) -> Any:
        """Returns the first batch of the pass after a rest; not, once more, that of the rest.

        A state that was loaded may stay where it is, so that each pass begins there.
        """
        epoch, first_of_rest = self._tail or (0, "")
        if self._epoch == epoch:
            return batch
        if digest(batch) != first_of_rest:
            self._tail = None
            return batch
        self._begin_anew()
        again = self._step()
        return batch if again is _NONE else again

    def _begin_anew(self) -> None:
        """Has the pass that has just begun begin with the first batch of all."""
        self._tail = None
        self._source.renew()
        self._held.clear()
        self._epoch -= 1
        self._numbers.goes_on_at(self._numbers.at_pass)
        _log.warning(
            "%s: its passes all seem to begin where the state that was loaded is; it begins anew.",
            self._name,
        )

    def _after_the_end(self) -> Any:
        """Returns the batch that was taken for a sample, which comes last, or says that all is."""
        self._held.clear() if self._repeats else None
        if self._first is not None and self.n_taken:
            batch, self._first, self._n_twice = self._first, None, 1
            return batch
        n = self.n_taken - self._n_twice
        if not n and self._repeats:
            raise ValueError(
                f"{self._name} is empty: going through it gives no batch."
                f"{passes.why_empty(self._data)}"
            )
        raise ValueError(
            f"{self._name} ended after {n} batches{', and begins only once' * self._repeats}. "
            f"Give an iterator that goes on for as long as you train, or an iterable such as a "
            f"DataLoader."
        )

    # The position

    def position(self) -> dict[str, Any]:
        """Returns the position as plain data and tensors; where to go on from, and how.

        Of data whose own state it holds the next batch is drawn, to be given by `next`: what it is
        tells whether the state brings it back.
        """
        if self._told is not None:
            return dict(self._told)
        position: dict[str, Any] = {"n_taken": self.n_taken}
        if not self.keeps_position or not self.n_taken:
            return position
        position |= {"epoch": self._epoch, "n_in_pass": self._n_in_pass, "way": self._way}
        if self._own is None:
            position |= {"numbers": self._numbers.position(), "generators": self._numbers.now}
        if not self._source.keeps_state:
            position |= {"last": digest(self._last), "at_pass": self._numbers.at_pass}
            position["sample"] = self._sampled
            if self._source.skipping is not None:
                position["pass"] = self._source.skipping.tell(self._n_in_pass)
            return position
        position["state"] = self._data.state_dict()
        if self._source.is_checked:
            position["state"] = copy.deepcopy(position["state"])
            position["next"] = self._look_ahead()
            self._told = position
        return dict(position)

    @property
    def _where(self) -> dict[str, Any]:
        """Where the pass under way began."""
        return {"epoch": self._epoch, "generators": self._numbers.at_pass}

    @property
    def _way(self) -> str:
        if self._source.skipping is not None and self._why_again == _AGAIN:
            return _BY_INDICES
        return _BY_STATE if self._source.keeps_state else self._why_again

    def _look_ahead(self) -> str:
        """Returns a digest of the next batch of this pass, which is drawn now."""
        if not self._ahead:
            if not self._held and self._rest is None:
                return _AT_END
            try:
                batch = self._step()
            except Exception as error:  # whoever wants the batch gets it
                batch = error
            if batch is _NONE:
                if self._repeats:
                    self._held.clear()
                return _AT_END
            self._ahead.append(batch)
        return digest(self._ahead[0])

    def has_passed(self, position: dict[str, Any]) -> bool:
        """Tells whether more batches were drawn than at a position, and there is no way back."""
        goes_back = self._repeats or ("state" in position and self._source.keeps_state)
        return self.keeps_position and not goes_back and position["n_taken"] < self.n_taken

    def seek(self, position: dict[str, Any]) -> None:
        """Goes to a position that `position` gave, in this process or an earlier one.

        Data with `load_state_dict` is asked to go there itself. Any other is drawn from until as
        many batches have gone by; so is data whose own state brings back another batch.

        Raises:
          ValueError: if more batches were drawn already.
        """
        if not self.keeps_position:
            return
        self._told = None
        if "state" in position and self._source.keeps_state:
            if self._goes_by_state(position):
                return
            self._source.keeps_state = False
            self._why_again = f"{_AGAIN}: its own state_dict does not bring back the next batch"
            _log.warning("%s: %s", self._name, self._why_again)
            self._start_anew(position)
        is_there = position["n_taken"] == self.n_taken and self._begins_like(position)
        if is_there or not self._skips_to(position):
            self._draw_again(position)

    def _skips_to(self, position: dict[str, Any]) -> bool:
        """Goes on in a pass without drawing it again; returns whether its last batch is the same.

        That one is drawn, and with workers up to one of each of them.
        """
        skipping, told, n = (
            self._source.skipping,
            position.get("pass"),
            position.get("n_in_pass", 0),
        )
        if skipping is None or told is None or not 0 < n <= position["n_taken"]:
            return False
        epoch, first = position["epoch"], skipping.first_of(n)
        where = {"epoch": epoch, "generators": position["at_pass"]}
        passes.tell_epoch(self._data, epoch)
        if not skipping.is_as_told(told) or 0 < first < position["numbers"]["n_unkeyed"]:
            passes.tell_epoch(self._data, self._epoch)
            return False
        self._start_anew(position)
        batch: Any = _NONE
        if skipping.are_older(told, where):
            with self._numbers.beginning(**told["since"]):
                skipping.start_workers(told)
        with self._numbers.beginning(**where):
            self._held.append(skipping.begin_at(n, told, where))
            batch = batch if first else next(self._held[0], _NONE)
        for k in range(max(first, 1), n):
            with self._numbers.drawing(epoch, k):
                batch = next(self._held[0], _NONE)
        if batch is _NONE or digest(self._as_batch(batch)) != position["last"]:
            self._start_anew(position)
            return False
        self._last = self._as_batch(batch)
        if skipping.makes_rows_here(told):  # which may draw from the data's generators, too
            self._numbers.goes_on_at(position["generators"])
        self._epoch, self._n_in_pass, self.n_taken = epoch, n, position["n_taken"]
        self._is_first = False
        return True

    def _goes_by_state(self, position: dict[str, Any]) -> bool:
        """Has data go to a state of its own; returns whether the next batch is what it was."""
        if "numbers" in position:
            self._numbers.go_to(position["numbers"])
        try:
            self._data.load_state_dict(position["state"])
        except OtherExamplesError:  # of a pipeline; drawn as a stream draws they may be the same
            return False
        self._numbers.goes_on_at(position.get("generators", []))
        self._ahead.clear()
        self.n_taken, self._tail = position["n_taken"], None
        self._n_in_pass = position.get("n_in_pass", self.n_taken)
        if self._repeats:  # the next pass is the rest of the one that was under way
            self._held.clear()
            self._epoch, self._rest = position.get("epoch", 0) - 1, position
        if "next" not in position:
            return True
        found, self._told = self._look_ahead(), dict(position)
        if found == position["next"] and self._repeats and position["n_in_pass"]:
            self._tail = self._epoch, found
        return bool(found == position["next"])

    def _start_anew(self, position: dict[str, Any]) -> None:
        """Goes back to the first batch, as far as data can."""
        self._source.renew()
        if self._repeats:
            self._held.clear()
        self._ahead.clear()
        self._rest = self._tail = None
        self._epoch, self._n_in_pass, self.n_taken = -1, 0, 0
        if "numbers" in position:
            self._numbers.go_to(position["numbers"])

    def _draw_again(self, position: dict[str, Any]) -> None:
        """Draws until as many batches have gone by as at a position, from the first one on."""
        target, numbers = position["n_taken"], position.get("numbers")
        alike = self._begins_like(position)
        if not alike and target > self.n_taken and self._had_its_sample(position):
            # A dataset that keeps a generator, or counts, is not to give its sample once more.
            self._numbers.follow(position["numbers"])
            while self.n_taken < target:
                self.next()
            if not self._is_another(position):
                return
        if self._repeats and (target < self.n_taken or not alike):
            self._start_anew(position)
        elif numbers is not None:
            self._numbers.follow(numbers)
        missing = target - self.n_taken
        if missing < 0:  # an iterator cannot go back
            raise ValueError(
                f"{self._name} is to go on after batch {target}, but {self.n_taken} were drawn "
                f"already, and an iterator does not go back. Build the task with fresh data before "
                f"resuming, or give an iterable, such as a DataLoader or a list; "
                f"Loop(resume_data='restart') goes on with the batches that come next."
            )
        if missing:
            _log.info("%s: going forward by %d batches to where it was saved", self._name, missing)
        with self._numbers.as_at_first(self.n_taken == 0) as n_unkeyed:
            while self.n_taken < min(n_unkeyed, target):
                self.next()
        while self.n_taken < target:
            self.next()
        if self._is_another(position):
            _log.warning(
                "%s: drawn again, the batches at the place of the save are others: the resumed run "
                "is not the one that was stopped. %s",
                self._name,
                passes.why_others(self._data),
            )

    def _begins_like(self, position: dict[str, Any]) -> bool:
        """Tells whether a position was drawn with the same numbers from the beginning."""
        return "numbers" not in position or self._numbers.begins_like(position["numbers"])

    def _had_its_sample(self, position: dict[str, Any]) -> bool:
        """Tells whether all that was drawn yet is the sample, and the same one as a position's."""
        numbers = position.get("numbers")
        is_it = bool(self._sampled) and position.get("sample") == self._sampled
        if numbers is None or not self._numbers.starts_like(numbers):
            return False
        return is_it and self.n_taken == numbers["n_unkeyed"]

    def _is_another(self, position: dict[str, Any]) -> bool:
        """Tells whether a batch at a position is seen to be another one than when it was told."""
        if "next" in position:
            told = self.position()
            found, self._told = self._look_ahead(), told
            return bool(found != position["next"])
        if not self.n_taken or "last" not in position:
            return False
        return bool(digest(self._last) != position["last"])
