"""N-gram cache: tokens that followed the same words earlier in the text become likelier, and it can never hurt.

The backbone's logits are raised for tokens that occur in the remembered text: by the longest context that a token
followed there, by how often it did, and by how rare it is anywhere. Their softmax, p_ngram, is mixed with that of the
backbone,

    p = w p_ngram + (1 - w) p_model,        log(w / (1 - w)) += log p_ngram(x) - log p_model(x)

after each token x, from w = 1/2. This is Bayes' rule for which of the two writes the text, so p of a whole text is the
mean of what the two give it, and its loss exceeds that of the better one by at most ln 2 nats in all.

A token of segment n sees the remembered text that was more than K tokens back when the segment began, K being the
sensory tokens (the backbone copies from those by itself), of all but the oldest segment that a full bank holds. This
depends on the text alone, so the numbers do not depend on the parts in which it is read. For each context length the
newest `OCCURRENCES` count.

Cost: reading runs the head on every token. The text is indexed once, as it leaves the window: per token read, one
binary search for each context length and at most `OCCURRENCES` lookups behind it, however much is remembered.

Sources: Kuhn and De Mori, "A Cache-Based Natural Language Model for Speech Recognition" (1990); Grave et al.,
"Improving Neural Language Models with a Continuous Cache" (arXiv:1612.04426).

Shape legend: B rows, l new tokens of a step, n positions, L tokens of a segment, C longest context, V vocabulary, T
visible tokens, E pairs of a position and a token that followed one of its contexts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import initialization as init

from hmt.config import MemoryConfig
from hmt.extensions import Extension, register_extension
from hmt.memory.state import MemoryState
from hmt.model.backbone import body, embed, eval_mode, head

LOG_ODDS = "ngram_log_odds"
"""State (B, 2): log odds that the cache predicts the text better than the backbone, a float64 as two float32."""

LOG_NORMALIZER = "ngram_log_normalizer"
"""State (B,): log of the sum that p_ngram was divided by after the last token. It updates the odds at the next one, so
that a state holds a number per row instead of two distributions."""

WEIGHTS = ((0.05, 0.08, 0.085), (0.1, 0.15, 0.115), (0.15, 0.27, 0.145), (0.95, 0.5, 0.145), (1.45, 0.65, 0.17))
"""Gain after contexts of 0, 1, 2, ... tokens: constant, per nat of log share, per nat of rarity."""

OCCURRENCES = 256
"""Newest occurrences of a context that count."""

CHUNK_POSITIONS = 32
"""Positions mixed at one time."""

INDEXES = 2
"""Indexes kept for each row of a step: a segment's and the one before it."""

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""Odd factor of the 64-bit hash of a context."""

Array = NDArray[Any]


@register_extension("ngram_cache")
class NgramCache(Extension):
    """An n-gram cache over remembered text, mixed with the backbone by online Bayes.

    Attributes:
        prior: (V,) float32, log-probability of each token where the backbone knows nothing, without adapters.
    """

    needs_logits = True
    prior: Tensor

    def __init__(self, config: MemoryConfig, width: int, vocabulary: int) -> None:
        super().__init__(config, width, vocabulary)
        self.register_buffer("prior", torch.zeros(vocabulary))
        self._backbone: tuple[Any, ...] = ()  # one that had no weights yet; a tuple, so that it is no submodule
        self._indexes: OrderedDict[tuple[int, int, int], tuple[Tensor, NgramIndex]] = OrderedDict()

    @staticmethod
    def enabled(config: MemoryConfig) -> bool:
        """True with `ngram_cache` in the modes hmt and backbone."""
        return config.ngrams > 0

    @torch.no_grad()
    def initialise(self, backbone: Any) -> None:
        """Compute the prior: what the backbone predicts after the mean embedding.

        While a checkpoint is loaded the backbone has no weights yet. Then this waits until the prior is first needed,
        and changes nothing if the checkpoint brought one.
        """
        table = backbone.get_input_embeddings().weight
        if table.is_meta or self.prior.is_meta:
            self._backbone = (backbone,)
            return
        self._backbone = ()
        with eval_mode(backbone, adapted=False):
            tokens = torch.arange(len(table), device=table.device).split(4096)
            total = torch.stack([embed(backbone, part[None]).float().sum(dim=1) for part in tokens]).sum(dim=0)
            logits = head(backbone, body(backbone, (total / len(table)).to(table.dtype)[None]))[0, 0]
        init.copy_(self.prior, logits.float().log_softmax(dim=-1))

    def initial_state(self, batch_size: int) -> dict[str, Tensor]:
        """Even odds.

        Raises:
            ValueError: If the model reads without giving the logits or keeping the text that is needed; names the flag.
        """
        config = self.config
        if not config.rolling:
            raise ValueError("ngram_cache needs the logits of every token that is read; give --sensory cache")
        if config.memory_policy != "fifo":
            raise ValueError(f"ngram_cache needs memory_policy fifo, got {config.memory_policy}")
        if config.ngrams > config.tail_tokens:
            raise ValueError(
                f"ngram_cache must be at most num_sinks + num_sensory ({config.tail_tokens}), got {config.ngrams}"
            )
        return {LOG_ODDS: torch.zeros(batch_size, 2), LOG_NORMALIZER: torch.zeros(batch_size)}

    def adjust_logits(
        self, logits: Tensor, ids: Tensor, mask: Tensor, state: MemoryState
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Log-probabilities of the mixture instead of the logits; logits at padding stay as they are.

        Without gradients they take the logits' place in memory: those of a long step are larger than all else.

        Raises:
            ValueError: If the vocabulary was resized since the cache was added to the model; names both sizes.
        """
        if logits.shape[-1] != len(self.prior):
            raise ValueError(
                f"the n-gram cache knows {len(self.prior)} tokens, the head now has {logits.shape[-1]}; "
                "take a variant() of the model anew"
            )
        if self._backbone:
            self.initialise(*self._backbone)
        before = (state.extras[name].to(logits.device) for name in (LOG_ODDS, LOG_NORMALIZER))
        precise = _precise(logits.device)
        odds, normalizers = (list(values.to(precise).view(len(ids), -1).sum(dim=1)) for values in before)
        mixed = logits.clone() if torch.is_grad_enabled() else logits
        for row, real in enumerate(mask):
            if real.any():
                text = _RowText(state, row, ids[row, real].numpy(), self.config)
                columns = real.nonzero()[:, 0].to(logits.device)
                odds[row], normalizers[row] = self._mix(
                    text, mixed[row], logits[row], columns, odds[row], normalizers[row]
                )
        while len(self._indexes) > INDEXES * (len(mask) + 1):
            self._indexes.popitem(last=False)
        log_odds = torch.stack(odds).detach()
        nearest = log_odds.float()
        changes = {
            LOG_ODDS: torch.stack([nearest, (log_odds - nearest).float()], dim=1),
            LOG_NORMALIZER: torch.stack(normalizers).detach().float(),
        }
        return mixed, changes

    def _mix(
        self, text: _RowText, mixed: Tensor, logits: Tensor, columns: Tensor, odds: Tensor, normalizer: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Write the mixture after a row's new tokens to `mixed` (l, V); return odds and normalizer after them."""
        observed = np.zeros(len(text.new))  # gain of each new token where it was predicted
        parts = []
        for segment, positions in text.segments():
            index = self._index(text, segment)
            gains = index.gains(text.own, positions - text.own_start)
            new = positions - text.read  # -1 is the last token of the step before
            followed = new[new + 1 < len(text.new)]
            observed[followed + 1] = index.gains_of(text.new[followed + 1], gains)
            for start in range(int(new[0] < 0), len(new), CHUNK_POSITIONS):
                stop = min(start + CHUNK_POSITIONS, len(new))
                parts.append((index, gains.between(start, stop), slice(int(new[start]), int(new[stop - 1]) + 1)))
        precise = _precise(logits.device)
        gained = torch.from_numpy(observed).to(precise).to(logits.device)
        for index, gains, places in parts:
            log_model = logits[columns[places]].log_softmax(dim=-1)
            model = log_model.exp()
            factor = index.factor.to(logits.device)
            found = gains.on(logits.device)
            at, tokens = found.positions, found.tokens
            factors = found.values.exp()
            # p_ngram is p_model times the factors, over their mean under p_model.
            corrections = model[at, tokens] * (factors - factor[tokens])
            mean = (model @ factor).to(precise).index_add(0, at, corrections.to(precise))
            log_mean = mean.log()
            steps = gained[places] - torch.cat([normalizer[None], log_mean[:-1]])
            log_odds = odds + steps.detach().cumsum(dim=0)
            own, cached = torch.sigmoid(-log_odds).float(), (torch.sigmoid(log_odds) / mean).float()
            mixture = torch.addcmul(own[:, None], cached[:, None], factor)
            mixture.index_put_((at, tokens), own[at] + cached[at] * factors)
            odds, normalizer = log_odds[-1], log_mean[-1]
            mixed[columns[places]] = log_model + mixture.log()
        return odds, normalizer

    def _index(self, text: _RowText, segment: int) -> NgramIndex:
        """The index of the text that tokens of a segment see; made from one of an earlier segment where it can be."""
        start, end = text.visible(segment)
        key = (id(text.tokens), text.row, segment)
        if key in self._indexes and end <= text.banked:  # the bank is the same, and tells all that is visible
            self._indexes.move_to_end(key)
            return self._indexes[key][1]
        ids, first = text.remembered(end)
        start = min(max(start, first), end)
        ids = ids[start - first :]
        for _, index in reversed(self._indexes.values()):
            if index.precedes(start, ids):
                break
        else:
            index = NgramIndex.empty(start, self.config.ngrams, self.prior.float().cpu().numpy())
        index = index.moved(start, ids)
        self._indexes[key] = text.tokens, index  # holds the tensor, so that its id stays its own
        self._indexes.move_to_end(key)
        return index


class _RowText:
    """The text of one row, by positions counted from its beginning, with new tokens (n,) at its end."""

    def __init__(self, state: MemoryState, row: int, new: Array, config: MemoryConfig) -> None:
        pending = state.pending_ids[row][state.pending_valid[row]].numpy()  # of the unfinished segment
        near = slice(max(state.tail_ids.shape[1] - config.ngrams, 0), None)
        tail = state.tail_ids[row, near][state.tail_valid[row, near]].numpy()
        self.row, self.new = row, new
        self.read = int(state.tokens_read[row])
        self.own = np.concatenate([tail, pending, new])  # what contexts of the new tokens may reach
        self.own_start = self.read + len(new) - len(self.own)
        self.tokens = state.bank.tokens
        self.banked = self.read - len(pending)
        self._bank = state.bank
        self._unbanked = len(pending) + len(new)
        self._length, self._reach = config.fresh_tokens, config.sensory_tokens
        self._capacity = config.capacity // config.segment_slots

    def segments(self) -> Iterator[tuple[int, Array]]:
        """Segments of the last token before the new ones and of those, and the positions in each."""
        positions = np.arange(max(self.read - 1, 0), self.read + len(self.new))
        numbers = positions // self._length
        for number in range(int(numbers[0]), int(numbers[-1]) + 1):
            yield number, positions[numbers == number]

    def visible(self, segment: int) -> tuple[int, int]:
        """First position and end of the text that tokens of a segment see."""
        # The oldest segment of a full bank leaves it with the last token of the newest one: no token may see it.
        oldest = segment - self._capacity + 1
        return max(oldest, 0) * self._length, max(segment * self._length - self._reach, 0)

    def remembered(self, end: int) -> tuple[Array, int]:
        """Remembered tokens before a position, (T,) int32, and the position of the first."""
        bank = self._bank.text(self.row)
        ids = np.concatenate([bank.numpy(), self.own[len(self.own) - self._unbanked :].astype(np.int32)])
        first = self.banked - len(bank)
        return ids[: max(end - first, 0)], first


@dataclass(frozen=True)
class Gains:
    """Gains (E,) of tokens that followed a context of a position, in order of positions, then tokens."""

    positions: Any
    tokens: Any
    values: Any

    def between(self, start: int, stop: int) -> Gains:
        """The gains of some positions, counted from the first of these."""
        part = slice(*np.searchsorted(self.positions, (start, stop)).tolist())
        return Gains(self.positions[part] - start, self.tokens[part], self.values[part])

    def on(self, device: torch.device) -> Gains:
        """The gains as tensors on a device."""
        return Gains(*(torch.from_numpy(one).to(device) for one in (self.positions, self.tokens, self.values)))


@dataclass(frozen=True, eq=False)
class NgramIndex:
    """Contexts of a text (T,) at a position, to be found by binary search. A longer text gives another index."""

    start: int
    ids: Array
    keys: tuple[Array, ...]
    """Sorted hashes of the contexts that a token follows, by context length, uint64."""
    ends: tuple[Array, ...]
    """Position of each context's last token, int32, oldest first where contexts are equal."""
    counts: Array
    prior: Array

    @classmethod
    def empty(cls, start: int, context: int, prior: Array) -> NgramIndex:
        """The index of no text, for contexts of up to `context` tokens."""
        nothing = np.zeros(0, dtype=np.int32)
        keys = (nothing.astype(np.uint64),) * context
        return cls(start, nothing, keys, (nothing,) * context, np.zeros(len(prior), dtype=np.int64), prior)

    @property
    def end(self) -> int:
        """Position behind the last token."""
        return self.start + len(self.ids)

    def precedes(self, start: int, ids: Array) -> bool:
        """True if the text (T,) at `start` is this one with tokens added behind it or dropped before it."""
        if not self.start <= start < self.end <= start + len(ids):
            return False
        return np.array_equal(self.ids[start - self.start :], ids[: self.end - start])

    def moved(self, start: int, ids: Array) -> NgramIndex:
        """The index of the text (T,) at `start`, which this one `precedes` or which is all new."""
        keys, ends = [], []
        added = np.arange(self.end - 1, start + len(ids) - 1)  # contexts whose next token is there
        for length, (hashes, places) in enumerate(zip(self.keys, self.ends, strict=True), start=1):
            first = start + length - 1
            if start > self.start:
                kept = places >= first
                hashes, places = hashes[kept], places[kept]
            new = added[added >= first]
            found = _hashes(ids, new - start, length)
            order = np.argsort(found, kind="stable")
            slots = np.searchsorted(hashes, found[order], side="right")
            keys.append(np.insert(hashes, slots, found[order]))
            ends.append(np.insert(places, slots, new[order].astype(places.dtype)))
        size = len(self.counts)
        gone, come = self.ids[: start - self.start], ids[self.end - start :]
        counts = self.counts - np.bincount(gone, minlength=size) + np.bincount(come, minlength=size)
        return NgramIndex(start, ids, tuple(keys), tuple(ends), counts, self.prior)

    @cached_property
    def unigram(self) -> Array:
        """Gain of each token where it followed no context, (V,) float32; 0 where it does not occur."""
        with np.errstate(divide="ignore"):
            shares = np.log(self.counts / max(len(self.ids), 1))
        gains = _gain(np.zeros_like(self.counts), shares, self.prior)
        return np.where(self.counts > 0, gains, 0.0).astype(np.float32)

    @cached_property
    def factor(self) -> Tensor:
        """Factor of each token's probability where it followed no context, (V,) float32."""
        return torch.from_numpy(self.unigram).exp()

    def gains(self, text: Array, places: Array) -> Gains:
        """Gains after the contexts at some places (n,) of a text: of each token by the longest one that it followed."""
        context, vocabulary = len(self.keys), len(self.counts)
        totals = np.zeros((context + 1, len(places)), dtype=np.int64)
        pairs = []
        for size, (keys, ends) in enumerate(zip(self.keys, self.ends, strict=True), start=1):
            wanted = np.flatnonzero(places >= size - 1)
            asked = _hashes(text, places[wanted], size)
            last = np.searchsorted(keys, asked, side="right")
            count = np.minimum(last - np.searchsorted(keys, asked), OCCURRENCES)
            totals[size, wanted] = count
            position = np.repeat(wanted, count)
            # Of each place the slots last - count, ..., last - 1.
            slots = np.arange(len(position)) + np.repeat(last - count.cumsum(), count)
            tokens = self.ids[ends[slots] + 1 - self.start]
            pairs.append(((position * vocabulary + tokens) * context) + context - size)  # the longest comes first
        found, followed = np.unique(np.concatenate(pairs), return_counts=True)
        pair, length = found // context, context - found % context
        longest = np.diff(pair, prepend=-1) != 0
        pair, length, followed = pair[longest], length[longest], followed[longest]
        position, tokens = np.divmod(pair, vocabulary)
        shares = np.log(followed / totals[length, position])
        return Gains(position, tokens, _gain(length, shares, self.prior[tokens]).astype(np.float32))

    def gains_of(self, tokens: Array, gains: Gains) -> Array:
        """Gain of the token (n,) that came next at each of the first n positions."""
        found = self.unigram[tokens]
        known = gains.between(0, len(tokens))
        same = tokens[known.positions] == known.tokens
        found[known.positions[same]] = known.values[same]
        return found


def _precise(device: torch.device) -> torch.dtype:
    """The widest floating point numbers that a device has."""
    return torch.float32 if device.type == "mps" else torch.float64


def _hashes(ids: Array, places: Array, length: int) -> Array:
    """Hash of the `length` tokens up to each place (n,) of a text, uint64; equal by chance in 2^-64 of pairs."""
    found = ids[places].astype(np.uint64)
    for back in range(1, length):
        found = found * MULTIPLIER + ids[places - back].astype(np.uint64)
    return found


def _gain(lengths: Array, log_shares: Array, log_prior: Array) -> Array:
    """Gain of tokens by the context that they followed, its share, and their prior log-probability."""
    weights = np.array(WEIGHTS)[np.minimum(lengths, len(WEIGHTS) - 1)]
    gains: Array = weights[:, 0] + weights[:, 1] * log_shares - weights[:, 2] * log_prior
    return gains
