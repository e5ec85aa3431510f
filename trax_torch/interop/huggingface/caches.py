"""Keys and values of transformers' models: in buffers that are made once and written in place."""

from typing import Any

import torch

from trax_torch.interop.huggingface.library import transformers


def new_cache(config: Any, max_length: int | None) -> Any:
    """Returns an empty cache for a model.

    A layer that sees a window alone has all positions in it, too: its mask hides those before the
    window, and nothing is moved from step to step.

    Args:
      config: the model's.
      max_length: how many positions there is room for; None for a cache that grows, whose steps
        cannot be compiled.

    Raises:
      TypeError: if the model keeps something else than keys and values.
    """
    library = transformers()
    decoder = config.get_text_config(decoder=True)
    try:
        if max_length is None:
            cache = library.DynamicCache(config=decoder)
        else:
            cache = library.StaticCache(config=decoder, max_cache_len=max_length)
            cache.layers = [_with_all_positions(layer, max_length) for layer in cache.layers]
    except (KeyError, AttributeError, ValueError) as error:
        raise _refusal(config, repr(error)) from error
    odd = {type(layer).__name__ for layer in cache.layers if not _has_keys_alone(layer)}
    if odd:
        raise _refusal(config, ", ".join(sorted(odd)))
    if not config.is_encoder_decoder:
        return cache
    return library.EncoderDecoderCache(cache, library.DynamicCache(config=decoder))


def reorder(layers: list[Any], parents: torch.Tensor) -> None:
    """Lets row r go on from the past of row `parents[r]`; in place, for compiled steps."""
    spare = torch.empty(0)  # memory that is asked for once, where layers are alike
    for layer in layers:
        if layer.keys is None:
            continue
        end = layer.keys.shape[-2]
        if layer.keys.device.type == "cpu":  # elsewhere to look is to wait
            end = min(end, int(layer.get_seq_length()))
        for tensor in (layer.keys, layer.values):
            filled = tensor[..., :end, :]
            if (spare.shape, spare.dtype, spare.device) != (
                filled.shape,
                filled.dtype,
                filled.device,
            ):
                spare = torch.empty_like(filled, memory_format=torch.contiguous_format)
            filled.copy_(torch.index_select(filled, 0, parents, out=spare))


def layers_of(cache: Any) -> tuple[list[Any], list[Any]]:
    """Returns the layers of a cache: of the tokens so far, and of a source."""
    if hasattr(cache, "self_attention_cache"):
        return cache.self_attention_cache.layers, cache.cross_attention_cache.layers
    return cache.layers, []


def _with_all_positions(layer: Any, max_length: int) -> Any:
    room = transformers().cache_utils
    is_window = type(layer) is room.StaticSlidingWindowLayer
    return room.StaticLayer(max_cache_len=max_length) if is_window else layer


def _has_keys_alone(layer: Any) -> bool:
    room = transformers().cache_utils
    known = (room.StaticLayer, room.DynamicLayer, room.DynamicSlidingWindowLayer)
    return type(layer) in known


def _refusal(config: Any, what: str) -> TypeError:
    return TypeError(
        f"Decoding remembers keys and values of attention; {config.model_type} needs {what}. Use "
        f"its own generate."
    )
