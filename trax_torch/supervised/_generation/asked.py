"""Which run a call of decoding asks for."""

from typing import Any

from trax_torch import layers as tl
from trax_torch.layers import _predict
from trax_torch.supervised._generation.engine import PredictRun
from trax_torch.supervised._generation.eval_run import EvalRun
from trax_torch.supervised._generation.prompts import prompt_for
from trax_torch.supervised._generation.symbols import own


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

    Returns:
      A `PredictRun` or an `EvalRun`, whose `given` are the tokens of the prompts, (batch, length),
      without a start symbol, and how many of each count, (batch,), or None for all.
    """
    wish = None if accelerate else False
    if isinstance(layer, tl.Accelerate):
        wish, backend, layer = accelerate, layer.backend, layer.sublayer
    asked = prompt_for(layer, inputs, batch_size, start_id, prompt_lengths)
    given = asked.given()
    has_rows = eval_length is not None or next(_predict.foreign_caches(layer), None) is not None
    if n_samples > 1 and has_rows:
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
