"""Logits -> token.

A token is `argmax(log_prob + temperature * g)` with Gumbel noise g: at temperature 1 this draws
from the softmax exactly, and at 0 it is the argmax exactly. What remembers is the generators of a
`Sampler` alone; all else is a function of its arguments.
"""

import math
import numbers
import operator
from collections.abc import Callable
from typing import Any

import torch

from trax_torch import _seeds

# So many symbols mostly hold the mass that top_p asks for; to sort all is up to 15 times slower.
_N_LIKELIEST = 256, 4096
_ROUNDING = 3e-7  # of float32's logarithms of probabilities, and of their sums


class Sampler:
    """Chooses a token for each row of a batch, with random numbers of the row's own.

    The noise of a row is drawn for the whole vocabulary from the row's own generator, so that what
    a row becomes depends on the rows beside it by the rounding of its logits alone. At temperature
    0 nothing is drawn. The same seed gives other noise on another kind of device.

    Filters act on the distribution that is drawn from, softmax(log_prob / temperature), one on what
    the other left, in the order `top_k`, `top_p`, `min_p`. Each is a lowest probability: symbols
    that tie with one that is kept are kept, so that the order of the vocabulary has no say. The
    likeliest symbol is always kept.

    Args:
      temperature: 0 takes the likeliest token, 1 draws from the model's distribution, more makes it
        flatter.
      batch_size: number of rows.
      seed: an int for all rows, each of which draws by it and its place, or one for each, whatever
        its place; so 5 and [5] are other seeds. None draws one from torch's default generator.
      top_k: keeps the k likeliest symbols; more than there are keeps all.
      top_p: keeps the fewest likeliest symbols whose probabilities sum to this; 1 keeps all.
      min_p: keeps symbols at least this times as likely as the likeliest; 0 keeps all, 1 the
        likeliest alone.

    Raises:
      ValueError: if the temperature is negative or not finite, `top_k` below 1, `top_p` outside
        (0, 1], `min_p` outside [0, 1], or there are not as many seeds as rows.
      TypeError: if one is no number, or `top_k` or a seed no integer.

    Example:
      >>> sampler = Sampler(1.0, 2, seed=0, top_k=1)
      >>> sampler(torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0]]))
      tensor([1, 0])

    Source: Trax `layers/core.py::logsoftmax_sample`, which has no filters and draws the noise of
      all rows together, none above 13.8. The order of the filters is that of Hugging Face's
      transformers. top_k: Fan et al. 2018, arXiv:1805.04833; top_p: Holtzman et al. 2019,
      arXiv:1904.09751; min_p: Nguyen et al. 2024, arXiv:2407.01082.
    """

    def __init__(
        self,
        temperature: float,
        batch_size: int,
        seed: Any = None,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
    ):
        expect(
            lambda: 0 <= temperature < math.inf,
            f"A temperature is a number, 0 or more; got {temperature!r}. 0 takes the likeliest "
            f"token, 1 draws from the model's distribution.",
        )
        expect(
            lambda: top_k is None or (operator.index(top_k) >= 1 and not isinstance(top_k, bool)),
            f"top_k keeps at least 1 symbol, an integer; got {top_k!r}. Give None to keep all, or "
            f"temperature=0 to take the likeliest.",
        )
        expect(
            lambda: top_p is None or 0 < top_p <= 1,
            f"top_p is a probability above 0 and up to 1; got {top_p!r}. Give None to keep all.",
        )
        expect(
            lambda: min_p is None or 0 <= min_p <= 1,
            f"min_p is a share of the likeliest symbol's probability, 0 to 1; got {min_p!r}. Give "
            f"None to keep all.",
        )
        self.temperature = float(temperature)
        self.batch_size = batch_size
        self._filters = (top_k, None if top_p == 1 else top_p, min_p or None)
        self._keys = _keys_of_rows(seed, batch_size, draws=self.temperature > 0)
        self._generators: list[torch.Generator] = []

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Returns a token for each row.

        Args:
          logits: float tensor of shape (batch, vocab), before or after a log-softmax; `-inf` masks
            a symbol.

        Returns:
          int64 tensor of shape (batch,). Ties go to the lower token.

        Raises:
          ValueError: if the shape is another; if a row holds NaN or +inf, or masks every symbol.
        """
        check_logits(logits)
        return self.choose(logits, self.noise(logits.shape[1], logits.device))

    def noise(self, n_symbols: int, device: torch.device | str = "cpu") -> torch.Tensor | None:
        """Returns the next Gumbel noise, float32 (batch, n_symbols); None at temperature 0."""
        if not self.temperature:
            return None
        bits = torch.empty(self.batch_size, n_symbols, dtype=torch.int32, device=device)
        for row in range(self.batch_size):
            self._draw(row, bits[row])
        return gumbel(bits)

    def noise_of(self, row: int, n_symbols: int, device: torch.device | str) -> torch.Tensor:
        """Returns a row's next Gumbel noise, float32 (n_symbols,); for a temperature above 0."""
        bits = torch.empty(n_symbols, dtype=torch.int32, device=device)
        self._draw(row, bits)
        return gumbel(bits)

    def _draw(self, row: int, bits: torch.Tensor) -> None:
        """Fills bits (n_symbols,) from the row's generator, as for each of its tokens in turn."""
        if not self._generators:
            self._generators = [_seeds.generator(*key, device=bits.device) for key in self._keys]
        bits.random_(generator=self._generators[row])

    def choose(self, logits: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """Returns what a call returns, for given noise; it looks at no value, so it compiles."""
        if logits.dim() != 2 or logits.shape[0] != self.batch_size:
            raise ValueError(
                f"A sampler for {self.batch_size} rows takes logits of shape ({self.batch_size}, "
                f"vocab); got {tuple(logits.shape)}."
            )
        return self.choose_any(logits, noise)

    def choose_any(self, logits: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """The same for any number of rows, each with noise of its own."""
        if noise is None:
            return logits.argmax(dim=-1)
        logits = logits.float()
        # The largest is 0 then, where float32 is finest; as good as a log-softmax, and cheaper.
        logits = logits - logits.amax(dim=-1, keepdim=True)
        noisy = torch.add(logits, noise, alpha=self.temperature)
        if any(f is not None for f in self._filters):
            kept = logits >= lowest_kept(logits, self.temperature, *self._filters)
            noisy = torch.where(kept, noisy, -torch.inf)
        return noisy.argmax(dim=-1)


def expect(is_fine: Callable[[], Any], message: str) -> None:
    """Refuses a setting.

    Raises:
      ValueError: with the message, if `is_fine()` is false.
      TypeError: with the message, if that cannot be asked of a setting of its type.
    """
    try:
        fine = bool(is_fine())
    except (TypeError, RuntimeError):  # torch's tensors raise the latter
        raise TypeError(message) from None
    if not fine:
        raise ValueError(message)


def lowest_kept(
    logits: torch.Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
) -> torch.Tensor:
    """Returns the lowest logit that the filters keep in each row; arguments are `Sampler`'s.

    Args:
      logits: float32 tensor of shape (batch, vocab) whose largest in each row is 0.
      temperature: above 0.

    Returns:
      float32 tensor of shape (batch, 1), at most 0.
    """
    lowest = torch.full_like(logits[:, :1], -torch.inf)
    likeliest = lowest
    if top_k is not None:
        likeliest = logits.topk(min(top_k, logits.shape[1])).values
        lowest = likeliest[:, -1:]
    if top_p is not None:
        mass = (logits / temperature).exp()
        if top_k is not None:
            mass = torch.where(logits >= lowest, mass, 0.0)
        wanted = top_p * mass.sum(dim=-1, keepdim=True)
        if top_k is None:
            likeliest = _enough(logits, temperature, wanted)
        mass = (likeliest / temperature).exp().cumsum(dim=-1)
        # Symbols that tie with the last, or rounding, may leave the sum below what is wanted: what
        # misses it by rounding alone is enough.
        n_below = (
            (mass < wanted * (1 - _ROUNDING))
            .sum(dim=-1, keepdim=True)
            .clamp(max=likeliest.shape[1] - 1)
        )
        lowest = likeliest.gather(-1, n_below)
    if min_p is not None:
        lowest = lowest.clamp(min=temperature * math.log(min_p))
    return lowest


def _enough(logits: torch.Tensor, temperature: float, wanted: torch.Tensor) -> torch.Tensor:
    """Returns the highest logits in order, so many that their exp(logit / temperature) suffice."""
    # To look whether some suffice is to wait for the device, so only where that is free.
    if logits.device.type == "cpu" and not torch.compiler.is_compiling():
        for n in _N_LIKELIEST:
            if n < logits.shape[1]:
                likeliest = logits.topk(n).values
                mass = (likeliest / temperature).exp().sum(dim=-1, keepdim=True)
                if bool((mass >= wanted).all()):
                    return likeliest
    return logits.sort(dim=-1, descending=True).values


def gumbel(bits: torch.Tensor) -> torch.Tensor:
    """Maps evenly drawn integers of int32, 0 to 2**31 - 1, to float32 Gumbel noise, -2.9 to 22.2.

    The high side is what decides, and needs resolution: torch's float32 uniforms are multiples of
    2**-24 and are 0, whose noise would be infinite, once in every 330 tokens of a vocabulary of
    50,257. And on a CPU torch's exponentials take three times as long.
    """
    negated = bits.float().mul_(-(2.0**-31)).clamp_(2.0**-24 - 1, -(2.0**-32))
    return negated.log1p_().neg_().log_().neg_()


def log_probs_of(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Returns the log-probabilities of tokens in the model's own distribution, in nats.

    That is at temperature 1 and without filters, whatever the tokens were chosen by.

    Args:
      logits: float tensor of shape (..., vocab), before or after a log-softmax.
      tokens: int64 tensor of shape (...).

    Returns:
      float32 tensor of the tokens' shape; -inf for a masked symbol.

    Example:
      >>> logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
      >>> log_probs_of(logits, torch.tensor([1])).exp()
      tensor([0.2500])
    """
    logits = logits.float()
    return logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(dim=-1)


def doubts_in(logits: torch.Tensor) -> torch.Tensor:
    """Returns 0 for each row of logits (..., vocab), and NaN where they are no numbers.

    They are not where one is NaN or +inf, or every symbol is masked. Nothing is waited for.
    """
    best = logits.amax(dim=-1)  # NaN is the largest where there is one
    return best - best


def check_logits(logits: torch.Tensor) -> None:
    """Refuses logits (batch, vocab) of which a row holds NaN or +inf, or masks every symbol.

    Raises:
      ValueError: with the first such row.
    """
    bad = doubts_in(logits).isnan()
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        best = float(logits[row].amax())
        came = {-math.inf: "-inf everywhere", math.inf: "+inf"}.get(best, "NaN")
        raise ValueError(
            f"A token is chosen by logits that are numbers, or -inf for masked symbols, but not "
            f"all; those of row {row} hold {came}. Look for the first layer whose output is not "
            f"finite, or at the mask."
        )


def _keys_of_rows(seed: Any, batch_size: int, draws: bool) -> list[tuple[Any, ...]]:
    """Returns what keys the generator of each row: a seed of its own, or one for all and the row.

    Raises:
      TypeError: if a seed is no integer.
      ValueError: if there are not as many seeds as rows.
    """
    if seed is None:
        seed = _seeds.ambient_seed() if draws else 0
    given = seed.tolist() if hasattr(seed, "tolist") else seed
    if isinstance(given, numbers.Integral):
        return [key_of(int(given), row) for row in range(batch_size)]
    try:
        seeds = [operator.index(s) for s in given]
    except TypeError:
        raise TypeError(
            f"A seed is an integer; got {seed!r}. Give one for all rows, or a list of one a row."
        ) from None
    if len(seeds) != batch_size:
        raise ValueError(f"Give one seed, or one a row; got {len(seeds)} for {batch_size} rows.")
    return [key_of(s) for s in seeds]


def key_of(seed: int, place: int | None = None) -> tuple[Any, ...]:
    """Returns what keys a row's generator: a seed of its own, or one for all rows and its place."""
    return (seed, "sample") if place is None else (seed, "sample", place)
