"""Decoding by hand: one sequence, one token at a time, in eval mode, with Python's own numbers."""

import functools
import math

import torch

from trax_torch.supervised._generation.sampling import Sampler


def logits_after(model, tokens):
    """What a model in eval mode says of the token after these, a list of numbers."""
    return list(_logits_after(model, tuple(tokens)))


@functools.lru_cache(10_000)
def _logits_after(model, tokens):
    mode = model.mode
    model.eval()
    try:
        with torch.no_grad():
            # Its output at a place tells of the token there.
            return tuple(model(torch.tensor([[*tokens, 0]]))[0, -1].tolist())
    finally:
        model.train(mode == "train")


def ruled(logits, prompt, made, row, rules):
    """The logits that a token is chosen by, as the documentation says it."""
    logits = list(logits)
    own = list(logits)
    p = rules.get("repetition_penalty", 1.0)
    for token in set(prompt + made):
        logits[token] = logits[token] / p if logits[token] > 0 else logits[token] * p
    for token in set(made):
        logits[token] -= rules.get("presence_penalty", 0.0)
        logits[token] -= rules.get("frequency_penalty", 0.0) * made.count(token)
    for token in rules.get("banned", ()):
        logits[token] = -math.inf
    if len(made) in rules.get("forced", {}):
        token = rules["forced"][len(made)]
        token = token[row] if isinstance(token, list) else token
        logits = [-math.inf] * len(logits)
        logits[token] = own[token]
    return logits


def sampled(model, prompts, n_tokens, temperature=0.0, seed=None, **rules):
    """Tokens of rows, a list of lists, by rules of `autoregressive_sample`."""
    sampler = Sampler(temperature, len(prompts), seed)
    rows = [[] for _ in prompts]
    for _ in range(n_tokens):
        noise = None
        for i, (prompt, made) in enumerate(zip(prompts, rows, strict=True)):
            logits = ruled(logits_after(model, prompt + made), prompt, made, i, rules)
            if temperature:
                noise = sampler.noise(len(logits)) if noise is None else noise
                logits = [x + temperature * float(g) for x, g in zip(logits, noise[i], strict=True)]
            made.append(max(range(len(logits)), key=logits.__getitem__))
    return rows


def cut(row, stops, ends=()):
    """A row up to its end symbol, or without the first stop sequence, the longest one there."""
    for n in range(1, len(row) + 1):
        fitting = [len(s) for s in stops if len(s) <= n and row[n - len(s) : n] == list(s)]
        if fitting:
            return row[: n - max(fitting)]
        if row[n - 1] in ends:
            return row[:n]
    return row
