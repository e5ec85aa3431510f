"""`decoding.generate`: many prompts, as they come, on one cache."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from trax_torch import _mistakes
from trax_torch.supervised._generation import habits
from trax_torch.supervised._generation.asked import layer_of, wish_of
from trax_torch.supervised._generation.generating import Generated, Generating, Prompts, in_order
from trax_torch.supervised._generation.prompts import check_counts, prompt_for
from trax_torch.supervised._generation.refilled import RefilledRun
from trax_torch.supervised._generation.sampling import Sampler
from trax_torch.supervised._generation.stop_sequences import stop_sequences
from trax_torch.supervised._generation.symbols import END, PADDING, START, ends_and_padding

_BACKEND: Any = "inductor"


@_mistakes.door("generate", habits.OF_DECODING)
def generate(
    model: Any,
    prompts: Iterable[Any],
    batch_size: int = 8,
    temperature: float = 1.0,
    start_id: Any = START,
    eos_id: int | Sequence[int] = END,
    max_length: int | Iterable[int] = 100,
    accelerate: bool = True,
    *,
    seed: int | Iterable[int] | None = None,
    ordered: bool = True,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    stop: Sequence[Sequence[int]] | None = None,
    return_log_probs: bool = False,
) -> Iterator[Generated]:
    """Yields what a model makes of each of many prompts, of any lengths, on one cache.

    `batch_size` of them go on side by side, each from its own place; when one ends, the next prompt
    is read into its row, and the others go on (continuous batching). Each becomes what
    `autoregressive_sample` makes of it alone, up to rounding, whatever runs beside it. Between
    results the model is as it was.

    Args:
      model: as for `autoregressive_sample_stream`. Plain modules with caches of their own, models
        of transformers among them, are refused: nothing is known of the rows of those caches.
      prompts: an iterable of integers (length,), as lists, arrays or tensors, or of what a
        tokenizer gives for one text. It is asked for the next ones when there are rows for them, so
        it may be a generator, and have no end. If the model takes several inputs, they are its
        sources, padded to a length in common with its own `pad_id`, or 0, which it must know by.
        Of prompts that have a `len` and each a `max_length`, the last `4 * batch_size` are begun
        the longest first, so that rows end at about the same time.
      batch_size: how many rows there are.
      temperature, start_id, eos_id, accelerate, top_k, top_p, min_p, stop, return_log_probs: as for
        `autoregressive_sample`.
      max_length: how many tokens at most; for all prompts, or an iterable of one for each.
      seed: an int for all prompts, each of which draws by it and its place, as rows of one batch
        do; or an iterable of one for each, so that it is what a call with seed=[one] makes.
      ordered: yields results in the order of the prompts, and keeps those that end earlier. False
        yields them as they end.

    Yields:
      `Generated`: a prompt's index, from 0; its tokens, int64 (n,), with the end symbol, but
      without a stop sequence; their log-probabilities, float32 (n,), or None. Arrays, for prompts
      that are arrays or lists.

    Raises:
      ValueError, TypeError, LayerError: as for `autoregressive_sample`, with the index of the
        prompt that is meant; if the model remembers in ways of its own; if `max_length` or `seed`
        has fewer than there are prompts.

    Example:
      >>> from trax_torch import models
      >>> model = models.TransformerLM(vocab_size=8, d_model=8, d_ff=8, n_layers=1, n_heads=2)
      >>> _ = model.init(torch.zeros(1, 1, dtype=torch.int64), rng=0)
      >>> results = generate(model, [[3], [4, 5, 6], []], eos_id=-1, max_length=[4, 2, 3], seed=0)
      >>> [(result.index, len(result.tokens)) for result in results]
      [(0, 4), (1, 2), (2, 3)]
    """
    check_counts(batch_size=batch_size, eos_id=eos_id)
    layer = layer_of(model)
    ends, padding = ends_and_padding(layer, eos_id, PADDING)
    samplers = {
        n: Sampler(temperature, n, 0, top_k=top_k, top_p=top_p, min_p=min_p)
        for n in (1, batch_size)
    }
    stops = stop_sequences(stop)
    inner, wish, backend = wish_of(layer, accelerate, _BACKEND)
    asked = Generating(
        inner, batch_size, samplers, ends, stops, padding, return_log_probs, wish, backend
    )
    results = asked.results(Prompts(layer, prompts, start_id, max_length, seed, batch_size))
    return in_order(results) if ordered else results


def refilled_run(
    model: Any, inputs: Any, batch_size: int, max_length: int, others: dict[str, Any]
) -> RefilledRun:
    """Returns a run that is to be compiled, for `warmup`.

    Args:
      model: a `tl.Accelerate`.
      inputs: integers (batch, length) as long as the prompts that will come, or None.
      batch_size, max_length: of the calls.
      others: what `generate` does not take; false for what was not given.
    """
    for name, value in others.items():
        if value is not None and value != 0:
            raise ValueError(
                f"many_prompts=True is for generate, which takes no {name}. Leave it out, or warm "
                f"up for other calls by a call of its own."
            )
    layer, wish, backend = wish_of(model, True, _BACKEND)
    asked = prompt_for(layer, inputs, batch_size, START, None)
    source = None if asked.source is None else asked.source[:1]
    prompt, padding = asked.tokens[:1], ends_and_padding(layer, END, PADDING)[1]
    n_places = prompt.shape[1] + max_length - 1
    return RefilledRun(layer, batch_size, source, prompt, n_places, padding, wish, backend)
