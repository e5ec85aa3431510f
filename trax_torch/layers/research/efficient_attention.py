"""Attention for long sequences, the Reformer's: in chunks, or among vectors that hash alike.

Each head has weights of its own, in one tensor for all heads. Kitaev et al. 2020, arXiv:2001.04451.
"""

from typing import Any

import torch

from trax_torch.layers import _efficient, _predict
from trax_torch.layers._efficient import HeadByHead, by_head, joined
from trax_torch.layers._reversible import Decisions
from trax_torch.layers.attention import attend_to_past, attend_where_shown
from trax_torch.layers.base import Mode

__all__ = ["EncDecAttention", "LSHSelfAttention", "SelfAttention"]

_ALL = slice(None)
_ALIKE = 2**40  # what a bucket in common is worth, in positions
_NEVER = 2**40  # a position that is later than any


class SelfAttention(HeadByHead):
    """Attends from each position to all, to those before, or to those in chunks beside it.

    It maps vectors (batch, length, d_model), and a mask (batch, length) of what is content if
    `masked`, to vectors of the same shape. A position that sees nothing attends evenly.

    In predict mode it goes on from the positions of earlier calls, which may have any length.

    Args:
      n_heads: number of heads.
      d_qk: size of a head's queries and keys.
      d_v: size of a head's values.
      share_qk: makes keys of the queries, each divided by the root of its mean square. A position
        attends to itself only where it sees nothing else.
      causal: hides later positions.
      masked: takes a mask, too: True, or not 0, where a position may be seen.
      chunk_len: cuts the sequence into chunks; None attends to all of it. The last chunk may be
        shorter.
      n_chunks_before: how many chunks before its own a position sees; before the first one comes
        the last.
      n_chunks_after: how many after.
      bias: adds biases to queries, keys and values.
      mode: `'train'`, `'eval'` or `'predict'`.
      predict_mem_len: how many positions predict mode remembers; None remembers all that can be
        seen.
      predict_drop_len: how many it forgets at once when it has remembered so many; by default all
        of them, or a chunk.
      attention_dropout: the probability that an attention weight is dropped while training; the
        same are dropped in all rows, heads and chunks.
      output_dropout: likewise for a feature of the output, in all rows and positions.
      n_parallel_heads: how many heads of rows are computed at once: None for all. It divides
        `n_heads`, or is a multiple of it. What is computed in parts is not kept for the backward
        pass, but computed again there. Results are the same.
      use_python_loop, use_reference_code: Trax's, and have no effect here.

    Weights in Trax's order: `(w_q, w_k, w_v, w_o)`, of shapes (n_heads, d_model, d_qk) twice,
    (n_heads, d_model, d_v), (n_heads, d_v, d_model); with `bias`, `b_q, b_k, b_v` after them;
    without `w_k` and `b_k` if `share_qk`.

    Raises:
      ValueError: if a number is out of range, or predict mode is asked of attention to later
        positions.

    Example:
      >>> layer = SelfAttention(2, d_qk=4, d_v=4, causal=True, chunk_len=8, n_chunks_before=1)
      >>> x = torch.randn(1, 20, 6)
      >>> _ = layer.init(x)
      >>> layer(x).shape
      torch.Size([1, 20, 6])

    Source: Trax `layers/research/efficient_attention.py::SelfAttention`. There a mask does not hide
      the first two positions, lengths are multiples of `chunk_len`, and predict mode must be told
      what to remember; with `chunk_len`, it may attend to more than chunks show.
    """

    def __init__(
        self,
        n_heads: int = 2,
        d_qk: int = 64,
        d_v: int = 64,
        share_qk: bool = False,
        causal: bool = False,
        masked: bool = False,
        chunk_len: int | None = None,
        n_chunks_before: int = 0,
        n_chunks_after: int = 0,
        bias: bool = False,
        mode: Mode = "train",
        predict_mem_len: int | None = None,
        predict_drop_len: int | None = None,
        attention_dropout: float = 0.0,
        output_dropout: float = 0.0,
        n_parallel_heads: int | None = None,
        use_python_loop: bool = False,
        use_reference_code: bool = False,
    ):
        super().__init__(
            2 if masked else 1,
            _efficient.names_of(share_qk, bias),
            n_heads,
            d_qk,
            d_v,
            masked,
            attention_dropout,
            output_dropout,
            n_parallel_heads,
        )
        _efficient.check_chunks(chunk_len, n_chunks_before, n_chunks_after)
        _efficient.check_mode(mode, causal, n_chunks_after, self._name)
        self._share_qk, self._causal = share_qk, causal
        self._chunk_len = chunk_len
        self._before, self._after = n_chunks_before, n_chunks_after
        self._sight = _efficient.Sight(
            predict_mem_len, predict_drop_len, chunk_len, n_chunks_before
        )
        self._set_mode(mode)

    def init_cache(self, batch_size: int | None = None, max_length: int | None = None) -> None:
        """Enters predict mode with nothing remembered."""
        if not self._causal or self._after:  # is refused when it is called
            return super().init_cache(batch_size, max_length)
        is_plain = self._sight.is_whole and not self._share_qk and not self._masked
        kind = _predict.KVCache if is_plain else _predict.MarkedCache
        self._memory = kind(max_length, batch_size)

    def forward(self, x: Any) -> torch.Tensor:
        """Maps (batch, length, d_model) to the same shape."""
        x, mask = self.inputs(x)
        own = self.own_weights()
        if self._memory is not None:
            return self._gone_on(x, mask, own)
        n = m = x.shape[1]
        if self._chunk_len is not None:
            n, m = self._chunk_len, self._chunk_len * (self._before + 1 + self._after)
        keep = self.keep(n, m, own["w_q"])

        def some(rows: slice, heads: slice) -> torch.Tensor:
            q, k, v = self._projected(x[rows], own, heads)
            shown = None if mask is None else mask[rows]
            return joined(self._attended(q, k, v, shown, keep), own["w_o"][heads])

        return self.finished(
            _efficient.in_groups(some, x.shape[0], self._n_heads, self._n_parallel_heads)
        )

    def _projected(
        self, x: torch.Tensor, own: dict[str, torch.Tensor], heads: slice
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns queries, keys and values, each (batch, heads, length, d)."""
        q, v = by_head(x, own, "q", heads), by_head(x, own, "v", heads)
        k = _efficient.length_normalized(q) if self._share_qk else by_head(x, own, "k", heads)
        return q, k, v

    def _attended(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        keep: torch.Tensor | None,
    ) -> torch.Tensor:
        """Returns what queries find in eval and train mode."""
        if self._chunk_len is None and keep is None and not self._share_qk:
            return attend_where_shown(q, k, v, mask, self._causal)  # by fast kernels
        length = q.shape[-2]
        found, _ = _efficient.attend_in_chunks(
            q,
            k,
            v,
            torch.arange(length, device=q.device),
            None if mask is None else mask[:, None],
            chunk_len=self._chunk_len or max(1, length),
            n_before=self._before,
            n_after=self._after,
            causal=self._causal,
            exclude_self=self._share_qk,
            keep=keep,
        )
        return found

    def _gone_on(
        self, x: torch.Tensor, mask: torch.Tensor | None, own: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Returns what new positions find among all that are remembered."""
        _efficient.check_mode("predict", self._causal, self._after, self._name)
        memory: Any = self._memory
        q, k, v = self._projected(x, own, _ALL)
        if type(memory) is _predict.KVCache:
            return joined(attend_to_past(memory, q, k, v), own["w_o"])
        places = memory.next_positions(q.shape[-2], q.device)[:, None]
        marks = _marks(places, mask).expand(q.shape[0], 1, -1, 1)
        keys, values, seen, visible = memory.append(k, v, marks)
        hidden, itself = self._sight.hidden(places, seen[..., 0], visible)
        found, _ = _efficient.attend(q, keys, values, hidden, itself if self._share_qk else None)
        return joined(found, own["w_o"])


class LSHSelfAttention(HeadByHead):
    """Attends from each position to those whose vectors hash alike: long sequences cost n log n.

    Keys are the queries, each divided by the root of its mean square. In each of `n_hashes` rounds,
    random rotations put vectors of like direction into one bucket; positions are sorted by bucket
    and cut into chunks, and a position sees its own chunk and those beside it. It attends to itself
    only where it sees nothing else.

    It maps vectors (batch, length, d_model), and a mask (batch, length) of what is content if
    `masked`, to vectors of the same shape. Lengths up to `chunk_len` are attended to whole.

    While training, each call draws other rotations; a backward pass that computes again uses those,
    and the buckets that were found. In other modes rotations are always the same, keyed by the
    layer's state, so that evals can be repeated.

    In predict mode a position sees of those before, itself included, as many as a query sees
    otherwise, `n_hashes * chunk_len * (1 + n_chunks_before)`: first those that share a bucket with
    it in some round, then the latest. However calls are cut, the results are the same. Up to
    `chunk_len` positions they are those of eval mode; beyond, buckets of a whole sequence are cut
    into chunks in eval mode alone, where what is seen of the past depends on what comes later.

    Args:
      n_heads, d_qk, d_v, causal, masked, bias, mode, attention_dropout, output_dropout,
        n_parallel_heads, use_python_loop, use_reference_code: as for `SelfAttention`.
      share_qk: Trax's, and has no effect: they are shared.
      chunk_len: how many positions a chunk has.
      n_chunks_before: how many chunks before its own a position sees.
      n_chunks_after: how many after.
      n_hashes: number of rounds.
      n_buckets: an even number; or a list of even numbers, whose product is the number of buckets.
        None chooses two for each chunk; in predict mode, of `predict_mem_len` positions.
      predict_mem_len: how many positions predict mode remembers.
      predict_drop_len: how many it forgets at once when it has remembered so many.
      max_length_for_buckets: Trax's, and has no effect here.

    Weights in Trax's order: `(w_q, w_v, w_o)` of the shapes that `SelfAttention` has, and with
    `bias` `b_q, b_v`. Its state is the key of its rotations, an int64; that of Trax's files is
    none, so they are loaded with weights_only=True.

    Raises:
      ValueError: as `SelfAttention`, or if a number of buckets is odd.

    Example:
      >>> layer = LSHSelfAttention(2, d_qk=4, d_v=4, chunk_len=8, n_hashes=2, n_buckets=[4, 2])
      >>> x = torch.randn(1, 40, 6)
      >>> _ = layer.init(x)
      >>> layer(x).shape
      torch.Size([1, 40, 6])

    Source: Trax `layers/research/efficient_attention.py::LSHSelfAttention`; Kitaev et al. 2020,
      arXiv:2001.04451. There n_parallel_heads is 1 by default, which takes the least memory and the
      most time; each row has rotations of its own, eval mode draws others at each
      call, and in predict mode a prompt sees other positions than tokens that come one by one.
    """

    _state_names = "hash_key"

    def __init__(
        self,
        n_heads: int = 2,
        d_qk: int = 64,
        d_v: int = 64,
        share_qk: Any = "unused",
        causal: bool = False,
        masked: bool = False,
        chunk_len: int = 128,
        n_chunks_before: int = 1,
        n_chunks_after: int = 0,
        n_hashes: int = 1,
        n_buckets: Any = None,
        mode: Mode = "train",
        predict_mem_len: int = 2048,
        predict_drop_len: int = 256,
        attention_dropout: float = 0.0,
        output_dropout: float = 0.0,
        max_length_for_buckets: int | None = None,
        bias: bool = False,
        n_parallel_heads: int | None = None,
        use_python_loop: bool = False,
        use_reference_code: bool = False,
    ):
        super().__init__(
            2 if masked else 1,
            _efficient.names_of(True, bias),
            n_heads,
            d_qk,
            d_v,
            masked,
            attention_dropout,
            output_dropout,
            n_parallel_heads,
        )
        _efficient.check_chunks(chunk_len, n_chunks_before, n_chunks_after)
        _efficient.check_mode(mode, causal, n_chunks_after, self._name)
        _efficient.factors_for(n_buckets, chunk_len, chunk_len)
        self._causal, self._chunk_len = causal, chunk_len
        self._before, self._after = n_chunks_before, n_chunks_after
        self._n_hashes, self._n_buckets = n_hashes, n_buckets
        self._mem_len = predict_mem_len
        self._sight = _efficient.Sight(predict_mem_len, predict_drop_len)
        self._decisions = Decisions()
        self.hash_key: Any
        self.register_buffer("hash_key", None)
        self._set_mode(mode)

    def init_weights_and_state(self, input_signature: Any) -> None:
        """Draws the matrices, and the key of the rotations."""
        super().init_weights_and_state(input_signature)
        self.state = torch.randint(2**62, (), generator=self.rng)

    def init_cache(self, batch_size: int | None = None, max_length: int | None = None) -> None:
        """Enters predict mode with nothing remembered."""
        if not self._causal or self._after:  # is refused when it is called
            return super().init_cache(batch_size, max_length)
        self._memory = _predict.MarkedCache(max_length, batch_size)

    def forward(self, x: Any) -> torch.Tensor:
        """Maps (batch, length, d_model) to the same shape."""
        x, mask = self.inputs(x)
        own = self.own_weights()
        if self._memory is not None:
            return self._gone_on(x, mask, own)
        key = torch.randint(2**62, (), device=x.device) if self.training else self.hash_key
        buckets = self._decisions.made(lambda: self._buckets(x, own, key))
        window = self._chunk_len * (self._before + 1 + self._after)
        options = {
            "chunk_len": self._chunk_len,
            "n_before": self._before,
            "n_after": self._after,
            "causal": self._causal,
            "keep": self.keep(self._chunk_len, window, own["w_q"]),
        }

        def some(rows: slice, heads: slice) -> torch.Tensor:
            q, v = by_head(x[rows], own, "q", heads), by_head(x[rows], own, "v", heads)
            shown = None if mask is None else mask[rows]
            found = _efficient.attend_by_hash(q, v, buckets[rows, heads], shown, **options)
            return joined(found, own["w_o"][heads])

        return self.finished(
            _efficient.in_groups(some, x.shape[0], self._n_heads, self._n_parallel_heads)
        )

    def _buckets(
        self, x: torch.Tensor, own: dict[str, torch.Tensor], key: torch.Tensor
    ) -> torch.Tensor:
        """Returns buckets of all rows and heads, integers (batch, n_heads, n_hashes, length)."""
        factors, rotations = self._rotations(key, x.shape[1])
        with torch.no_grad():
            return torch.cat(
                [
                    _efficient.buckets_of(by_head(x, own, "q", heads), rotations[heads], factors)
                    for heads in (slice(h, h + 1) for h in range(self._n_heads))
                ],
                dim=1,
            )

    def _rotations(self, key: torch.Tensor, length: int) -> tuple[tuple[int, ...], torch.Tensor]:
        factors = _efficient.factors_for(self._n_buckets, length, self._chunk_len)
        return factors, _efficient.rotations_for(
            key, self._n_heads, self._d_qk, self._n_hashes, factors
        )

    def _gone_on(
        self, x: torch.Tensor, mask: torch.Tensor | None, own: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Returns what new positions find among those remembered that are worth the most."""
        _efficient.check_mode("predict", self._causal, self._after, self._name)
        memory: Any = self._memory
        q, v = by_head(x, own, "q", _ALL), by_head(x, own, "v", _ALL)
        factors, rotations = self._rotations(self.hash_key, self._mem_len)
        buckets = _efficient.buckets_of(q, rotations, factors).transpose(-1, -2)
        places = memory.next_positions(q.shape[-2], q.device)[:, None]
        marks = torch.cat([_marks(places, mask).expand(*q.shape[:-1], 1), buckets], -1)
        keys, values, seen, visible = memory.append(_efficient.length_normalized(q), v, marks)
        hidden, itself = self._sight.hidden(places, seen[..., 0], visible)
        most = self._n_hashes * self._chunk_len * (1 + self._before)
        if keys.shape[-2] > most:
            alike = (buckets[..., :, None, :] == seen[..., None, :, 1:]).any(-1)
            worth = seen[..., None, :, 0] + alike * _ALIKE
            worth = worth.masked_fill(hidden, -1)
            hidden = hidden | (worth < worth.topk(most).values[..., -1:])
        found, _ = _efficient.attend(q, keys, values, hidden, itself)
        return joined(found, own["w_o"])


class EncDecAttention(HeadByHead):
    """Attends from a decoder's positions to an encoder's.

    It maps (vectors_d, vectors_e), and a mask (batch, length) of the encoder's content if `masked`,
    to vectors of the decoder's shape. A position that sees nothing attends evenly.

    Args:
      n_heads: number of heads.
      d_qk: size of a head's queries and keys.
      d_v: size of a head's values.
      masked: takes a mask, too: True, or not 0, where a position may be seen.
      mode: `'train'`, `'eval'` or `'predict'`.
      attention_dropout, output_dropout, n_parallel_heads, use_python_loop, use_reference_code: as
        for `SelfAttention`.
      cache_KV_in_predict: in predict mode, keys and values are those of the first call from then
        on, as fits an encoder's output, which stays the same.

    Weights in Trax's order: `(w_q, w_k, w_v, w_o)`, of the shapes that `SelfAttention` has; w_k and
    w_v map the encoder's vectors.

    Raises:
      ValueError: if a number is out of range.

    Source: Trax `layers/research/efficient_attention.py::EncDecAttention`. Where it is masked,
      1.4.1 lowers all scores by 1e9, which leaves nothing of them: it adds up the values of all
      content. Here the mask hides, and no more.
    """

    _takes_two = True

    def __init__(
        self,
        n_heads: int = 2,
        d_qk: int = 64,
        d_v: int = 64,
        masked: bool = True,
        mode: Mode = "train",
        attention_dropout: float = 0.0,
        output_dropout: float = 0.0,
        n_parallel_heads: int | None = None,
        use_python_loop: bool = False,
        use_reference_code: bool = False,
        *,
        cache_KV_in_predict: bool = False,
    ):
        super().__init__(
            3 if masked else 2,
            _efficient.names_of(False, False),
            n_heads,
            d_qk,
            d_v,
            masked,
            attention_dropout,
            output_dropout,
            n_parallel_heads,
        )
        self._caches = cache_KV_in_predict
        self._set_mode(mode)

    def init_cache(self, batch_size: int | None = None, max_length: int | None = None) -> None:
        """Enters predict mode with nothing remembered."""
        if not self._caches:
            return super().init_cache(batch_size, max_length)
        self._memory = _predict.Kept()

    def forward(self, x: Any) -> torch.Tensor:
        """Maps (batch, n, d_model) and (batch, length, d_e) to (batch, n, d_model)."""
        x, source, mask = self.inputs(x)
        own = self.own_weights()
        if isinstance(self._memory, _predict.Kept):
            if not self._memory.held:
                self._memory.write(tuple(by_head(source, own, s, _ALL) for s in "kv"))
            q, (k, v) = by_head(x, own, "q", _ALL), self._memory.held
            return joined(attend_where_shown(q, k, v, mask), own["w_o"])
        keep = self.keep(x.shape[1], source.shape[1], own["w_q"])

        def some(rows: slice, heads: slice) -> torch.Tensor:
            q = by_head(x[rows], own, "q", heads)
            k, v = (by_head(source[rows], own, s, heads) for s in "kv")
            shown = None if mask is None else mask[rows]
            if keep is None:
                found = attend_where_shown(q, k, v, shown)
            else:
                hidden = None if shown is None else ~shown[:, None, None, :]
                found, _ = _efficient.attend(q, k, v, hidden, keep=keep)
            return joined(found, own["w_o"][heads])

        return self.finished(
            _efficient.in_groups(some, x.shape[0], self._n_heads, self._n_parallel_heads)
        )


def _marks(places: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Returns positions as a cache keeps them, (batch or 1, 1, n, 1); what is hidden, as never."""
    if mask is not None:
        places = torch.where(mask[:, None], places, _NEVER)
    return places[..., None]
