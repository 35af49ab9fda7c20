"""Copying: what followed the same words earlier in the text becomes likelier now.

An n-gram cache over the tokens that the bank keeps, added to the logits: a token that followed the longest of the
contexts found again in the remembered text gains by how long that context is, by how often the token followed it, and
by how rare the token is anywhere. Tokens that merely occurred count as those that followed a context of no tokens.
Only text that has left the window is looked at: what stands in it the backbone can copy by itself. Each token is
predicted from those before it, so nothing of this reads ahead, and no position of the backbone is spent.

Sources: Kuhn and De Mori, "A Cache-Based Natural Language Model for Speech Recognition" (1990); Grave et al.,
"Improving Neural Language Models with a Continuous Cache" (arXiv:1612.04426). Here the cache holds token ids alone, and
it shifts logits instead of mixing probabilities, so that what the backbone rules out stays ruled out.

Shape legend: B rows, N bank slots, L fresh tokens of the longest segment, T past tokens, l new tokens, n places, C
tokens of the longest context, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import initialization as init

from hmt.config import MemoryConfig
from hmt.memory.bank import NO_TOKEN, Bank
from hmt.memory.episodes import Past
from hmt.memory.rows import pack
from hmt.memory.state import MemoryState

START = ((0.05, 0.08, 0.085), (0.1, 0.15, 0.115), (0.15, 0.27, 0.145), (0.95, 0.5, 0.145), (1.45, 0.65, 0.17))
"""Weights of a new model for contexts of 0, 1, 2, ... tokens: constant, of the log share, and of the rarity in nats."""

MISSING = -2
"""Stands in a context before the beginning of a text; no past token is equal to it."""

AT_ONCE = 1 << 22
"""Pairs of a place and a past token that are compared at one time."""


@dataclass(frozen=True)
class Source:
    """The text that a segment may copy from: remembered tokens that have left its window.

    Attributes:
        copying: Gives the weights.
        bank: Before the segment.
        segments_read: (B,) int64.
        in_reach: Tokens before the segment that stand in its window as sensory tokens, K.
        fresh_tokens: Of a segment, L.
    """

    copying: Copying
    bank: Bank
    segments_read: Tensor
    in_reach: int
    fresh_tokens: int

    @cached_property
    def past(self) -> Past:
        """The text, oldest first."""
        bank = self.bank
        length = (bank.tokens != NO_TOKEN).sum(dim=2)
        behind = (self.segments_read[:, None] - 1 - bank.segments) * self.fresh_tokens + length
        ages = behind[:, :, None] - torch.arange(bank.tokens.shape[2], device=behind.device)
        return Past.of(bank, (bank.valid & bank.starts)[:, :, None] & (ages > self.in_reach))

    @cached_property
    def log_shares(self) -> Tensor:
        """Log share of each token in the text, (B, V) float32; minus infinity where it does not occur."""
        past = self.past
        counts = torch.zeros(len(past.ids), len(self.copying.prior), device=past.ids.device)
        counts.scatter_add_(1, past.ids.clamp(min=0), past.valid.float())
        return (counts / past.lengths.clamp(min=1)[:, None]).log()

    def copies(self, state: MemoryState, ids: Tensor, mask: Tensor) -> Copies:
        """For new tokens (B, l) after those that the state holds, or where there are none, for the newest of those."""
        context = len(self.copying.weights) - 1
        near = slice(max(state.tail_ids.shape[1] + 1 - context, 0), None)
        text = torch.cat([state.tail_ids[:, near], state.pending_ids, ids], dim=1)
        valid = torch.cat([state.tail_valid[:, near], state.pending_valid, mask], dim=1)
        return Copies(self, contexts_of(text, valid, max(ids.shape[1], 1), context))


@dataclass(frozen=True)
class Continuations:
    """What followed contexts of at least one token, each pair of a place and a token once.

    Attributes:
        places: (E,) int64.
        tokens: (E,) int64, ids.
        matched: (E,) int64, tokens of the longest context that the token followed.
        log_shares: (E,) float32, log of the share of this context's occurrences that it followed.
    """

    places: Tensor
    tokens: Tensor
    matched: Tensor
    log_shares: Tensor


@dataclass(frozen=True)
class Copied:
    """One new token of each row, and where it may be from.

    Attributes:
        tokens: (B,) int64.
        matched: (B,) int64, tokens of the longest context that it followed in the remembered text; 0 where it followed
            none, and in a row that wrote nothing.
        segments: (B,) int64, number of the segment where it stands last behind that context; -1 where `matched` is 0.
    """

    tokens: Tensor
    matched: Tensor
    segments: Tensor


@dataclass(frozen=True)
class Copies:
    """What copying adds to the logits of a segment's new tokens.

    Attributes:
        source: What is copied from.
        contexts: (B, l, C) int64: of each new token the tokens up to it, itself first; MISSING before the beginning.
    """

    source: Source
    contexts: Tensor

    def add_to(self, logits: Tensor, places: Tensor) -> Tensor:
        """Logits (n, V) float32 of some places, each counted b * l + column, with what copying adds to them.

        Raises:
            ValueError: If the vocabulary was resized since copying was added to the model.
        """
        known = len(self.source.copying.prior)
        if logits.shape[1] != known:
            raise ValueError(f"copying knows {known} tokens, the head now has {logits.shape[1]}; take a variant() anew")
        rows = places.div(self.contexts.shape[1], rounding_mode="floor")
        found = continuations(self.source.past, rows, self.contexts.flatten(0, 1)[places], logits.shape[1])
        unmatched = self._unmatched()
        gains = self.source.copying.gains(found.matched, found.log_shares, found.tokens)
        more = gains - unmatched[rows[found.places], found.tokens]
        raised = unmatched.index_select(0, rows).add_(logits)  # one table of (n, V) besides the logits, and no more
        raised.view(-1).index_add_(0, found.places * known + found.tokens, more)
        return raised

    def origins(self, tokens: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Where tokens (n,) that came next at some places followed the same words before.

        Returns:
            `matched` and `segments` of `Copied`, (n,) int64 each.
        """
        past, bank = self.source.past, self.source.bank
        rows = places.div(self.contexts.shape[1], rounding_mode="floor")
        contexts, told = self.contexts.flatten(0, 1)[places], past.told
        place, end = ((told[rows, :-1] == contexts[:, :1]) & (told[rows, 1:] == tokens[:, None])).nonzero(as_tuple=True)
        width = max(told.shape[1], 1)
        found = _matched(told, rows[place], end, contexts[place]) * width + end  # the longest, then the newest
        best = torch.zeros_like(places).scatter_reduce(0, place, found, "amax")
        matched, ends = best.div(width, rounding_mode="floor"), best % width
        segments = torch.full_like(places, -1)
        known = matched > 0
        segments[known] = bank.segments[rows[known], past.slots[rows[known], ends[known] + 1]]
        return matched, segments

    def _unmatched(self) -> Tensor:
        """What each token gains where no context is found again, (B, V)."""
        shares = self.source.log_shares
        absent = shares.isinf()
        constant, share, rarity = self.source.copying.weights[0].float()
        gains = constant + share * shares.masked_fill(absent, 0.0) - rarity * self.source.copying.prior.float()
        return gains.masked_fill(absent, 0.0)


class Copying(nn.Module):
    """The weights of copying.

    Attributes:
        weights: (C + 1, 3), as in START, for contexts of 0 to C tokens.
        prior: (V,) float32, log-probability of each token where the backbone knows nothing, as it was when copying was
            added to it, without adapters: the less, the rarer.
    """

    prior: Tensor

    def __init__(self, context: int, vocabulary: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(context + 1, 3))
        self.register_buffer("prior", torch.zeros(vocabulary))

    def initialise(self) -> None:
        """Start with weights that suit untrained backbones; longer contexts than were measured count like those."""
        start = [START[min(length, len(START) - 1)] for length in range(len(self.weights))]
        init.copy_(self.weights, torch.tensor(start))

    def source(self, state: MemoryState, config: MemoryConfig) -> Source:
        """What the segment after this state may copy from."""
        return Source(self, state.bank, state.segments_read, config.max_sensory, config.fresh_tokens)

    def gains(self, matched: Tensor, log_shares: Tensor, tokens: Tensor) -> Tensor:
        """What tokens gain that followed contexts of `matched` tokens in that share of their occurrences, in nats."""
        constant, share, rarity = self.weights.float()[matched].unbind(-1)
        return constant + share * log_shares - rarity * self.prior.float()[tokens]


def contexts_of(ids: Tensor, valid: Tensor, count: int, context: int) -> Tensor:
    """The tokens up to each of the last `count` columns of a text, that column first, (B, count, C) int64.

    Args:
        ids: (B, M), oldest first, with gaps where `valid` (B, M) is False.
        valid: Real tokens.
        count: Columns wanted; what comes of those without a token has no meaning.
        context: Tokens C.
    """
    packed, _ = pack(ids.long(), valid)
    place = valid.cumsum(dim=1)[:, valid.shape[1] - count :, None] - 1 - torch.arange(context, device=ids.device)
    found = packed.gather(1, place.clamp(min=0).flatten(1)).view_as(place)
    return found.masked_fill(place < 0, MISSING)


def continuations(past: Past, rows: Tensor, contexts: Tensor, vocabulary: int) -> Continuations:
    """What followed the contexts of some places in the past.

    Args:
        past: Text of each row.
        rows: (n,) int64, the row of each place.
        contexts: (n, C) int64, newest token first.
        vocabulary: V.
    """
    told = past.told
    size = max(AT_ONCE // max(told.shape[1], 1), 1)
    parts = [
        _continuations(told, rows[start : start + size], contexts[start : start + size], vocabulary, start)
        for start in range(0, max(len(rows), 1), size)
    ]
    return Continuations(*(torch.cat(values) for values in zip(*parts, strict=True)))


def _continuations(
    told: Tensor, rows: Tensor, contexts: Tensor, vocabulary: int, start: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Places (from `start` on), tokens, matched and log shares, of a part of the places."""
    lengths = contexts.shape[1]
    same = (told[rows, :-1] == contexts[:, :1]) & (told[rows, 1:] != NO_TOKEN)
    place, end = same.nonzero(as_tuple=True)
    row = rows[place]
    matched = _matched(told, row, end, contexts[place])
    keys, pair = (place * vocabulary + told[row, end + 1]).unique(return_inverse=True)
    longest = torch.zeros_like(keys).scatter_reduce(0, pair, matched, "amax")
    counts = torch.zeros_like(keys).scatter_add(0, pair, (matched == longest[pair]).long())
    exactly = torch.bincount(place * (lengths + 1) + matched, minlength=len(rows) * (lengths + 1))
    at_least = exactly.view(len(rows), lengths + 1).flip(1).cumsum(dim=1).flip(1)
    places = keys.div(vocabulary, rounding_mode="floor")
    return places + start, keys % vocabulary, longest, (counts / at_least[places, longest]).log()


def _matched(told: Tensor, rows: Tensor, ends: Tensor, contexts: Tensor) -> Tensor:
    """How many tokens of contexts (e, C) stand in the past up to its tokens at (rows, ends), (e,) int64."""
    going = torch.ones_like(ends, dtype=torch.bool)
    matched = torch.zeros_like(ends)
    for back in range(contexts.shape[1]):
        going = going & (ends >= back) & (told[rows, (ends - back).clamp(min=0)] == contexts[:, back])
        matched = matched + going
    return matched
