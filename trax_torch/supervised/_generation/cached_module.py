"""What a plain module offers to be decoded; `foreign` says what more it may offer."""

from typing import Protocol

import torch


class CachedModule(Protocol):
    """What a plain `nn.Module` offers to be decoded position by position.

    It is then called with the next tokens (batch, n) of sequences and remembers those before, from
    `init_cache` on. What it remembers it keeps in attributes, buffers and modules that it makes, in
    itself or in modules inside it, which decoding puts aside between tokens; so one thread at a
    time decodes from such models, and others of this package's layers alone. A module that offers
    none of this is decoded with `eval_mode=True`; or it acts on each position alone, which a model
    of such parts shows in its first call, and when weights have changed: it is tried with tokens at
    once and in pieces, as many as the call may come to, 512 at most.

    It may have a `start_id`, `eos_id` or `pad_id`, which calls take that name none, and say that it
    `takes_whole_prompts`: then no start symbol is put before `inputs`, unless a call names one.

    Example:
      >>> class Counter(torch.nn.Module):  # the next token is the number of tokens so far
      ...     seen = 0
      ...     def init_cache(self, batch_size, max_length):
      ...         self.seen = torch.zeros(batch_size or 1, dtype=torch.int64)
      ...     def reset_cache(self):
      ...         self.seen.zero_()
      ...     def reorder_cache(self, parents):
      ...         self.seen = self.seen[parents]
      ...     def forward(self, tokens):
      ...         places = self.seen[:, None] + torch.arange(tokens.shape[1])
      ...         self.seen += tokens.shape[1]
      ...         return torch.nn.functional.one_hot(places % 9, 9).float()
      >>> from trax_torch.supervised import decoding
      >>> decoding.autoregressive_sample(Counter(), temperature=0.0, max_length=4, eos_id=-1)
      tensor([[0, 1, 2, 3]])
      >>> decoding.beam_search(Counter(), n_beams=2, max_length=4, eos_id=-1)[0, 0]
      tensor([0, 1, 2, 3])
    """

    def init_cache(self, batch_size: int | None, max_length: int | None) -> None:
        """Makes an empty cache for so many rows and positions; None leaves it to the module.

        It makes new tensors and objects: those it had may be the past of another run. It is asked
        of the outermost modules that offer it, which see to those inside; so are the others.
        """

    def reset_cache(self) -> None:
        """Forgets the past."""

    def reorder_cache(self, parents: torch.Tensor) -> None:
        """Lets row r go on from the past of row `parents[r]`; integers (batch,), for beams."""
