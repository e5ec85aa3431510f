"""What other libraries call the arguments of decoding, and what to write here."""

_LENGTH = "max_length=20, which counts new tokens alone"
_PROMPT = "inputs=tokens, integers of shape (batch, length), or the second argument"

# By argument names of other libraries.
OF_DECODING = {
    **dict.fromkeys(("max_new_tokens", "max_tokens", "max_len", "n_tokens"), _LENGTH),
    **dict.fromkeys(("input_ids", "prompt", "prompts", "prefix", "tokens", "context"), _PROMPT),
    **dict.fromkeys(("num_beams", "beam_size", "beam_width"), "n_beams=2, of beam_search"),
    **dict.fromkeys(("do_sample", "greedy"), "temperature=1.0 to draw, temperature=0.0 for greedy"),
    **dict.fromkeys(("eos_token_id", "eos", "end_id"), "eos_id=1"),
    **dict.fromkeys(("pad_token_id", "pad"), "pad_id=0"),
    **dict.fromkeys(("bos_token_id", "decoder_start_token_id", "bos_id"), "start_id=0"),
    **dict.fromkeys(("attention_mask", "mask", "lengths"), "prompt_lengths=mask.sum(1)"),
    **dict.fromkeys(("generator", "rng", "random_seed"), "seed=0"),
    **dict.fromkeys(("num_return_sequences", "n", "num_samples"), "n_samples=4"),
    **dict.fromkeys(("stop_sequences", "stop_token_ids", "stop_words"), "stop=[[5, 6], [7]]"),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "banned_tokens"), "banned=[3, 4]"),
    **dict.fromkeys(("forced_tokens", "forced_bos_token_id"), "forced={0: 5}, by places"),
    **dict.fromkeys(("logits_processors", "logit_bias"), "logits_processor=f, of (tokens, logits)"),
    **dict.fromkeys(("num_beam_groups", "beam_groups"), "n_groups=2, of beam_search"),
    **dict.fromkeys(("assistant_model", "draft_model", "speculative_model"), "draft=small_model"),
    **dict.fromkeys(("prompt_lookup_num_tokens", "prompt_lookup"), "draft='prompt'"),
    **dict.fromkeys(("use_cache", "mode"), "eval_mode=True for a model that cannot predict"),
}
