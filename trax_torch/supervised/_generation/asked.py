"""Which run a call of decoding asks for."""

from typing import Any

from trax_torch import _torch_private
from trax_torch import layers as tl
from trax_torch.interop import huggingface
from trax_torch.layers._predict import foreign_caches
from trax_torch.supervised._generation.drafted import N_DRAFTED, DraftedRun, n_at_once
from trax_torch.supervised._generation.engine import PredictRun
from trax_torch.supervised._generation.eval_run import EvalRun
from trax_torch.supervised._generation.prompts import prompt_for
from trax_torch.supervised._generation.ragged import RaggedRun
from trax_torch.supervised._generation.symbols import own


def layer_of(model: Any) -> Any:
    """Returns a model as a layer; of what `torch.compile` made, the model inside."""
    # It hands on attributes such as init_cache, as if the memories were its own.
    model = _torch_private.uncompiled(model)
    inner = model.module if isinstance(model, tl.Wrapped) else model
    return huggingface.as_layer(inner) if huggingface.is_model(inner) else tl.as_layer(model)


def run_for(
    layer: Any,
    backend: Any,
    inputs: Any,
    batch_size: int,
    start_id: Any,
    accelerate: bool,
    prompt_lengths: Any,
    max_length: int | None,
    eval_length: int | None,
    n_beams: int = 1,
    n_samples: int = 1,
    draft: Any = None,
) -> Any:
    """Returns the run of a model that a call asks for.

    Args:
      layer: the model.
      backend: as for `torch.compile`, where the model says none.
      inputs, batch_size, start_id, accelerate, prompt_lengths: as for
        `autoregressive_sample_stream`.
      max_length: how many tokens at most, or None.
      eval_length: `eval_min_length` for a run in eval mode; None for one in predict mode.
      n_beams: how many beams a row will have.
      n_samples: how many sequences of each row will be drawn; then there are no beams. They go on
        side by side, as beams do, or in rows of their own where there is no cache to share.
      draft: "prompt", or a layer, or None.

    Returns:
      A `DraftedRun`, if there are drafts; else a `PredictRun` or an `EvalRun`, whose `given` are
      the tokens of the prompts, (batch, length), without a start symbol, and how many of each
      count, (batch,), or None for all.
    """
    if draft is not None:
        if eval_length is not None or n_beams > 1:
            what = "eval_mode" if n_beams == 1 else "n_beams"
            raise ValueError(f"draft= is for samples in predict mode; leave {what} out, or draft.")
        call = (inputs, batch_size, start_id, accelerate, prompt_lengths, max_length, n_samples)
        return _drafted(layer, backend, draft, call)
    layer, wish, backend = wish_of(layer, accelerate, backend)
    asked = prompt_for(layer, inputs, batch_size, start_id, prompt_lengths)
    given = asked.given()
    if n_samples > 1 and (eval_length is not None or any(True for _ in foreign_caches(layer))):
        asked, n_samples = asked.repeated(n_samples), 1
    source, prompt, lengths, _ = asked
    run: PredictRun | EvalRun
    if eval_length is not None:
        if own(layer, "takes_whole_prompts"):
            raise ValueError(
                f"In eval mode a model's output at a position tells of the token there; that of "
                f"{layer.name} tells of the next one. Decode in predict mode."
            )
        if bool(prompt[:, 0].any()):
            raise ValueError(
                f"In eval mode the model puts its own start symbol, 0, before a sequence; got "
                f"start_id={start_id!r}. Decode in predict mode, or leave start_id at 0."
            )
        room = None if max_length is None else prompt.shape[1] + max_length - 1
        lengths = None if lengths is None else lengths - 1
        run = EvalRun(layer, source, prompt[:, 1:], lengths, room, eval_length)
    else:
        n_steps = None if max_length is None else max_length - 1
        side_by_side = max(n_beams, n_samples)
        run = PredictRun(layer, source, prompt, lengths, n_steps, side_by_side, wish, backend)
    run.given = given
    return run


def wish_of(layer: Any, accelerate: bool, backend: Any) -> tuple[Any, bool | None, Any]:
    """Returns the layer to run, whether it is to be compiled, and by what."""
    if isinstance(layer, tl.Accelerate):
        return layer.sublayer, accelerate, layer.backend
    return layer, None if accelerate else False, backend


def _drafted(layer: Any, backend: Any, draft: Any, asked: tuple[Any, ...]) -> DraftedRun:
    """Returns the run of a model with drafts."""
    if isinstance(draft, str) and draft != "prompt":
        raise ValueError(
            f"draft is 'prompt', for drafts of a row's own text, or a small model of the same "
            f"vocabulary; got {draft!r}."
        )
    big = _ragged(layer, backend, asked)
    if isinstance(draft, str):
        return DraftedRun(big, None)
    if draft.n_in != layer.n_in:
        raise TypeError(
            f"A model that makes drafts takes what the model takes, which has n_in={layer.n_in}; "
            f"{draft.name} has n_in={draft.n_in}. Give one of the same kind, or 'prompt'."
        )
    return DraftedRun(big, _ragged(draft, backend, asked, n_compiled=2))


def _ragged(
    layer: Any, backend: Any, asked: tuple[Any, ...], n_compiled: int | None = None
) -> RaggedRun:
    inputs, batch_size, start_id, accelerate, prompt_lengths, max_length, n_samples = asked
    layer, wish, backend = wish_of(layer, accelerate, backend)
    prompts = prompt_for(layer, inputs, batch_size, start_id, prompt_lengths)
    source, prompt, lengths, _ = prompts.repeated(n_samples)
    n_steps = None if max_length is None else max_length - 1
    n_compiled = n_compiled or n_at_once(len(prompt), prompt.device)
    kind = (wish, backend, N_DRAFTED + 1, n_compiled)
    return RaggedRun(layer, source, prompt, lengths, n_steps, *kind)
