"""Models of transformers as modules that decoding takes, as `decoding.CachedModule` says."""

import inspect
import warnings
from typing import Any

import torch
from torch import nn

from trax_torch import layers as tl
from trax_torch.interop.huggingface import caches
from trax_torch.interop.huggingface.library import is_model

# Settings of a generation_config by which `generate` would choose other tokens, and what says none.
_OTHER_RULES = {
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "exponential_decay_length_penalty": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": 1.0,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "repetition_penalty": 1.0,
    "sequence_bias": None,
    "suppress_tokens": None,
}


class Holder:
    """An adapter on the model that it is of: compiled steps last as long as the model.

    Copies and files of the model have none.
    """

    def __init__(self, adapter: Any = None):
        self.adapter = adapter

    def __reduce__(self) -> Any:
        return Holder, ()

    def __deepcopy__(self, memo: Any) -> "Holder":
        return Holder()


def as_layer(model: Any) -> tl.Layer:
    """Returns a model of transformers as a layer that `supervised.decoding` takes.

    Decoding makes this of such a model by itself. A causal LM maps tokens (batch, length) to logits
    (batch, length, vocab) that tell of the token after each; a model with an encoder maps (source,
    tokens) to them, where `pad_token_id` in a source is padding.

    Calls of decoding that name no `start_id`, `eos_id` and `pad_id` take those of the model's
    `generation_config`: its `decoder_start_token_id`, or `bos_token_id` where a causal LM is given
    no inputs; a causal LM's inputs are the whole prompt. Nothing else of it is followed: there is
    one warning where `generate` would choose tokens by more than probabilities.

    Keys and values are in buffers of a fixed length (`StaticCache`) where a call has a
    `max_length`. Steps are compiled as those of this package's layers are, see `decoding.warmup`.

    Args:
      model: a causal LM or an encoder-decoder of transformers 5, whose layers remember keys and
        values alone.

    Raises:
      TypeError: if it is none.

    Example:
      >>> from transformers import AutoModelForCausalLM                # doctest: +SKIP
      >>> model = AutoModelForCausalLM.from_pretrained("gpt2")         # doctest: +SKIP
      >>> decoding.autoregressive_sample(model, [[15496, 11]])         # doctest: +SKIP
    """
    if not is_model(model) or not model.can_generate():
        raise TypeError(
            f"A causal LM or an encoder-decoder of transformers is needed, with a head that gives "
            f"logits; got {type(model).__name__}. Load it with AutoModelForCausalLM or "
            f"AutoModelForSeq2SeqLM."
        )
    held = vars(model).get("_trax_torch")
    if held is None or held.adapter is None:
        kind = EncoderDecoder if model.config.is_encoder_decoder else CausalLM
        held = Holder(kind(model))
        object.__setattr__(model, "_trax_torch", held)
        _warn_of_other_rules(model)
    return tl.as_layer(held.adapter, name=type(model).__name__)


def _warn_of_other_rules(model: Any) -> None:
    settings = model.generation_config
    found = {name: getattr(settings, name, None) for name in _OTHER_RULES}
    found = {k: v for k, v in found.items() if v is not None and v != _OTHER_RULES[k]}
    if found:
        told = ", ".join(f"{name}={value!r}" for name, value in found.items())
        warnings.warn(
            f"The generation_config of {type(model).__name__} has {told}, which decoding does not "
            f"follow: generate would choose other tokens. Set them to None to say that this is "
            f"known.",
            stacklevel=4,
        )


class _Adapter(nn.Module):
    """What models with and without an encoder have in common.

    Args:
      model: of transformers.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        self.training = model.training
        takes = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in takes
        self._takes_logits_to_keep = "logits_to_keep" in takes
        self._cache_name = "cache" if "cache" in takes else "past_key_values"
        self._n_learned = _n_learned_positions(model)
        self._cache: Any = None
        self._max_length: int | None = None
        self._is_prompt = False
        self._lengths: torch.Tensor | None = None

    @property
    def eos_id(self) -> Any:
        """The model's end symbols, or -1."""
        found = self.model.generation_config.eos_token_id
        return -1 if found is None else _plain(found)

    @property
    def pad_id(self) -> int:
        """What the model pads with: its padding, else its end symbol, else 0."""
        found = self.model.generation_config.pad_token_id
        if found is not None:
            return int(found)
        ends = self.eos_id
        return max(0, int(ends[0] if isinstance(ends, list) else ends))

    @property
    def n_places(self) -> int | None:
        """How many positions the model has learned; None where it computes them."""
        return self._n_learned

    @property
    def can_compile(self) -> bool:
        """Whether transformers says that a step is one program."""
        return bool(getattr(self.model, "_can_compile_fullgraph", False))

    def init_cache(self, batch_size: int | None, max_length: int | None) -> None:
        """Makes an empty cache."""
        # Models that are not made for buffers may take what is not filled yet for a token.
        self._max_length = max_length if self.can_compile else None
        self._cache = caches.new_cache(self.model.config, self._max_length)
        self._is_prompt, self._lengths = False, None

    def begin_prompt(self, lengths: torch.Tensor | None) -> None:
        """Says that the next call brings prompts, padded on the right, of these lengths."""
        self._is_prompt, self._lengths = True, lengths

    def _ask(self, **inputs: Any) -> torch.Tensor:
        """Returns logits; where a prompt is read, those of the last position alone."""
        if self._is_prompt:
            self._is_prompt = False
            if self._takes_logits_to_keep:
                inputs["logits_to_keep"] = 1
        inputs[self._cache_name] = self._cache
        logits: torch.Tensor = self.model(use_cache=True, **inputs).logits
        return logits


class CausalLM(_Adapter):
    """A causal LM: tokens in, logits of the token after each out."""

    takes_whole_prompts = True

    def __init__(self, model: Any):
        super().__init__(model)
        self._pads: torch.Tensor | None = None

    @property
    def start_id(self) -> int:
        """What begins a sequence without a prompt."""
        found = self.model.generation_config.bos_token_id
        if found is None:
            raise ValueError(
                f"{type(self.model).__name__} has no bos_token_id to begin with. Give inputs, or "
                f"start_id."
            )
        return int(found)

    def init_cache(self, batch_size: int | None, max_length: int | None) -> None:
        """Makes an empty cache."""
        super().init_cache(batch_size, max_length)
        self._pads = None

    def reset_cache(self) -> None:
        """Forgets the past."""
        self._cache.reset()
        self._pads = None

    def reorder_cache(self, parents: torch.Tensor) -> None:
        """Lets row r go on from the past of row `parents[r]`."""
        if _are_in_order(parents):
            return
        caches.reorder(self._cache.layers, parents)
        if self._pads is not None:
            self._pads.copy_(self._pads[parents])

    def begin_prompt(self, lengths: torch.Tensor | None) -> None:
        """Says that the next call brings prompts, padded on the right, of these lengths."""
        if lengths is not None and not self._takes_positions:
            raise ValueError(
                f"prompt_lengths needs a model that takes position_ids; {type(self.model).__name__}"
                f" counts for itself. Decode rows with prompts of one length together."
            )
        super().begin_prompt(lengths)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns logits (batch, n, vocab); of a prompt, (batch, 1, vocab)."""
        if self._cache is None:
            logits: torch.Tensor = self.model(input_ids=tokens, use_cache=False).logits
            return logits
        n = tokens.shape[1]
        if self._lengths is not None:  # transformers pads on the left
            places = torch.arange(n, device=tokens.device)
            self._pads, self._lengths = n - self._lengths, None
            tokens = tokens.gather(1, (places - self._pads[:, None]) % n)
        inputs: dict[str, Any] = {"input_ids": tokens}
        if self._takes_positions and (self._pads is not None or self._n_learned is not None):
            positions = torch.arange(n, device=tokens.device) + self._cache.get_seq_length()
            positions = positions[None].expand(len(tokens), -1)
            if self._pads is not None:
                inputs["attention_mask"] = self._mask(n)
                positions = (positions - self._pads[:, None]).clamp(min=0)
            # A row that has ended may be asked for more.
            last = None if self._n_learned is None else self._n_learned - 1
            inputs["position_ids"] = positions if last is None else positions.clamp(max=last)
        return self._ask(**inputs)

    def _mask(self, n: int) -> torch.Tensor:
        """Returns which positions are no padding, as many as there are or will be; integers."""
        assert self._pads is not None
        length = self._max_length
        if length is None:
            length = self._cache.get_seq_length() + n
        places = torch.arange(length, device=self._pads.device)
        return (places >= self._pads[:, None]).long()


class EncoderDecoder(_Adapter):
    """An encoder-decoder: (source, tokens) in, logits of the token after each out."""

    def __init__(self, model: Any):
        super().__init__(model)
        self._forget_source()

    def _forget_source(self) -> None:
        self._encoded: torch.Tensor | None = None
        self._source_mask: torch.Tensor | None = None
        self._which: torch.Tensor | None = None  # which source a row has

    @property
    def start_id(self) -> Any:
        """What the decoder begins with."""
        settings = self.model.generation_config
        found = settings.decoder_start_token_id
        found = settings.bos_token_id if found is None else found
        if found is None:
            raise ValueError(
                f"{type(self.model).__name__} has neither a decoder_start_token_id nor a "
                f"bos_token_id. Give start_id."
            )
        return found

    def init_cache(self, batch_size: int | None, max_length: int | None) -> None:
        """Makes an empty cache."""
        super().init_cache(batch_size, max_length)
        self._forget_source()

    def reset_cache(self) -> None:
        """Forgets the past, and the source."""
        self._cache.reset()
        self._forget_source()

    def reorder_cache(self, parents: torch.Tensor) -> None:
        """Lets row r go on from the past of row `parents[r]`."""
        if _are_in_order(parents):
            return
        tokens, source = caches.layers_of(self._cache)
        caches.reorder(tokens, parents)
        which = self._which
        if which is None or (which.device.type == "cpu" and torch.equal(which[parents], which)):
            return  # beams of a row have its source in common
        caches.reorder(source, parents)
        for kept in (self._encoded, self._source_mask, which):
            if kept is not None:
                kept.copy_(kept[parents])

    def forward(self, source: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Returns logits (batch, n, vocab)."""
        if self._cache is None:
            logits: torch.Tensor = self.model(
                input_ids=source,
                attention_mask=self._mask_of(source),
                decoder_input_ids=tokens,
                use_cache=False,
            ).logits
            return logits
        if self._encoded is None:
            rows, self._which = torch.unique(source, dim=0, return_inverse=True)
            encoder, mask = self.model.get_encoder(), self._mask_of(rows)
            encoded = encoder(input_ids=rows, attention_mask=mask, return_dict=True)
            self._encoded = encoded.last_hidden_state[self._which]
            self._source_mask = None if mask is None else mask[self._which]
        return self._ask(
            encoder_outputs=(self._encoded,),
            attention_mask=self._source_mask,
            decoder_input_ids=tokens,
        )

    def _mask_of(self, source: torch.Tensor) -> torch.Tensor | None:
        """Returns which tokens of a source are no padding, integers; None for all."""
        padding = self.model.generation_config.pad_token_id
        mask = None if padding is None else source != padding
        return None if mask is None or bool(mask.all()) else mask.long()


def _plain(ids: Any) -> Any:
    """Returns a symbol as an int, and several as a list of them."""
    return [int(i) for i in ids] if isinstance(ids, (list, tuple)) else int(ids)


def _are_in_order(parents: torch.Tensor) -> bool:
    """Tells whether each row goes on from its own past; where to look is no waiting."""
    return parents.device.type == "cpu" and torch.equal(parents, torch.arange(len(parents)))


def _n_learned_positions(model: Any) -> int | None:
    """Returns how many positions a model has vectors for; None where it computes them."""
    config = model.config.get_text_config(decoder=True)
    n: int | None = getattr(config, "max_position_embeddings", None)
    learned = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and ("pos" in name or name.endswith("wpe"))
    ]
    # Some have vectors before the first one.
    return n if n and any(n <= m.num_embeddings <= n + 2 for m in learned) else None
