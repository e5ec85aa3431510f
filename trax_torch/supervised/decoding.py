"""Decoding: a model that predicts the next token, asked again and again."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trax_torch import _mistakes
from trax_torch import layers as tl
from trax_torch.supervised import _generation
from trax_torch.supervised._generation import CachedModule, Generated, Rules, Sampler, generate

__all__ = [
    "AttentionMaps",
    "BeamTree",
    "CachedModule",
    "Generated",
    "attention_of",
    "autoregressive_sample",
    "autoregressive_sample_stream",
    "beam_search",
    "generate",
    "generate_text",
    "quantize",
    "warmup",
]

AttentionMaps, attention_of = _generation.AttentionMaps, _generation.attention_of
BeamTree = _generation.BeamTree
_BACKEND: Any = "inductor"


@_generation.is_sample_stream
@_mistakes.door("autoregressive_sample_stream", _generation.habits.OF_DECODING)
@_generation.in_kind
def autoregressive_sample_stream(
    model: Any,
    inputs: Any = None,
    batch_size: int = 1,
    temperature: float = 1.0,
    start_id: Any = _generation.START,
    accelerate: bool = True,
    eval_mode: bool = False,
    eval_min_length: int = 1,
    *,
    seed: int | Sequence[int] | None = None,
    max_length: int | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    prompt_lengths: Any = None,
    return_log_probs: bool = False,
    pad_id: int = _generation.PADDING,
    n_samples: int | None = None,
    stop: Sequence[Sequence[int]] | None = None,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logits_processor: Any = None,
    banned: Sequence[int] = (),
    forced: Mapping[int, Any] | None = None,
    draft: Any = None,
) -> Iterator[Any]:
    """Yields the tokens of sequences as a model makes them, one position at a time.

    Each call starts afresh. The model needs no mode of its own: it predicts while a token is made
    and is between tokens as it was before.

    Args:
      model: maps tokens (batch, length) to logits (batch, length, vocab), or, if it takes several
        inputs, (source, tokens) to a tuple that begins with logits. A plain `nn.Module` takes part
        as `CachedModule` says; a model of transformers as it is, see `huggingface.as_layer`.
      inputs: integers (batch, length): a prefix that the sequences go on from, or the source if the
        model takes several inputs; or what a tokenizer gives, a mapping with `input_ids` and, where
        rows are padded, their `attention_mask`.
      batch_size: number of sequences.
      temperature: 0 takes the likeliest token; 1 draws from the model's distribution.
      start_id: the symbol before the first one; an int, or integers (batch, 1). By default the
        model's own, or 0.
      accelerate: lets steps be compiled where that pays: very many were taken in earlier calls of
        this kind, or the model was compiled for one (`warmup`, `tl.Accelerate`). Prompts are read
        uncompiled, in one pass or few, and a model with forward hooks is never compiled. The logger
        "trax_torch" is told which way was taken. False never compiles.
      eval_mode: takes any model whose output at a position tells of the token at that position,
        from those before (as models with `ShiftRight` do), and runs it on all tokens so far. Much
        slower.
      eval_min_length: the shortest length to pad to in eval mode; lengths are powers of two, but no
        more than `max_length` makes necessary.
      seed: of the random numbers; an int for all rows, each of which draws by it and its place, or
        one for each, whatever its place. So 5 and [5] are other seeds.
      max_length: after how many tokens the stream ends; by default it does not, but the model may
        be out of room.
      top_k, top_p, min_p: draw among the likeliest tokens alone; see `_generation.Sampler`.
      prompt_lengths: integers (batch,): how many of a row's `inputs` count, where shorter prompts
        are padded on the right. Each row becomes what its prompt alone becomes, up to rounding; in
        eval mode there must be room for `max_length` tokens after the longest.
      return_log_probs: yields `(tokens, log_probs)`; each token's logarithm of the probability that
        the model gave it, in nats, whatever the temperature.
      pad_id: fills rows that have met a stop sequence; by default the model's own, or 0.
      n_samples: draws so many sequences of each prompt: the same as if it were given so many times,
        one after another, so lists of seeds have one for each of them. The prompt is read once
        where this package's layers remember it. What is yielded is (batch, n_samples, 1) then.
      stop: sequences of token ids, before the first of which a row ends. What may yet become one
        is held back; when every row has ended, the stream does.
      repetition_penalty: divides positive logits of tokens that `inputs` (but no source) or the row
        have had, and multiplies negative ones; 1 for none.
      presence_penalty: is taken from the logits of tokens that the row has had since `inputs`.
      frequency_penalty: likewise, times how often it has had them.
      logits_processor: a function (tokens so far, logits) -> logits, or a list of them, which are
        called in turn after the penalties. The tokens are integers (rows, length), those of
        `inputs` (but no source) first, with -1 before rows that are shorter; logits (rows, vocab)
        floats, to be masked by -inf. It may have `begin(tokens)`, which returns the processor of
        one run. Processors of transformers are such functions; see also `interop.grammars`.
      banned: token ids that are never made.
      forced: tokens by their places, from 0, or from -1 for the last one backwards: an integer for
        all rows, or one for each. They are made whatever else is asked.
      draft: a small model of the same vocabulary, or "prompt", for what followed the last tokens
        where they stood before. What is drafted is read in one step; tokens are those of a call
        without it, for the same seed, up to rounding. Models whose layers cannot go back, GRUs say,
        are refused, and so is what changes logits.

    Yields:
      int64 tensors of shape (batch, 1), on the model's device; with `return_log_probs` pairs of
      them and float32 tensors of that shape, whatever the model's type. Arrays, if `inputs` are
      arrays or lists.

    Raises:
      ValueError: if batch sizes differ, the temperature is negative, lengths are out of range, or
        logits are not numbers, or none is left, which on a GPU is looked at after 1, 8, 16, ...
        tokens and at the end; if one of what is asked is out of its range.
      TypeError: if tokens or counts are not integers, the model can neither predict nor is in eval
        mode, it uses a layer with a memory twice, a part of it looks along positions and does not
        remember, or a `ShiftRight` shifts more than the tokens by one.
      LayerError: if there is no more room, an id is outside the vocabulary, or what the model
        returns is no logits.

    Source: Trax `supervised/decoding.py::autoregressive_sample_stream`, which goes on from what the
      last call left behind.
    """
    _generation.check_counts(batch_size=batch_size, eval_min_length=eval_min_length, pad_id=pad_id)
    given = {"max_length": max_length, "n_samples": n_samples}
    _generation.check_counts(**{name: n for name, n in given.items() if n is not None})
    layer = _generation.layer_of(model)
    n_rows = batch_size * (n_samples or 1)
    sampler = Sampler(temperature, n_rows, seed, top_k=top_k, top_p=top_p, min_p=min_p)
    rules = Rules(
        repetition_penalty, presence_penalty, frequency_penalty, logits_processor, banned, forced
    )
    drawing = _generation.Drawing(
        sampler,
        max_length,
        rules,
        stops=_generation.stop_sequences(stop),
        padding=_generation.ends_and_padding(layer, -1, pad_id)[1],
        n_samples=n_samples,
        log_probs=return_log_probs,
    )
    asked = inputs, batch_size, start_id, accelerate, prompt_lengths, max_length
    eval_length = eval_min_length if eval_mode else None
    run = _run(layer, *asked, eval_length, n_samples=n_samples or 1, draft=draft)
    return drawing.stream(run)


@_generation.is_sample
@_mistakes.door("autoregressive_sample", _generation.habits.OF_DECODING)
@_generation.in_kind
def autoregressive_sample(
    model: Any,
    inputs: Any = None,
    batch_size: int = 1,
    temperature: float = 1.0,
    start_id: Any = _generation.START,
    eos_id: int | Sequence[int] = _generation.END,
    max_length: int = 100,
    accelerate: bool = True,
    eval_mode: bool = False,
    eval_min_length: int = 1,
    *,
    seed: int | Sequence[int] | None = None,
    pad_id: int = _generation.PADDING,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    prompt_lengths: Any = None,
    return_log_probs: bool = False,
    n_samples: int | None = None,
    stop: Sequence[Sequence[int]] | None = None,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logits_processor: Any = None,
    banned: Sequence[int] = (),
    forced: Mapping[int, Any] | None = None,
    draft: Any = None,
) -> Any:
    """Returns sequences that a model makes, up to an end symbol.

    Args:
      model, inputs, batch_size, temperature, start_id, accelerate, eval_mode, eval_min_length,
        seed, top_k, top_p, min_p, prompt_lengths, repetition_penalty, presence_penalty,
        frequency_penalty, logits_processor, banned, forced, draft: as for
        `autoregressive_sample_stream`.
      eos_id: the end symbol, or several; it is kept, and what would follow it in a row is
        `pad_id`. -1 for none. By default the model's own, or 1.
      max_length: how many tokens at most; at least 1.
      pad_id: fills rows that have ended; by default the model's own, or 0.
      return_log_probs: returns `(tokens, log_probs)`; see `autoregressive_sample_stream`. Padding
        has 0.
      n_samples: returns so many sequences of each prompt, (batch, n_samples, output_length); see
        `autoregressive_sample_stream`.
      stop: sequences of token ids, before the first of which a row ends; they are not kept. Where
        one is met at the first token, nothing of the row is left but padding.

    Returns:
      int64 tensor of shape (batch, output_length). It is done when every row has met its end, or
      after `max_length` tokens. With `return_log_probs` a pair, the second float32 of that shape.
      Arrays, if `inputs` are arrays or lists.

    Raises:
      ValueError, TypeError, LayerError: as for `autoregressive_sample_stream`; if `max_length` is
        None or below 1.

    Example:
      >>> from trax_torch import models
      >>> model = models.TransformerLM(vocab_size=8, d_model=8, d_ff=8, n_layers=1, n_heads=2)
      >>> _ = model.init(torch.zeros(1, 1, dtype=torch.int64), rng=0)
      >>> autoregressive_sample(model, batch_size=2, eos_id=-1, max_length=5, seed=0).shape
      torch.Size([2, 5])

    Source: Trax `supervised/decoding.py::autoregressive_sample`, where what follows the end symbol
      has no meaning.
    """
    _generation.check_counts(
        batch_size=batch_size, max_length=max_length, eval_min_length=eval_min_length
    )
    _generation.check_counts(eos_id=eos_id, pad_id=pad_id)
    if n_samples is not None:
        _generation.check_counts(n_samples=n_samples)
    layer = _generation.layer_of(model)
    ends, padding = _generation.ends_and_padding(layer, eos_id, pad_id)
    n_rows = batch_size * (n_samples or 1)
    sampler = Sampler(temperature, n_rows, seed, top_k=top_k, top_p=top_p, min_p=min_p)
    rules = Rules(
        repetition_penalty, presence_penalty, frequency_penalty, logits_processor, banned, forced
    )
    drawing = _generation.Drawing(
        sampler,
        max_length,
        rules,
        ends,
        _generation.stop_sequences(stop),
        padding,
        n_samples,
        return_log_probs,
    )
    asked = inputs, batch_size, start_id, accelerate, prompt_lengths, max_length
    eval_length = eval_min_length if eval_mode else None
    run = _run(layer, *asked, eval_length, n_samples=n_samples or 1, draft=draft)
    return drawing.whole(run)


@_generation.is_beam_search
@_mistakes.door("beam_search", _generation.habits.OF_DECODING)
@_generation.in_kind
def beam_search(
    model: Any,
    inputs: Any = None,
    batch_size: int = 1,
    n_beams: int = 2,
    start_id: Any = _generation.START,
    eos_id: int | Sequence[int] = _generation.END,
    max_length: int = 100,
    length_penalty: float = 1.0,
    accelerate: bool = True,
    *,
    pad_id: int = _generation.PADDING,
    return_scores: bool = False,
    early_stopping: bool = False,
    prompt_lengths: Any = None,
    n_groups: int = 1,
    diversity_penalty: float = 0.5,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logits_processor: Any = None,
    banned: Sequence[int] = (),
    forced: Mapping[int, Any] | None = None,
    tree: BeamTree | None = None,
) -> Any:
    """Returns the likeliest sequences that a beam search finds, best first.

    At each position the `2 * n_beams` best continuations of a row are looked at (with m end
    symbols, `(1 + m) * n_beams`, where that is more). One that ends in
    `eos_id` and is among the first `n_beams` is finished; the best `n_beams` others live on. A
    finished hypothesis of n tokens, the end symbol included, scores
    sum(log p) / ((5 + n) / 6) ** length_penalty. A row is done when its worst finished score is at
    least what its best living beam can still reach; at `max_length` the living beams compete as
    they are. Rows depend on each other by rounding alone, and ties go to the lower (beam, token).

    Keys and values are never moved: the beams of a row share the memory of what they have in
    common, and each sees its own past of it.

    Args:
      model, inputs, batch_size, start_id, prompt_lengths, repetition_penalty, presence_penalty,
        frequency_penalty, logits_processor, banned, forced: as for `autoregressive_sample_stream`;
        what becomes of logits there becomes of log-probabilities here, and scores are sums of it.
      n_beams: how many hypotheses to follow, and to return; at least 1.
      eos_id: the end symbol, or several; -1 for none. By default the model's own, or 1.
      max_length: how many tokens at most; at least 1.
      length_penalty: 0 takes plain sums, more favours longer sequences. What scores are divided by
        must be between 1e-30 and 1e30, which float32 can hold.
      accelerate: as for `autoregressive_sample_stream`.
      pad_id: fills what stands after the end of a sequence; by default the model's own, or 0.
      return_scores: returns `(sequences, scores)`.
      early_stopping: a row is done as soon as `n_beams` of its hypotheses are finished, though a
        living beam might still become better.
      n_groups: beams are in so many groups of the same size, which choose one after another, each
        as a search of its own.
      diversity_penalty: by how much less a group values a token for each living beam of the groups
        before it that took it at the same step; nats. Scores do not change by it.
      tree: a `BeamTree()`, which keeps what became of all beams, and prints it.

    Returns:
      int64 tensor of shape (batch, n_beams, output_length); with `return_scores`, and a float32
      tensor of shape (batch, n_beams), nats, whatever the model's type. Where there are fewer
      sequences than beams, the missing ones score -inf and hold padding. Arrays, if `inputs` are
      arrays or lists.

    Raises:
      ValueError, TypeError, LayerError: as for `autoregressive_sample`; if `n_beams` is below 1
        or no multiple of `n_groups`; if `length_penalty` is out of its range.

    Source: Trax `supervised/decoding.py::beam_search`, which takes a batch of 1 and follows neither
      `eos_id` nor `length_penalty`; Wu et al. 2016, arXiv:1609.08144.
    """
    _generation.check_counts(batch_size=batch_size, max_length=max_length, n_beams=n_beams)
    _generation.check_counts(eos_id=eos_id, pad_id=pad_id)
    layer = _generation.layer_of(model)
    ends, padding = _generation.ends_and_padding(layer, eos_id, pad_id)
    rules = Rules(
        repetition_penalty, presence_penalty, frequency_penalty, logits_processor, banned, forced
    )
    limits = max_length, length_penalty, early_stopping, padding
    groups = n_groups, diversity_penalty
    searching = _generation.Searching(n_beams, ends, *limits, rules, *groups, tree)
    run = _run(
        layer, inputs, batch_size, start_id, accelerate, prompt_lengths, max_length, None, n_beams
    )
    sequences, scores = searching.whole(run)
    return (sequences, scores) if return_scores else sequences


def generate_text(
    model: Any, tokenizer: Any, text: str | Sequence[str], n_beams: int = 1, **settings: Any
) -> Any:
    """Returns how a model goes on from a text, or what an encoder-decoder makes of it.

    Args:
      model: as for `autoregressive_sample`.
      tokenizer: the model's, of transformers; or what maps a list of texts to a mapping with
        `input_ids`, and has `decode(ids, skip_special_tokens=True)`.
      text: one, or several, which are decoded together.
      n_beams: more than 1 takes the best of a `beam_search`.
      **settings: of `autoregressive_sample` or `beam_search`.

    Returns:
      A string; a list of them for several texts. The prompt and special tokens are left out.

    Example:
      >>> generate_text(model, tokenizer, "Once upon a time", temperature=0.0)  # doctest: +SKIP
    """
    texts = [text] if isinstance(text, str) else list(text)
    inputs = _generation.tokens_of_texts(tokenizer, texts)
    settings = {"inputs": inputs, "batch_size": len(texts), **settings}
    if n_beams > 1:
        tokens = beam_search(model, n_beams=n_beams, **settings)[:, 0]
    else:
        tokens = autoregressive_sample(model, **settings)
    made = _generation.texts_of_tokens(tokenizer, tokens)
    return made[0] if isinstance(text, str) else made


@_mistakes.door("warmup", _generation.habits.OF_DECODING)
def warmup(
    model: Any,
    batch_size: int = 1,
    max_length: int = 100,
    *,
    inputs: Any = None,
    n_beams: int = 1,
    prompt_lengths: Any = None,
    draft: Any = None,
    many_prompts: bool = False,
    folder: Any = None,
) -> None:
    """Compiles a model for later calls of this kind, which are then fast from their first token.

    A kind is the batch size, the number of beams, whether `prompt_lengths` are given, and whether a
    source has more than one token. Calls with any prompts, sources, seeds and temperatures are of
    the same kind, if they need no more places than here: one for each position of the prompt, and
    `n_beams` for each token. Where nothing can be compiled there is one warning, and later calls
    run as they are, until the next warmup; so does a model with forward hooks. It takes ten seconds
    or more.

    Args:
      model: as for `autoregressive_sample_stream`.
      batch_size: number of sequences.
      max_length: how many tokens those calls will make at most; at least 2.
      inputs: integers (batch, length) of the kind those calls will have; None for none.
      n_beams: more than 1 is for `beam_search`, or for so many `n_samples`.
      prompt_lengths: any, for calls that have some.
      draft: of those calls; its steps are compiled, too.
      many_prompts: is for `generate`; calls are of the same kind whose prompts take no more places.
      folder: keeps the program for later processes on such a CPU, which load it in a moment; it is
        run, so let nobody else write there. For models of tokens alone, and no beams.

    Raises:
      ValueError, TypeError, LayerError: as for `autoregressive_sample`; if the model has a cache of
        its own, and does not say that its steps can be compiled; if a folder cannot keep them.

    Example:
      >>> from trax_torch import models
      >>> model = models.TransformerLM(vocab_size=8, d_model=8, d_ff=8, n_layers=1, n_heads=2)
      >>> _ = model.init(torch.zeros(1, 1, dtype=torch.int64), rng=0)
      >>> warmup(model, max_length=60)                                 # doctest: +SKIP
    """
    _generation.check_counts(batch_size=batch_size, max_length=max_length, n_beams=n_beams)
    if max_length < 2:
        raise ValueError(f"The first token needs no compiled step: give more; got {max_length}.")
    fast, draft = _to_compile(model), _to_compile(draft)
    start, n_steps = _generation.START, min(2, max_length - 1)
    if folder is not None:
        if many_prompts or draft is not None:
            raise ValueError("folder= is for calls without many_prompts and draft; leave it out.")
        call = (inputs, batch_size, prompt_lengths, max_length, n_beams)
        return _generation.warm_up(fast.sublayer, fast.backend, call, n_steps, folder)
    if many_prompts:
        others = {"n_beams": n_beams - 1, "prompt_lengths": prompt_lengths, "draft": draft}
        run = _generation.refilled_run(fast, inputs, batch_size, max_length, others)
    else:
        asked = (fast, inputs, batch_size, start, True, prompt_lengths, max_length, None, n_beams)
        run = _run(*asked, draft=draft)
    with contextlib.closing(run), run:
        run.try_steps(n_steps)


def quantize(
    model: Any, *, activations: str = "float", bits: int = 8, group_size: int | None = None
) -> tl.Layer:
    """Returns a copy of a model whose `tl.Dense` layers have weights of 8 or 4 bits; for decoding.

    With 8 bits a weight becomes one of 255 multiples of its output's scale, with 4 one of 16 of its
    group's. Compare what the copy says with what the model says, on data of yours. Compile it,
    `warmup`, or floats are made anew in each step. With "float" activations it pays for models that
    no cache holds, on a CPU, with up to 8 rows (sequences times beams) and 4 n inputs to a layer.

    Files and trees of the copy hold the integers, and fit another copy alone: quantize a model of
    the same sizes first, then load. A weight that was tied to another module's is so no more.

    Args:
      model: a model with weights; it stays as it is, and so do all but plain, hookless `tl.Dense`.
      activations: "float" computes all else as ever, in the model's type. "int8" rounds what goes
        into those layers, too, each row to 127 multiples of its largest value over 63, and
        multiplies integers, to float32, in operations that this machine's C++ compiler makes, once
        (`~/.cache/trax_torch`): the fastest compiled steps. A last bit may decide how an
        activation is rounded: where tokens are nearly as likely, compiled steps may bring another.
      bits: 8, or 4, whose outputs differ far more.
      group_size: of 4 bits: how many weights of a row share a scale, 64 (if None), 128, 256, or 32,
        for "float" alone. Layers whose inputs are no multiple of it stay at 8 bits.

    Returns:
      A layer; of a plain `nn.Module`, its copy as a layer.

    Raises:
      ValueError: if a weight is not there yet, or not finite, or there is no such `tl.Dense`, or
        there is no C++ compiler for integers, or settings do not go together.

    Example:
      >>> from trax_torch import models
      >>> model = models.TransformerLM(vocab_size=8, d_model=8, d_ff=8, n_layers=1, n_heads=2)
      >>> _ = model.init(torch.zeros(1, 1, dtype=torch.int64), rng=0)
      >>> autoregressive_sample(quantize(model), temperature=0.0, eos_id=-1, max_length=3).shape
      torch.Size([1, 3])
    """
    return _generation.quantized(_generation.layer_of(model), activations, bits, group_size)


def _to_compile(model: Any) -> Any:
    """Returns a model whose steps are to be compiled."""
    if model is None or isinstance(model, str):
        return model
    layer = _generation.layer_of(model)
    fast = layer if isinstance(layer, tl.Accelerate) else tl.Accelerate(layer, backend=_BACKEND)
    _generation.steps_of(fast.sublayer).cannot = False  # whoever asks for it may have mended it
    return fast


def _run(layer: Any, *asked: Any, draft: Any = None, **more: Any) -> Any:
    """Returns the run of a model that a call asks for; see `_generation.run_for`."""
    small = draft if draft is None or isinstance(draft, str) else _generation.layer_of(draft)
    return _generation.run_for(layer, _BACKEND, *asked, **{"draft": small, **more})
