"""The callbacks of a run: told of what happens, and what fails in one fails on all ranks."""

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable, Generator, Iterable
from typing import Any, Protocol, TypeVar

from trax_torch import _distributed
from trax_torch.supervised._loop import alike, habits
from trax_torch.supervised._loop.settings import LoopConfig
from trax_torch.supervised._loop.stopping import Stopping

Block = contextlib.AbstractContextManager[None]
Method = TypeVar("Method", bound=Callable[..., Any])

_OF_STEPS = ("call_at", "on_step_begin", "on_step_end")
_HOOKS = (
    *(*_OF_STEPS, "on_backward_end", "on_update_end", "on_run_begin", "on_run_end"),
    *("on_evals_begin", "on_evals_end", "on_log", "on_save", "on_load", "training_values"),
)


def hook(method: Method) -> Method:
    """Marks a method of the base class: who does not override it is not called."""
    method.is_hook = True  # type: ignore[attr-defined]
    return method


def _overrides(callback: Any, name: str) -> bool:
    return not getattr(getattr(callback, name, None), "is_hook", not hasattr(callback, name))


class Callback(Protocol):
    """What is told of a run; `callbacks.TrainingStepCallback` is the class to derive from."""

    def call_at(self, step: int) -> bool:
        """Tells whether to call at this step."""
        ...

    def on_step_begin(self, step: int) -> None:
        """Is called before the step."""

    def on_step_end(self, step: int) -> None:
        """Is called after the step."""

    def on_evals_begin(self, step: int) -> None:
        """Is called before the model is measured."""

    def on_evals_end(self, step: int) -> None:
        """Is called after the model was measured."""

    def on_run_end(self, step: int) -> None:
        """Is called when `run` ends."""

    def training_values(self) -> dict[str, float]:
        """Returns values to log with training's, by name."""
        ...


class CallbackList:
    """The callbacks of a run.

    Args:
      world: the ranks that train together.
      stopping: where ranks agree on whether to go on.
      config: the run's settings.
      step: returns how many steps were taken.

    Attributes:
      items: the callbacks.
      of_steps: those that are asked at each step whether they want to be told of it.
      backward_ended: is called with a step when its gradients are complete; None if none is told.
      updated: is called with a step when its weights are updated; None if none is told.
    """

    def __init__(
        self,
        world: _distributed.World,
        stopping: Stopping,
        config: LoopConfig,
        step: Callable[[], int],
    ):
        self._world = world
        self._stopping = stopping
        self._step = step
        self._has_blocks = bool(config.use_memory_efficient_trainer)
        self.items: list[Any] = []
        self.of_steps: list[Any] = []
        self.backward_ended: Callable[[int], None] | None = None
        self.updated: Callable[[int], None] | None = None
        self._told: dict[str, list[Any]] = {name: [] for name in _HOOKS}
        self._n_anywhere: dict[str, float] = dict.fromkeys(_HOOKS, 0.0)  # on all ranks together
        self._agrees_at_steps = False  # whether on any rank one is told of steps or updates
        self._late: Exception | None = None  # that waits until note is taken of the step
        self._is_loaded = False  # by a checkpoint

    def build(self, makers: Any, loop: Any, saves: Block, fill: Callable[[], None]) -> None:
        """Builds callbacks, which may look at the loop: it is ready.

        Args:
          makers: a class, several, or None.
          loop: what they are built with.
          saves: a block in which saves wait.
          fill: gives them their saved states.
        """
        with saves:
            with self._world.together():
                several = isinstance(makers, (list, tuple))
                for maker in makers if several else [makers] * bool(makers):
                    self.items.append(_made(maker, loop))
            alike.check_callbacks(self.items, self._world)
            self._decide()
            fill()
            if self._is_loaded:
                self.loaded()

    def _decide(self) -> None:
        """Finds who is told of what, once for all steps of a run; ranks hear of each other's."""
        self._told = {n: [c for c in self.items if _overrides(c, n)] for n in _HOOKS}
        counts = self._world.sum([len(told) for told in self._told.values()])
        self._n_anywhere = dict(zip(_HOOKS, counts, strict=True))
        of_steps = [callback for name in _OF_STEPS for callback in self._told[name]]
        self.of_steps = [
            callback for callback in self.items if any(callback is c for c in of_steps)
        ]
        self.backward_ended = self._backward_ended if self._n_anywhere["on_backward_end"] else None
        self.updated = self._updated if self._n_anywhere["on_update_end"] else None
        self._agrees_at_steps = any(self._n_anywhere[n] for n in (*_OF_STEPS, "on_update_end"))
        if self._has_blocks and self.backward_ended is not None:
            raise ValueError(
                "on_backward_end is called when all gradients are there, and "
                "use_memory_efficient_trainer frees those of a block before those of the next are "
                "computed. Leave one of the two out; on_update_end goes with it."
            )

    def _tell(self, name: str, *args: Any) -> Exception | None:
        """Calls a method of those that have it; returns what one raised."""
        try:
            for callback in self._told[name]:
                getattr(callback, name)(*args)
        except Exception as raised:
            return raised
        return None

    def _tell_together(self, name: str, *args: Any) -> None:
        """Calls a method on all ranks; what one raises, all do."""
        if self._n_anywhere[name]:
            self._world.fail_together(self._tell(name, *args))

    def _agree(self, error: Exception | None) -> None:
        """Has all ranks raise what one did in a step."""
        if self._world.size > 1:
            self._stopping.agree(error=error)
        elif error is not None:
            raise error

    def _backward_ended(self, step: int) -> None:
        self._agree(self._tell("on_backward_end", step))

    def _updated(self, step: int) -> None:
        self._late = self._tell("on_update_end", step)

    def step_ended(self, called: list[Any], step: int) -> None:
        """Tells those that want to be called at a step that it was taken."""
        if not self._agrees_at_steps:
            return
        error, self._late = self._late, None
        try:
            if error is None:
                for callback in called:
                    callback.on_step_end(step)
        except Exception as raised:
            error = raised
        self._agree(error)

    def logged(self, step: int, values: dict[str, float]) -> None:
        """Tells of values that were logged, on all ranks alike."""
        if self._n_anywhere["on_log"]:
            self._world.fail_together(self._tell("on_log", step, values) if values else None)

    def saved(self, names: Iterable[str]) -> None:
        """Tells of checkpoints that were saved."""
        for name in names:
            self._tell_together("on_save", self._step(), name)

    def loaded(self) -> None:
        """Tells that the run was put elsewhere; or later, where no callback is built yet."""
        self._is_loaded = True
        self._tell_together("on_load", self._step())

    @contextlib.contextmanager
    def evals(self, step: int) -> Generator[None]:
        """Tells all that evals begin, and those that were told, that they end."""
        begin, end = self._told["on_evals_begin"], self._told["on_evals_end"]
        with contextlib.ExitStack() as ends:
            for callback in self.items:
                if any(callback is c for c in begin):
                    callback.on_evals_begin(step)
                if any(callback is c for c in end):
                    ends.callback(callback.on_evals_end, step)
            yield

    @contextlib.contextmanager
    def run(self, saves: Block) -> Generator[None]:
        """Tells all that a run begins and ends, however it does; saves wait until all are told."""
        self._decide()
        try:
            with saves:
                self._tell_together("on_run_begin", self._step())
            yield
        finally:
            with saves, contextlib.ExitStack() as ends:  # one that fails keeps none from its end
                for callback in self._told["on_run_end"]:
                    ends.callback(callback.on_run_end, self._step())

    def values(self) -> dict[str, float]:
        """Returns what they measured, by name."""
        values: dict[str, float] = {}
        for callback in self._told["training_values"]:
            values |= {name: float(x) for name, x in callback.training_values().items()}
        return values


def _made(maker: Any, loop: Any) -> Any:
    """Returns the callback that a class, or a partial of one, makes of a loop.

    Raises:
      TypeError: if it makes none, with the line to write.
    """
    needed = "Callbacks are classes, or partials of them, which Loop calls with itself"
    if not callable(maker):
        kind = type(maker).__name__
        raise TypeError(
            f"{needed}; got a {kind} made already. Give the class, callbacks=[{kind}], or "
            f"functools.partial({kind}, ...) where it takes more than the loop."
        )
    missing = _missing(maker)
    if missing:
        name = maker.func.__name__ if isinstance(maker, functools.partial) else maker.__name__
        values = ", ".join(f"{argument}=..." for argument in missing)
        raise TypeError(
            f"{needed} alone; {name} needs {', '.join(missing)}, too. Give "
            f"functools.partial({name}, {values})."
        )
    made = maker(loop)
    if not hasattr(made, "on_step_end"):
        raise TypeError(
            f"{needed}; {maker!r} gave {made!r}. Derive a class from "
            f"callbacks.TrainingStepCallback, and override on_step_end(step), say."
        )
    own = type(made)
    for name in sorted(habits.OF_CALLBACKS.keys() & vars(own).keys()):
        ours = habits.OF_CALLBACKS[name]
        warnings.warn(f"{own.__name__}.{name} is never called. Loop calls {ours}.", stacklevel=2)
    return made


def _missing(maker: Any) -> list[str]:
    """Returns the arguments that a callable needs besides its first one."""
    try:
        parameters = list(inspect.signature(maker).parameters.values())
    except (TypeError, ValueError):
        return []
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    has_first = bool(named) and named[0].kind != named[0].KEYWORD_ONLY
    return [p.name for p in named[has_first:] if p.default is p.empty]
