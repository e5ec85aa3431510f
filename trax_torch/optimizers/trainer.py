"""One training step: forward, loss, backward, clip, update."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from trax_torch import _nest, _seeds, _torch_private
from trax_torch import layers as tl
from trax_torch.optimizers import _gradients, base
from trax_torch.optimizers._buffers import Buffers
from trax_torch.optimizers._loss_scale import LossScale
from trax_torch.optimizers._memory import Blocks
from trax_torch.optimizers._microbatches import Shares

Stats = dict[str, Any]  # floats on a CPU, else scalar tensors on the device


@dataclass(frozen=True)
class Ranks:
    """What a rank does about gradients besides computing its own.

    Attributes:
      rank: this process's number.
      size: how many ranks there are.
      begin: is called before a step.
      apart: makes a context in which backward passes stay with their rank.
      merge: is called with weights whose gradients are complete on this rank, and changes their
        gradients: all weights at the end of a step, or a block's.
      all_agree: tells whether something is so on all ranks.
    """

    rank: int
    size: int
    begin: Callable[[], None]
    apart: Callable[[], contextlib.AbstractContextManager[None]]
    merge: Callable[[list[torch.nn.Parameter]], None]
    all_agree: Callable[[bool], bool]


class NonFiniteError(ArithmeticError):
    """A loss or a gradient is infinite or not a number.

    The step has changed no weight, unless the error says so: where blocks are updated one by one.

    Args:
      text: says so.
      loss: the loss, or this rank's part of it.
    """

    def __init__(self, text: str, loss: float = math.nan):
        super().__init__(text)
        self.loss = loss


class Trainer:
    """Takes training steps of a model and its loss.

    A step whose loss or gradient is not finite changes nothing: no weight, no slot, and no buffer
    that a `state_dict` holds.

    Args:
      model_with_loss: a layer that maps a batch to one scalar, the loss.
      optimizer: a recipe, a torch optimizer of the model's parameters, or a class of either.
      n_devices: Trax's: how many devices the caller counts on; this process has one.
      forward: computes the loss instead: `model_with_loss` compiled, say, or in another precision.
      shares: how a batch is cut into parts; needed for `n_accumulation_steps` above 1.
      n_accumulation_steps: how many parts go forward and backward one after another, so that the
        activations of one part alone take up memory. Loss and gradients are those of the whole.
      n_skips: how many steps that are not finite may be skipped before one raises.
      ranks: what several ranks do about their gradients; None for one process.
      blocks: the same model and loss, to be computed block by block: each block's weights are
        updated as soon as their gradients are complete, and the gradients freed. There are no
        parts, no skipped steps and no clipping by the norm then, and the optimizer is one that
        updates each weight by itself.
      clip_grad_norm: when the global norm of all gradients reaches this, they are scaled down to
        it, whatever the optimizer; None leaves it to a recipe's own `clip_grad_norm`.
      clip_grad_value: each gradient is brought into [-clip_grad_value, clip_grad_value], after
        clipping by the norm.
      scales_loss: for `forward` in float16: the loss is multiplied before the backward pass, so
        that gradients do not vanish, and these are divided before anything looks at them. Steps
        whose gradients overflow by it are skipped, and are no error.

    Attributes:
      n_skipped: how many were skipped so far.
      is_whole: False while an update is under way, and after one that was broken off.
      rate_is_given: whether steps are told their learning rate.
      first_groups: the optimizer's numbers, group by group, as they were when it came.
      loss_scale: what the loss is multiplied by, or None.

    Raises:
      ValueError: if there is more than one device; if blocks are given, and the optimizer may look
        at all gradients together; if the optimizer clips to another norm; if the loss is scaled,
        and weights are in float16.

    Source: Trax `optimizers/trainer.py::Trainer`.
    """

    def __init__(
        self,
        model_with_loss: tl.Layer,
        optimizer: Any,
        n_devices: int | None = None,
        *,
        forward: Callable[[Any], torch.Tensor] | None = None,
        shares: Shares | None = None,
        n_accumulation_steps: int = 1,
        n_skips: int = 0,
        ranks: Ranks | None = None,
        blocks: Blocks | None = None,
        clip_grad_norm: float | None = None,
        clip_grad_value: float | None = None,
        scales_loss: bool = False,
    ):
        _check_is_alone(n_devices)
        if (n_accumulation_steps > 1 or ranks is not None) and shares is None:
            raise ValueError("Parts of a batch need Shares: they say how much each stands for.")
        self.model_with_loss = model_with_loss
        self.params = [p for p in model_with_loss.parameters() if p.requires_grad]
        self.optimizer = base.bind(optimizer, self.params, model_with_loss.parameters())
        if blocks is not None:
            _check_goes_one_by_one(self.optimizer)
        self.n_skipped = 0
        self.is_whole = True
        self.rate_is_given = False
        self.first_groups = _nest.map_leaves(_copied, self.groups())
        self._forward = model_with_loss if forward is None else forward
        self._shares = shares
        self._n_parts = n_accumulation_steps
        self._n_skips = n_skips
        self._ranks = ranks
        self._blocks = blocks
        max_norm = _gradients.norm_to_clip_to(optimizer, clip_grad_norm)
        self._advice = base.advice_of(optimizer, clip_grad_norm)
        # On a CPU nothing is waited for when a number is read. Elsewhere numbers stay on the
        # device, and fused kernels take the verdict on a step there, so that no step waits for it.
        devices = [p.device for p in self.params] if blocks is None else [blocks.device]
        self._on_cpu = all(device.type == "cpu" for device in devices)
        self._is_sharded = base.is_sharded(self.params)
        device = devices[0] if devices else torch.device("cpu")
        self._zeroes = _gradients.has_own_zero_grad(self.optimizer)
        self._gradients = _gradients.Gradients(
            device, self._on_cpu, self._is_sharded, max_norm, clip_grad_value
        )
        self._decides_on_device = (
            not self._on_cpu
            and not self._is_sharded
            and bool(self.optimizer.defaults.get("fused"))
            and not (scales_loss and ranks is not None)  # which agree on whose loss is bad
        )
        self.loss_scale = None
        if scales_loss:
            _gradients.check_can_unscale(self.params)
            self.loss_scale = LossScale(device if self._decides_on_device else None)
        self._verdicts: torch.Tensor | None = None  # bad steps; the first one, its loss and norm
        self._keyed = _seeds.Keyed(devices[0] if devices else None)
        self._buffers = Buffers(model_with_loss)

    def one_step(
        self,
        batch: Any,
        rng: Any = None,
        step: int = 0,
        learning_rate: float | None = None,
        *,
        measure_weights: bool = True,
        total_weight: float | None = None,
        backward_ended: Callable[[int], None] | None = None,
    ) -> tuple[Any, Stats]:
        """Updates the weights by the gradient of one batch.

        Args:
          batch: a tuple of tensors on the model's device.
          rng: a seed for this step's random numbers; None draws from the default generators.
          step: its number, for messages, and `backward_ended`, called when gradients are complete.
          learning_rate: the rate for this step; None leaves the optimizer's own.
          measure_weights: False leaves out `weights_l2`, which takes a pass over all weights.
          total_weight: what the batches of all ranks count for together; see `Shares`.

        Returns:
          `(loss, stats)`: stats holds `loss`, `gradients_l2` before clipping, and `weights_l2`
          before the update; floats on a CPU, else scalar tensors on the device. It is empty if the
          step was skipped; where the device decides that, `is_good` tells.

        Raises:
          NonFiniteError: if the loss or the gradients' norm is not finite, and no more steps may be
            skipped; nothing has changed. On CUDA with fused kernels `check` raises.
        """
        if learning_rate is not None:
            if not math.isfinite(learning_rate):
                raise ValueError(
                    f"Step {step}: the learning rate is {learning_rate}; a rate is a finite number."
                )
            self.rate_is_given = True
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
        self._free_gradients()
        self._buffers.keep()
        if self._blocks is not None:
            with self._random_numbers(rng):
                return self._in_blocks(self._blocks, batch, step, measure_weights, total_weight)
        try:
            with self._random_numbers(rng):
                if self._n_parts == 1 and self._ranks is None:
                    loss = self._forward(batch)
                    loss.backward(self.loss_scale and self.loss_scale.gradient_of(loss))
                else:
                    loss = self._in_parts(batch, total_weight)
            if self.loss_scale is not None:
                self.loss_scale.unscale_([p.grad for p in self.params if p.grad is not None])
            if backward_ended is not None:
                backward_ended(step)
        except BaseException:
            self._buffers.put_back()
            raise
        grads = [p.grad for p in self.params if p.grad is not None]
        stats = {
            "loss": loss.item() if self._on_cpu else loss.detach(),
            "gradients_l2": self._gradients.norm(grads),
        }
        if measure_weights:
            with torch.no_grad():
                stats["weights_l2"] = self._gradients.norm(self.params)
        loss = stats["loss"]
        self._update(grads, stats, step)
        return loss, stats

    def groups(self) -> list[dict[str, Any]]:
        """Returns the optimizer's numbers, group by group."""
        return [
            {k: v for k, v in group.items() if k != "params"}
            for group in self.optimizer.param_groups
        ]

    def renew_params(self) -> None:
        """Takes note of weights that are frozen or thawed since.

        Raises:
          ValueError: if a weight was thawed that the optimizer does not hold, or on several ranks,
            which would not add up its gradients; or as `Trainer` says.
        """
        if self._blocks is not None:
            _check_goes_one_by_one(self.optimizer)
        self._zeroes = _gradients.has_own_zero_grad(self.optimizer)
        params = [p for p in self.model_with_loss.parameters() if p.requires_grad]
        new = {id(p) for p in params} - {id(p) for p in self.params}
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        if new and (self._ranks is not None or not new <= held):
            raise ValueError(
                f"{len(new)} weights are trained now that were frozen when Loop was built. Build "
                f"Loop again with the model as it is; output_dir keeps what was learned."
            )
        self._free_gradients()  # of frozen ones, too, which the optimizer would follow on
        self.params = params

    def weight_of(self, batch: Any) -> float:
        """Returns what a batch counts for beside those of other ranks; see `Shares`."""
        assert self._shares is not None
        if self._is_sharded and self._shares.n_rows(batch) < self._n_parts:
            raise ValueError(
                f"Where ranks hold parts of weights, each cuts its batch into as many parts; this "
                f"one has {self._shares.n_rows(batch)} rows for {self._n_parts} parts."
            )
        return self._shares.weight_of(batch)

    def check(self) -> None:
        """Raises NonFiniteError if more steps were bad than may be skipped.

        Where the device decides, this is when it is asked what it decided.
        """
        if self._verdicts is None:
            return
        n_bad, step, loss, norm = self._verdicts.tolist()
        self.n_skipped += int(n_bad)
        self._verdicts = None
        if n_bad and self.n_skipped > self._n_skips:
            raise NonFiniteError(self._complaint(int(step), loss, norm), loss)

    def forget_verdicts(self) -> None:
        """Takes no account of bad steps that `check` has not asked for yet."""
        self._verdicts = None

    def _in_parts(self, batch: Any, total_weight: float | None) -> torch.Tensor:
        """Adds up the gradients of the parts of a batch, over ranks too; returns its own share.

        Where a rank's loss is not finite, its gradients are made so: thus all ranks hear of it.
        """
        assert self._shares is not None
        size = 1 if self._ranks is None else self._ranks.size
        if self._ranks is not None:
            self._ranks.begin()
        parts = self._shares.cut(batch, self._n_parts, total_weight, size)
        losses = []
        for i, (part, share) in enumerate(parts, 1):
            with self._one_reduction(is_last=i == len(parts)):
                loss = self._forward(part)
                if self.loss_scale is None:
                    loss.backward(loss.detach() * 0.0 + share)
                else:
                    loss.backward(self.loss_scale.gradient_of(loss, share))
            losses.append(loss.detach() * (share / size))
        if self._ranks is not None:
            self._ranks.merge(self.params)
        return torch.stack(losses).sum()

    def _in_blocks(
        self,
        blocks: Blocks,
        batch: Any,
        step: int,
        measure_weights: bool,
        total_weight: float | None,
    ) -> tuple[float, Stats]:
        """Updates the weights of each block when its gradients are complete, and frees these."""
        share, size = 1.0, 1
        if self._ranks is not None and self._shares is not None:
            self._ranks.begin()
            size = self._ranks.size
            ((batch, share),) = self._shares.cut(batch, 1, total_weight, size)
        squares = {"gradients_l2": 0.0}
        if measure_weights:  # of those that no gradient is waited for, too
            squares["weights_l2"] = 0.0
        is_late = False  # whether weights are updated already

        def complete(params: list[torch.nn.Parameter]) -> None:
            nonlocal is_late
            if self._ranks is not None:
                self._ranks.merge(params)
            grads = [p.grad for p in params if p.grad is not None]
            norm = float(self._gradients.norm(grads))
            if not math.isfinite(norm):
                raise NonFiniteError(self._complaint(step, loss, norm, is_late), loss)
            squares["gradients_l2"] += norm**2
            if measure_weights:
                squares["weights_l2"] += (
                    float(self._gradients.norm([p.detach() for p in params])) ** 2
                )
            self._gradients.clip_values_(grads)
            self.is_whole, is_late = False, True
            with blocks.residence.slots_at_hand(self.optimizer, params):
                self._update_alone(params)
            for p in params:
                p.grad = None

        try:
            loss = float(blocks.forward(batch) * share) / size
            is_good = math.isfinite(loss)
            if not (is_good if self._ranks is None else self._ranks.all_agree(is_good)):
                raise NonFiniteError(self._complaint(step, loss), loss)
            blocks.backward(share, complete, one_by_one=self._ranks is None)
        except BaseException:
            blocks.abandon()
            self._free_gradients()
            self._buffers.put_back()
            raise
        return loss, {"loss": loss, **{name: math.sqrt(x) for name, x in squares.items()}}

    def _free_gradients(self) -> None:
        if self._zeroes:
            self.optimizer.zero_grad()
        for p in self.params:  # all of them: the optimizer may hold but a few
            p.grad = None

    def _update_alone(self, params: list[torch.nn.Parameter]) -> None:
        """Has the optimizer update these weights, and look at no others."""
        chosen = {id(p) for p in params}
        groups = self.optimizer.param_groups
        everything = [group["params"] for group in groups]
        try:
            for group in groups:
                group["params"] = [p for p in group["params"] if id(p) in chosen]
            self.optimizer.param_groups = [group for group in groups if group["params"]]
            self.optimizer.step()
        finally:
            self.optimizer.param_groups = groups
            for group, whole in zip(groups, everything, strict=True):
                group["params"] = whole
        for p in params:  # which fused kernels do not note, and what is run again must know
            torch.autograd.graph.increment_version(p)

    def _one_reduction(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Has ranks add up their gradients in the last backward pass alone."""
        if self._ranks is None or is_last:
            return contextlib.nullcontext()
        return self._ranks.apart()

    def _random_numbers(self, rng: Any) -> Any:
        return contextlib.nullcontext() if rng is None else self._keyed(_seeds.as_seed(rng))

    def _update(self, grads: list[torch.Tensor], stats: Stats, step: int) -> None:
        """Clips the gradients and moves the weights, if loss and gradients are finite."""
        verdict = stats["gradients_l2"]
        if self._ranks is None:  # else a bad loss has spoilt all ranks' gradients; see _in_parts
            verdict = stats["loss"] + verdict  # finite if both are
        if self._decides_on_device:
            self._decide_on_device(verdict, stats, step)
        elif not math.isfinite(verdict):
            self._buffers.put_back()
            numbers = float(stats["loss"]), float(stats["gradients_l2"])
            if not self._is_by_scale(*numbers):
                self.n_skipped += 1
                if self.n_skipped > self._n_skips:
                    raise NonFiniteError(self._complaint(step, *numbers), numbers[0])
            stats.clear()
            return
        elif self.loss_scale is not None:
            self.loss_scale.update(False, True)
        self._gradients.clip_(grads, stats["gradients_l2"])
        self.is_whole = False
        _torch_private.take_step(self.optimizer)

    def _is_by_scale(self, loss: float, norm: float) -> bool:
        """Lowers the loss's scale if gradients are not finite; tells if that alone is to blame."""
        if self.loss_scale is None or math.isfinite(norm):
            return False
        is_loss_good = math.isfinite(loss)
        if self._ranks is not None:
            is_loss_good = self._ranks.all_agree(is_loss_good)
        return bool(self.loss_scale.update(True, is_loss_good))

    def _decide_on_device(self, verdict: torch.Tensor, stats: Stats, step: int) -> None:
        """Has a bad step change nothing, without waiting to know whether it is one."""
        bad = torch.logical_not(torch.isfinite(verdict))
        _torch_private.set_verdict(self.optimizer, bad.float())
        self._buffers.put_back(bad)
        numbers = [stats["loss"], stats["gradients_l2"]]
        at = torch.full_like(bad, step, dtype=torch.float32)
        first = torch.stack([at, *(n.float() for n in numbers)])
        if self._verdicts is None:
            self._verdicts = torch.zeros(4, device=verdict.device)
        is_error = bad
        if self.loss_scale is not None:
            loss, norm = map(torch.isfinite, numbers)
            is_error = bad & ~self.loss_scale.update(~norm, loss)
        is_first = is_error & (self._verdicts[0] == 0)
        self._verdicts[1:] = torch.where(is_first, first, self._verdicts[1:])
        self._verdicts[0] += is_error
        stats["is_good"] = torch.logical_not(bad)

    def _complaint(
        self, step: int, loss: float, norm: float | None = None, is_late: bool = False
    ) -> str:
        whose = "" if self._ranks is None else f"'s part of rank {self._ranks.rank}"
        found = f"Step {step}: the loss{whose} is {loss}"
        if norm is not None:
            found += f" and the gradients' norm {norm}"
        if is_late:
            return (
                f"{found}, which is a block's whose turn came after others were updated. The "
                f"weights in memory belong to no step and are not usable: load older ones."
            )
        skipped = f" {self.n_skipped} steps were not." if self._n_skips else ""
        # blocks cannot clip
        advice = self._advice if self._blocks is None else "or lower the learning rate"
        return f"{found}, so the step was not taken.{skipped} Look at this batch, {advice}."


def _check_goes_one_by_one(optimizer: torch.optim.Optimizer) -> None:
    """Raises ValueError if an optimizer may look at the gradients of all weights together."""
    kind = type(optimizer)
    if not f"{kind.__module__}.".startswith(("torch.optim.", f"{__package__}.")):
        raise ValueError(
            f"use_memory_efficient_trainer has the optimizer update a block's weights at a time, "
            f"and {kind.__name__} of {kind.__module__} may look at all of them. Give a recipe such "
            f"as optimizers.Adafactor, or one of torch.optim."
        )
    hooks = _torch_private.step_hooks(optimizer)
    if hooks:
        raise ValueError(
            f"use_memory_efficient_trainer has the optimizer take a step for each block, so hooks "
            f"of its step would see a block's gradients alone; it has {len(hooks)} of them, the "
            f"first {hooks[0]!r}. Remove them, or leave use_memory_efficient_trainer out."
        )


def _check_is_alone(n_devices: int | None) -> None:
    """Raises ValueError if the caller counts on several devices."""
    if n_devices not in (None, 1):
        raise ValueError(
            f"A Trainer steps on the one device of its process; got n_devices={n_devices}. Train "
            f"on several with Loop, in a script that torchrun starts."
        )


def _copied(x: Any) -> Any:
    """Returns what stays as it is when x is changed in place."""
    return x.detach().clone() if isinstance(x, torch.Tensor) else x
