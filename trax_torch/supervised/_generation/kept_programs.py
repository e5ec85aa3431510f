"""Programs of steps that are kept in a folder, and run in later processes without a compiler.

What a step computes is traced once and compiled ahead (AOTInductor), all layers in one program. It
holds no weights: those, what the layers remember, and what moves from step to step are its inputs,
which are noted by name. A program's file is named by all that it depends on, so one that does not
fit is not found; and one that is found is compared with the model before it serves.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import platform
import tempfile
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trax_torch import _durable, _torch_private
from trax_torch import layers as tl
from trax_torch._version import __version__
from trax_torch.layers._predict import modules_in
from trax_torch.supervised._generation import compiled_step, fingerprint
from trax_torch.supervised._generation.asked import run_for
from trax_torch.supervised._generation.fingerprint import form, tensors_of
from trax_torch.supervised._generation.nan_check import NOT_NUMBERS
from trax_torch.supervised._generation.sampling import doubts_in
from trax_torch.supervised._generation.symbols import START

_log = logging.getLogger("trax_torch")


class KeptProgram:
    """A program of a folder, and how it is called.

    Args:
      path: of its file.
      inputs: for each of its inputs where it comes from, `[where, name]`, and, but for what moves,
        its sizes, strides and type.
      noted: what the model is made of, of which the program was made.
    """

    def __init__(self, path: Path, inputs: list[Any], noted: fingerprint.Noted):
        self._run = _torch_private.load_ahead(str(path))
        self._inputs, self._noted = inputs, noted

    def __call__(self, *args: Any) -> Any:
        return self._run(list(args))

    def bind(self, layer: Any, calls: compiled_step.Calls) -> bool:
        """Has the steps of a run call this program, if the model is what it was made for.

        Args:
          layer: the model, which predicts.
          calls: those of the run.
        """
        if not self._noted.hold():
            return False
        known = _named_tensors(layer)
        args: list[Any] = []
        moving = []
        for i, (where, name, *was) in enumerate(self._inputs):
            if where == "moving":
                moving.append((i, name))
                args.append(None)
                continue
            tensor = known.get((where, name))
            if tensor is None or form(tensor) != was:
                return False
            args.append(tensor)
        calls.know(self, args, moving)
        return True


def warm_up(layer: Any, backend: Any, asked: tuple[Any, ...], n: int, folder: Any) -> None:
    """Takes n steps of a program of the folder, which is made where there is none.

    Args:
      layer: the model.
      backend: by which later calls would have it compiled; see `torch.compile`.
      asked: what those calls ask for: inputs, batch_size, prompt_lengths, max_length, n_beams.
      n: steps after the prompt, at most.
      folder: a path.

    Raises:
      ValueError: if the model's steps cannot be kept.
    """

    @contextlib.contextmanager
    def make_run(wish: bool, backend: Any = backend) -> Any:
        inputs, batch_size, prompt_lengths, max_length, n_beams = asked
        fast = tl.Accelerate(layer, backend=backend)
        call = (inputs, batch_size, START, wish, prompt_lengths, max_length, None, n_beams)
        run = run_for(fast, backend, *call)
        with contextlib.closing(run), run:
            yield run

    with make_run(True) as run:
        step = _step_of(run)
        path = Path(folder) / f"{_digest(layer, step)}.pt2"
    noted = fingerprint.Noted(layer)
    with make_run(False) as run:
        want = _take_steps(run, n)
    noted.leave_out_what_changed()

    def is_found() -> bool:
        kept = _kept(path, noted)
        if kept is None:
            return False
        with make_run(True) as run:
            got = _take_steps(run, n, kept)
        if got is None or not _is_close(got, want, layer):
            _log.info("%s does not fit the model.", path)
            return False
        step.kept, step.is_made = kept, True
        return True

    if is_found():
        return
    with _alone_in(path.parent):
        if is_found():  # by now: another process has made it
            return
        with make_run(True, _Traced()) as run:
            _make(run, path)
        if not is_found():
            raise ValueError(
                f"The program in {path} gives other numbers than the model: leave folder= out, and "
                f"report it."
            )


@contextlib.contextmanager
def _alone_in(folder: Path) -> Generator[None, None, None]:
    """Has others that would write into a folder wait, where they can be told to.

    Raises:
      ValueError: if it cannot be written into.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
        except OSError as error:
            raise ValueError(
                f"folder= is where programs are kept, which must be made and written to; "
                f"{str(folder)!r} cannot ({error}). Give another one."
            ) from error
        with contextlib.suppress(OSError):  # some network's file systems know of no such locks
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield


def _kept(path: Path, noted: fingerprint.Noted) -> KeptProgram | None:
    """Returns the program in a file, if it is there, and as it was written."""
    try:
        notes = json.loads(path.with_suffix(".json").read_text())
        inputs = notes["inputs"]
        is_whole = notes["sha256"] == _hash_of(path.read_bytes(), inputs)
        return KeptProgram(path, inputs, noted) if is_whole else None
    except (OSError, ValueError, TypeError, KeyError, RuntimeError):  # the last is torch's
        return None


def _hash_of(data: bytes, *more: Any) -> str:
    return hashlib.sha256(data + json.dumps(more).encode()).hexdigest()


def _step_of(run: Any) -> compiled_step.CompiledStep:
    """Returns the compiled step of a run, if it can be kept."""
    step: compiled_step.CompiledStep | None = run._compiled
    plain = run.n_beams == 1 and run._lengths is None and run._source is None
    if step is None or not (plain and run._shares) or run._prompt.device.type != "cpu":
        raise ValueError(
            "folder= keeps steps on a CPU of models that take tokens alone, whose layers are this "
            "package's and have no forward hooks, for calls without beams and prompt_lengths; "
            "leave it out."
        )
    return step


def _take_steps(run: Any, n: int, kept: KeptProgram | None = None) -> Any:
    """Reads the prompt and takes n steps; returns the logits after them, (batch, 1, vocab).

    Args:
      run: a run of the model.
      n: at least 1.
      kept: takes the steps, if the model is what it was made for; otherwise None is returned.

    Raises:
      ValueError: if logits are not numbers.
    """
    logits: torch.Tensor = run.begin()
    if kept is not None and not kept.bind(run._layer, run._calls):
        return None
    tokens = logits.argmax(-1, keepdim=True).expand(-1, run.n_beams)
    for i in range(n):
        if kept is None and bool(doubts_in(logits).isnan().any()):
            raise ValueError(NOT_NUMBERS.format(n=i + 1))
        logits = run.go_on(tokens, torch.zeros_like(tokens))
    return logits


class _Traced:
    """As for `torch.compile(backend=)`: notes the graph, and runs it as it is."""

    graph: Any = None

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graph = graph
        return graph.forward


def _make(run: Any, path: Path) -> None:
    """Compiles the step of a run that traces it, and writes it to a file."""
    step = _step_of(run).as_a_whole()
    graph = step.backend
    try:
        _take_steps(run, 3)  # of two calls it is seen what moves
    finally:
        step.forget()
    args, tensors, sizes = run._calls.known() if run._calls.are_known else ([None], [], [])
    now, moves = run._moving(), {**dict(tensors), **dict.fromkeys(sizes, 0)}
    names = {id(t): [*name, *form(t)] for name, t in _named_tensors(run._layer).items()}
    inputs = [["moving", moves[i]] if i in moves else names.get(id(a)) for i, a in enumerate(args)]
    if None in inputs:
        raise ValueError(
            "folder= keeps steps that depend on weights, on what this package's layers remember, "
            "and on tokens; this model's depend on more. Leave it out."
        )
    values = [now[moves[i]] if i in moves else a for i, a in enumerate(args)]
    window = run._moment.window if sizes else None
    varying = [{0: torch.export.Dim.DYNAMIC} if v is window else {} for v in values]
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "step.pt2"
        program = _OfTensors(graph.graph, frozenset(sizes))
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, of its own ways
            traced = torch.export.export(program, (values,), dynamic_shapes=(varying,))
            _torch_private.compile_ahead(traced, str(made))
        content = made.read_bytes()
    notes = json.dumps({"inputs": inputs, "sha256": _hash_of(content, inputs)}).encode()
    for written, data in ((path, content), (path.with_suffix(".json"), notes)):
        with _durable.whole_file(str(written)) as file:
            file.write(data)


class _OfTensors(nn.Module):
    """A step's graph, which is given tensors in the place of their sizes."""

    def __init__(self, graph: Any, sizes: frozenset[int]):
        super().__init__()
        self._graph, self._sizes = graph, sizes

    def forward(self, args: list[torch.Tensor]) -> Any:
        return self._graph(*(a.shape[0] if i in self._sizes else a for i, a in enumerate(args)))


def _named_tensors(layer: Any) -> dict[tuple[str, str], torch.Tensor]:
    """Returns a predicting model's weights, buffers and what its layers remember, by name."""
    named: dict[tuple[str, str], torch.Tensor] = {}
    for i, memory in enumerate(layer._memories()):
        inside = {**vars(memory), **memory._buffers}
        held = {f"{i}.{k}": t for k, t in inside.items() if isinstance(t, torch.Tensor)}
        named.update({("memory", k): t for k, t in held.items()})
    for i, module in enumerate(modules_in(layer)):
        named.update({("weight", f"{i}.{name}"): t for name, t in tensors_of(module)})
    return named


def _digest(layer: Any, step: compiled_step.CompiledStep) -> str:
    """Returns a name for all that a model's step depends on but the values of weights."""
    versions = __version__, torch.__version__
    here = platform.machine(), torch.backends.cpu.get_cpu_capability()
    text = repr((versions, here, step.kind(), fingerprint.text_of(layer)))
    return _hash_of(text.encode())[:32]


def _is_close(got: torch.Tensor, want: torch.Tensor, layer: Any) -> bool:
    """Tells whether a model's logits are the same but for rounding, which is that of its weights'
    type where that has few bits."""
    tensors = (t for module in modules_in(layer) for _, t in tensors_of(module))
    types = {tensor.dtype for tensor in tensors}
    room = 0.1 if types & {torch.bfloat16, torch.float16, torch.int8, torch.uint8} else 1e-3
    size = want.masked_fill(want.isinf(), 0.0).abs().max().clamp(min=1e-6)
    return bool(((got == want) | ((got - want).abs() <= room * size)).all())
