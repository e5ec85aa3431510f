"""What a batch counts for, where its loss does not say: tried out, by gradients, before step 1.

A loss may be a mean over what it leaves of a batch by rules of its own: targets that are not -100,
a mask. This room lists what there is to count in a batch, and finds what the gradients of parts
must count by to make up that of the whole. `_measuring` of `losses` keeps all as it was.
"""

import dataclasses
import json
import math
import operator
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from trax_torch import _distributed, _nest, _seeds, optimizers
from trax_torch import layers as tl
from trax_torch.supervised import _tasks
from trax_torch.supervised._loop import candidates as _candidates
from trax_torch.supervised._loop import meet as _meet
from trax_torch.supervised._loop import signatures
from trax_torch.supervised._loop.candidates import Change, Clues
from trax_torch.supervised._loop.losses import measuring
from trax_torch.supervised._loop.meeting import BATCH, OWN, Meeting
from trax_torch.supervised._loop.outputs import N_ITEMS, Computed, Met
from trax_torch.supervised._loop.settings import LoopConfig

_N_ROWS = 4  # a batch may be cut because all of it has no room in memory
_N_NUMBERS = 2**20  # of the gradient, at most, that are looked at
_N_TOLD = 3  # counts that are tried as what a model is told
# How far gradients of parts may be from that of the whole for their rounding.
_TOLERANCES = {torch.float64: 1e-7, torch.float32: 2e-4}
_OF_FEWER_DIGITS = {torch.float64: 1e-7, torch.float32: 5e-3}  # TF32, where there is such


class Trial:
    """The gradients of a batch and of the parts it is cut into.

    Args:
      whole: the gradient of the batch.
      parts: parts and their gradients, None where they are no numbers.
      change: how the batch was made, if it is not the sample.
      batch: the batch.
    """

    def __init__(
        self,
        whole: torch.Tensor,
        parts: list[tuple[Any, torch.Tensor | None]],
        change: Change | None,
        batch: Any,
    ):
        self.change = change
        self.batch = batch
        self._parts = [part for part, _ in parts]
        self._is_number = [gradient is not None for _, gradient in parts]
        columns = [whole, *(whole * 0.0 if g is None else g for _, g in parts)]
        # Distances between sums of them are those in the few dimensions that they span.
        _, spanned = torch.linalg.qr(torch.stack(columns, 1), mode="r")
        self._whole, *self._gradients = spanned.T.tolist()

    def error(self, count: optimizers.Count) -> float:
        """Returns how far the parts, counted so, are from the whole, as a share of their size."""
        shares = [1.0 for _ in self._parts]
        if not count.is_sum:
            try:
                weights = [_weight(count, part) for part in self._parts]
            except RuntimeError:  # two items that cannot be multiplied
                return math.inf
            if not sum(weights) > 0 or min(weights) < 0:
                return math.inf
            shares = [w / sum(weights) for w in weights]
        if any(w and not is_number for w, is_number in zip(shares, self._is_number, strict=True)):
            return math.inf
        scaled = [[w * x for x in g] for w, g in zip(shares, self._gradients, strict=True)]
        size = max(math.hypot(*vector) for vector in (self._whole, *scaled))
        rest = [sum(xs) - x for x, *xs in zip(self._whole, *scaled, strict=True)]
        return math.hypot(*rest) / size

    def error_told(self, model: Met, count: optimizers.Count, gradient: "_Gradient") -> float:
        """Returns how far the parts are from the whole if the model is told what that counts for.

        Told of twice as much, the whole must be half. It is infinite where the model takes no such
        number.
        """
        try:
            whole = gradient(self.batch)
            model.tell(count.of(self.batch))
            parts = [gradient(part) for part in self._parts]
            model.tell(2 * count.of(self.batch))
            half = gradient(self.batch)
        except Exception:
            return math.inf
        finally:
            model.tell(None)
        there = [x for x in parts if x is not None]
        if whole is None or half is None or len(there) < len(parts):
            return math.inf
        size = max(float(x.norm()) for x in (whole, *there))
        rests = (whole - torch.stack(there).sum(0), whole - 2 * half)
        return max(float(rest.norm()) for rest in rests) / size


@dataclass
class Finding:
    """What one rank found out.

    Attributes:
      fitting: texts of the counts by which parts add up, the best first; None where nothing tells.
      error: how far parts are from the whole that count by their rows.
      why: why nothing tells.
      caveats: what must not be in a batch, which then would be counted wrongly.
      told: the texts by which parts add up as they are, if the model is told what the whole counts
        for.
    """

    fitting: list[str] | None
    error: float = 0.0
    why: str = ""
    caveats: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)


def shares_of(
    model: tl.Layer,
    met: Meeting,
    task: _tasks.TrainTask,
    n_parts: int,
    world: _distributed.World,
) -> tuple[optimizers.Shares, str]:
    """Returns how the batches of a task are shared out to parts and ranks, and words about it.

    What is not known of a loss is found on some rows of the sample batch, and of others made of it
    in which less counts. The words are empty where there is nothing to say.

    Args:
      model: what runs for the model, whose weights are whole on each rank.
      met: how batches meet it.
      task: the task.
      n_parts: how many parts a batch is cut into.
      world: the ranks, which all find the same.

    Raises:
      ValueError: if the gradients of parts do not make up that of the whole, count as they may.
    """
    loss = met.loss if met.compute is None else _tasks.OwnLoss()
    shares = optimizers.Shares(model, loss)
    both = tl.Serial(model, loss)
    if (n_parts == 1 and world.size == 1) or not shares.counts_rows or not _is_foreign(both, loss):
        return shares, ""
    with world.together():
        rows, why = _some_rows(_nest.to_tensors(met.arranged(task.sample_batch)))
        with measuring(both) as device, _seeds.Keyed(device)(0):
            rows = _nest.to_tensors(rows, device)
            clues = _candidates.clues(both, rows)
        counts = {c.text: c for c in _candidates.counts(clues, rows)}
        takes_number = met.kind == OWN and met.compute is None and signatures.takes_n_items(model)
        mine = Finding(None, why=why) if why else _find(both, rows, clues, counts, takes_number)
    everyones = [Finding(**json.loads(x)) for x in world.gather(json.dumps(vars(mine)).encode())]
    told = [finding for finding in everyones if finding.fitting is not None]
    if not told:
        if everyones[0].why:
            warnings.warn(
                f"Whether parts of a batch, or ranks, make up the whole could not be tried out for "
                f"{task.loss_name} ({everyones[0].why}). Each counts by its rows; if that is not "
                f"what the loss is a mean over, take the weights of items as a third input called "
                f"weights.",
                stacklevel=4,
            )
        return shares, ""
    common = [x for x in told[0].fitting or () if all(x in (f.fitting or ()) for f in told)]
    if not common:
        raise ValueError(_refusal(task.loss_name, max(f.error for f in told), list(counts)))
    count = counts[common[0]]
    shares = optimizers.Shares(model, loss, count)
    is_told = all(count.text in f.told for f in told)
    if isinstance(model, Met) and is_told:
        model.is_told = True
        shares = optimizers.Shares(model, loss, count, model.tell)
    caveats = sorted({caveat for finding in told for caveat in finding.caveats})
    if count is _candidates.ROWS and not caveats:
        return shares, ""
    what = _named(", ".join([count.text, *caveats]), met)
    how = f"the model is given their number as {N_ITEMS}" if is_told else "count by that"
    return shares, f"{task.loss_name} is {what}: parts of a batch, and ranks, {how}."


def shares_of_all(
    models: list[tl.Layer],
    meetings: list[Meeting],
    tasks: list[_tasks.TrainTask],
    config: LoopConfig,
    world: _distributed.World,
) -> tuple[list[optimizers.Shares], list[str]]:
    """Returns what `shares_of` finds for each task, and its words, where there are some."""
    n_parts = config.n_accumulation_steps
    found = [shares_of(*each, n_parts, world) for each in zip(models, meetings, tasks, strict=True)]
    return [shares for shares, _ in found], [words for _, words in found if words]


def counts_in_evals(
    layer: tl.Layer, tasks: list[_tasks.EvalTask], like: Any, world: _distributed.World
) -> list[list[optimizers.Count | None]]:
    """Returns what batches count for in each metric of each eval task, where that is found out.

    It is the labels that a metric does not ignore; None stands for what `Shares` knows by itself,
    or rows. Fewer things are tried than for training: of nothing else do evals need to know.

    Args:
      layer: the model, whose weights are whole on each rank.
      tasks: the eval tasks.
      like: a batch like those that are measured, where a task has no sample.
      world: the ranks, which all find the same.
    """
    tried: list[list[tuple[dict[str, optimizers.Count], list[str] | None]]] = []
    with world.together():
        for task in tasks:
            sample = like if task.sample_batch is None else task.sample_batch
            meetings = _meet.meet_all(layer, task.metrics, sample)
            if task.n_eval_batches <= 1 and world.size == 1:  # which counts for all, as it may
                meetings = []
            tried.append([_labels_counted(layer, met, sample, world.device) for met in meetings])
    mine = [[fitting for _, fitting in each] for each in tried]
    everyones = [json.loads(data) for data in world.gather(json.dumps(mine).encode())]
    chosen: list[list[optimizers.Count | None]] = []
    for index, each in enumerate(tried):
        chosen.append([])
        for place, (counts, _) in enumerate(each):
            told = [x for x in (found[index][place] for found in everyones) if x is not None]
            common = [text for text in told[0] if all(text in x for x in told)] if told else []
            chosen[-1].append(counts[common[0]] if common else None)
    return chosen


def _labels_counted(
    layer: tl.Layer, met: Meeting, sample: Any, device: torch.device
) -> tuple[dict[str, optimizers.Count], list[str] | None]:
    """Returns counts by what they are, and which of them fit a metric, the best first.

    Where the sample does not tell it is None, and where there is nothing to try, there are none.
    """
    model, loss = met.model(layer), met.loss.to(device)
    both = tl.Serial(model, loss)
    is_foreign = _is_foreign(both if met.kind == OWN else loss, loss)
    is_known = not is_foreign or not optimizers.Shares(model, loss).counts_rows
    rows, why = _some_rows(_nest.to_tensors(met.arranged(sample)))
    name = _labels_of(met, rows)
    if isinstance(loss, _tasks.StatefulMetric) or is_known or why or name is None:
        return {}, []
    with measuring(both) as where, _seeds.Keyed(where)(0):
        rows = _nest.to_tensors(rows, where)
        clues = _candidates.clues(both, rows)
    clues = dataclasses.replace(clues, values=_candidates.ignored(clues))
    counts = {c.text: c for c in _candidates.counts(clues, rows) if c.is_of(name)}
    with measuring(both, with_gradients=True):
        gradient = _Gradient(both)
        if not gradient.params:
            return counts, None
        full = _nest.map_leaves(_candidates.filled_up, rows)
        changes = [each for each in _candidates.changes(clues, full) if each.name == name]
        found, trial = _tried(_trials(full, rows, gradient, changes), counts, gradient.tolerance)
    if trial is None or not found.fitting:
        return counts, None
    return counts, [*_candidates.untried(rows, found.fitting), *found.fitting]


def _labels_of(met: Meeting, batch: Any) -> str | None:
    """Returns the name in `_nest.named_leaves` of the labels that a metric compares; or None."""
    named = _nest.named_leaves(batch)
    if met.kind == BATCH:
        own = {k.rpartition(".")[2]: k for k in named if k.startswith(f"{met.call.n_in}.")}
        found = [own[name] for name in own if _meet.is_targets(name)]
    elif met.kind == OWN:
        given = [*(met.call.names or range(met.call.n_in))]
        found = [str(given.index(met.labels))] if met.labels in given else []
    else:
        found = [str(met.call.n_in)] if met.names or met.is_plain else []
    is_there = len(found) == 1 and _candidates.may_be_classes(named.get(found[0]))
    return found[0] if is_there else None


def _named(text: str, met: Meeting) -> str:
    """Returns words about an arranged batch with the names that the items had before."""
    if met.is_plain:
        return text
    names = [*(met.call.names or range(met.call.n_in)), *met.names]
    for place, name in enumerate(names):
        text = re.sub(rf"\bitem {place}\b", repr(name) if isinstance(name, str) else "\\g<0>", text)
    return text


def _refusal(name: str, error: float, tried: list[str]) -> str:
    error_text = f"by {error:.2g} of its size" if error < math.inf else "entirely"
    return (
        f"Parts of a batch, or ranks, must make up the whole, and the gradient of {name} for rows "
        f"of the sample batch differs {error_text} from that of their parts, counted by rows; nor "
        f"does it add up counted by anything else that there is to count ({len(tried)} ways). A "
        f"loss that compares rows with each other cannot be cut: leave n_accumulation_steps at 1 "
        f"and train in one process. One that is a mean over items can: take the weights of items "
        f"as a third input called weights, by which parts then count."
    )


def _is_foreign(both: tl.Layer, loss: tl.Layer) -> bool:
    """Tells whether a loss, or a model, is somebody else's code, of which nothing is known."""
    foreign = (tl.Wrapped, _tasks.FunctionLoss, Computed)
    if any(isinstance(m, foreign) for m in both.modules()):
        return True
    functions = [getattr(m, "fn", None) for m in loss.modules()]
    return any(
        not str(getattr(f, "__module__", "")).startswith("trax_torch.")
        for f in functions
        if f is not None
    )


def _find(
    both: tl.Layer,
    batch: Any,
    clues: Clues,
    counts: dict[str, optimizers.Count],
    takes_number: bool = False,
) -> Finding:
    """Returns by which counts the parts of some batches make up the whole, as one rank sees it."""
    with measuring(both, with_gradients=True):
        gradient = _Gradient(both)
        if not gradient.params:
            return Finding(None)
        full = _nest.map_leaves(_candidates.filled_up, batch)
        try:
            first, second = gradient(full), gradient(full, seed=1)
        except Exception as raised:
            why = f"its gradient cannot be computed in eval mode: {type(raised).__name__}: {raised}"
            return Finding(None, why=why)
        if first is not None and second is not None:
            is_random = float((first - second).norm()) > gradient.tolerance * float(first.norm())
            if is_random:
                return Finding(None, why="it draws random numbers, also in eval mode")
        changes = sorted(
            _candidates.changes(clues, full), key=lambda each: (each.is_guess, not each.caveat)
        )
        found, trial = _tried(_trials(full, batch, gradient, changes), counts, gradient.tolerance)
        if trial is None:
            return Finding(None, why="" if first is not None else "its gradient is not finite")
        found.fitting = [*_candidates.untried(batch, found.fitting or []), *(found.fitting or [])]
        if takes_number:
            found.told = [
                text
                for text in found.fitting[:_N_TOLD]
                if trial.error_told(both.sublayers[0], counts[text], gradient) <= gradient.tolerance
            ]
    return found


def _tried(
    trials: Iterable[Trial], counts: dict[str, optimizers.Count], tolerance: float
) -> tuple[Finding, Trial | None]:
    """Returns what trials tell, and the one whose parts count most unevenly; None of none."""
    found, uneven = Finding(list(counts)), None
    for trial in trials:
        by_rows = trial.error(_candidates.ROWS)
        left = [text for text in found.fitting or () if trial.error(counts[text]) <= tolerance]
        if trial.change is not None and trial.change.is_guess and not left:
            if trial.change.caveat:
                found.caveats.append(trial.change.caveat)  # else it was nonsense
            continue
        if uneven is None or by_rows > found.error:
            uneven = trial
        found.fitting, found.error = left, max(found.error, by_rows)
        if not left:
            break
    return found, uneven


def _some_rows(batch: Any) -> tuple[Any, str]:
    """Returns some rows of a batch, again and again if it has few; and what is wrong with it."""
    shapes = [tuple(getattr(leaf, "shape", ())) for leaf in _nest.leaves(batch)]
    n_rows = {shape[0] if shape else 0 for shape in shapes}
    if len(n_rows) != 1 or 0 in n_rows:
        return batch, f"the items of the sample batch have no first axis in common: shapes {shapes}"
    n = min(_N_ROWS, *n_rows)
    places = torch.arange(_N_ROWS) % n
    return _nest.map_leaves(lambda x: x[places.to(x.device)], batch), ""


class _Gradient:
    """Computes the gradient of a batch's loss in one row; None if it is no finite one.

    Args:
      both: model and loss in series.

    Attributes:
      params: the weights whose gradients are looked at: all, or the smaller ones.
      tolerance: how far from each other gradients may be for their rounding.
    """

    def __init__(self, both: tl.Layer):
        self._both = both
        self.params = _looked_at(both)
        if self.params:
            first = self.params[0]
            tolerances = _TOLERANCES if first.device.type == "cpu" else _OF_FEWER_DIGITS
            self.tolerance = tolerances.get(first.dtype, 3e-2)

    def __call__(self, batch: Any, seed: int = 0) -> torch.Tensor | None:
        with (
            _seeds.Keyed(self.params[0].device)(seed),
            torch.backends.cudnn.flags(enabled=False),
        ):
            grads = torch.autograd.grad(self._both(batch), self.params, allow_unused=True)
        flat = [
            (torch.zeros_like(p) if g is None else g.to_dense()).flatten()
            for g, p in zip(grads, self.params, strict=True)
        ]
        together = torch.cat([x.cpu().double() for x in flat])
        return together if bool(together.isfinite().all()) else None


def _looked_at(both: tl.Layer) -> list[torch.nn.Parameter]:
    """Returns the weights whose gradients are compared: all, or the smaller ones."""
    params = sorted((p for p in both.parameters() if p.requires_grad), key=torch.numel)
    chosen, n = params[:1], sum(p.numel() for p in params[:1])
    for p in params[1:]:
        n += p.numel()
        if n > _N_NUMBERS:
            break
        chosen.append(p)
    return chosen


def _trials(
    full: Any,
    batch: Any,
    gradient: _Gradient,
    changes: list[Change],
) -> Iterator[Trial]:
    """Yields the gradients of a full batch, of the batch, and of others in which less counts.

    A change that nobody can compute, a token that is none, say, tells nothing.
    """
    half = _N_ROWS // 2
    kinds: list[tuple[int, Change | None, list[Any]]] = [(1, None, [full]), (half, None, [batch])]
    kinds += [(half, change, list(change.batches(full, half))) for change in changes]
    for at, change, batches in kinds:
        for changed in batches:
            try:
                whole = gradient(changed)
                if whole is None:
                    continue  # a row of which all is dropped may be 0 / 0
                rows = slice(0, at), slice(at, None)
                parts = [_nest.map_leaves(operator.itemgetter(each), changed) for each in rows]
                made = [(part, gradient(part)) for part in parts]
                trial = Trial(whole, made, change, changed)
            except Exception:
                break
            if whole.norm() > 0:
                yield trial
            break


def _weight(count: optimizers.Count, part: Any) -> float:
    if count.of_items is None:
        return float(len(next(_nest.leaves(part))))
    return float(count.of(part))
