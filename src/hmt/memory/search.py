"""Lexical search: the passages of remembered text that answer a query.

A phrase is one to three tokens in a row. Every distinct phrase that a query shares with the text counts once for a
passage, by how rare the phrase is in the text, as in BM25; but passages are not cut beforehand: every run of tokens
is a candidate. No model and no index: a few passes over the token ids, with tables over the vocabulary.

Shape legend: T tokens of text, J query tokens, V vocabulary, U distinct phrases of one length, H hits, P passages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PHRASE_WEIGHTS = (1.0, 0.5, 0.25)
"""Weight of a phrase of one, two and three tokens; a longer one counts on top of the shorter ones in it."""

RARITY_WINDOW = 64
"""A phrase is rare if few runs of this many tokens hold it: one that most of them hold has no weight."""

STEPS = 1024
"""Weights are whole multiples of 1 / STEPS nats: sums are exact in any order, and ties are ties."""

CORE = 0.5
"""Share of a passage in which hits are counted together; the rest is the context of what is found."""

LEAD = 0.25
"""Share of the spare tokens of a passage that stand before its first hit; answers follow more often than they lead."""

EVIDENCE = 2.0
"""Least weight that a query is taken to have, in words that the text does not hold."""

THRESHOLD = 0.3
"""Least share of the query's weight that the best passage must have."""


@dataclass(frozen=True)
class Passages:
    """Runs of a text, oldest first; none if nothing in the text is relevant.

    Attributes:
        starts: First token of each, (P,) int64.
        ends: One past its last token, (P,) int64.
        scores: Weight of the distinct phrases it shares with the query, (P,) float32, in nats.
        coverage: Share of the query's weight that the best passage of the text has, 0 to 1, relevant or not.
    """

    starts: Tensor
    ends: Tensor
    scores: Tensor
    coverage: float

    @property
    def relevant(self) -> bool:
        """True if there is any passage."""
        return len(self.starts) > 0

    @property
    def positions(self) -> Tensor:
        """Positions of all tokens of the passages, oldest first, (sum of lengths,) int64."""
        runs = [torch.arange(start, end) for start, end in zip(self.starts.tolist(), self.ends.tolist(), strict=True)]
        return torch.cat(runs) if runs else torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True)
class Hits:
    """The phrases that a text shares with a query, in order of position within each phrase length.

    Attributes:
        begins: First token of each hit, (H,) int64.
        ends: One past its last token, (H,) int64.
        weights: Weight of its phrase, (H,) int32, in 1 / STEPS nats.
        previous: First token of the same phrase's hit before this one, (H,) int64; far below 0 if there is none.
        total: Weight of all distinct words of the query, in the text or not, in 1 / STEPS nats.
    """

    begins: Tensor
    ends: Tensor
    weights: Tensor
    previous: Tensor
    total: int


def find_passages(
    text: Tensor,
    query: Tensor,
    budget: int,
    *,
    newlines: Tensor | None = None,
    sentences: Tensor | None = None,
    words: Tensor | None = None,
    pieces: int = 2,
    threshold: float = THRESHOLD,
) -> Passages:
    """Find the passages of a text that share most with a query.

    Args:
        text: Remembered token ids, oldest first, (T,), any integer dtype, on the CPU.
        query: Token ids of the question, (J,).
        budget: Most tokens of all passages together.
        newlines: True for tokens that end a line, (V,) bool; passages begin and end with a line where they can.
        sentences: True for tokens that end a sentence, (V,) bool; for where no line ends near.
        words: Id of the word each token stands for, (V,), so that " Key" matches "key"; none: each token for itself.
        pieces: Number of passages to divide the budget among, at most.
        threshold: Least share of the query's weight (0 to 1) that the best passage must have; 0 never gives nothing
            as long as one phrase is shared.

    Returns:
        Passages that do not overlap, oldest first.

    Raises:
        ValueError: If `budget` or `pieces` is below 1.
    """
    if budget < 1 or pieces < 1:
        raise ValueError(f"budget and pieces must be at least 1, got {budget} and {pieces}")
    if not len(text) or not len(query):
        return _passages([], 0.0)
    text = text.int()
    hits = shared_phrases(text, query.int(), words)
    pieces = min(pieces, budget)
    size = min(budget // pieces, len(text))
    core = min(max(round(size * CORE), 1), size)
    scores = window_scores(hits, len(text), core)
    strongest = int(window_scores(hits, len(text), min(RARITY_WINDOW, len(text))).max())
    least = EVIDENCE * STEPS * float(_rarity(torch.zeros(1), len(text)))
    coverage = min(strongest / max(hits.total, least), 1.0)
    if coverage < threshold:
        return _passages([], coverage)
    breaks = [table for table in (newlines, sentences) if table is not None]
    chosen: list[tuple[int, int, int]] = []
    while len(chosen) < pieces:
        best = int(scores.max())
        if best <= 0:
            break
        window = int((scores == best).nonzero()[-1])
        inside = (hits.begins >= window) & (hits.ends <= window + core)
        first, last = int(hits.begins[inside].min()), int(hits.ends[inside].max())
        low = max((end for _, end, _ in chosen if end <= first), default=0)
        high = min((start for start, _, _ in chosen if start >= last), default=len(text))
        start, end = _place(text, first, last, size, low, high, breaks)
        chosen.append((start, end, best))
        scores[max(start - core + 1, 0) : end] = 0
    return _passages(chosen, coverage)


def _passages(chosen: Sequence[tuple[int, int, int]], coverage: float) -> Passages:
    rows = torch.tensor(sorted(chosen), dtype=torch.int64).reshape(-1, 3)
    return Passages(rows[:, 0], rows[:, 1], rows[:, 2].float() / STEPS, coverage)


def shared_phrases(text: Tensor, query: Tensor, words: Tensor | None = None) -> Hits:
    """The phrases of a query in a text, each with its weight.

    Args:
        text: Token ids, (T,) int32.
        query: Token ids, (J,) int32.
        words: Id of the word each token stands for, (V,).
    """
    size = int(torch.maximum(text.max(), query.max())) + 1
    table = torch.arange(size, dtype=torch.int32) if words is None else words[:size].int()
    asked = table.index_select(0, query)
    distinct, asked = asked.unique(return_inverse=True)
    # Number each distinct word of the query from 1; 0 is any other word.
    numbers = torch.zeros(int(table.max()) + 1, dtype=torch.int16)
    numbers[distinct.long()] = torch.arange(1, len(distinct) + 1, dtype=torch.int16)
    told = numbers.index_select(0, table).index_select(0, text)
    asked = asked.int() + 1
    singles_asked, singles_told, count = asked, told, len(distinct)

    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    total = 0
    for length, share in enumerate(PHRASE_WEIGHTS, start=1):
        if length > 1:
            # A phrase is the phrase without its last token, and the last token: a pair of numbers, numbered again.
            base = len(distinct) + 1
            keys = asked[:-1] * base + singles_asked[length - 1 :]
            unique, asked = keys.unique(return_inverse=True)
            asked = asked.int() + 1
            numbers = torch.zeros((count + 1) * base, dtype=torch.int16)
            numbers[unique.long()] = torch.arange(1, len(unique) + 1, dtype=torch.int16)
            told = numbers.index_select(0, told[:-1].int() * base + singles_told[length - 1 :])
            count = len(unique)
        if not len(asked) or not len(told):
            break
        times = torch.bincount(told, minlength=count + 1).double()
        weights = (share * STEPS * _rarity(times, len(text))).round().int()
        weights[0] = 0
        if length == 1:
            total = int(weights.sum())
        places = (weights.index_select(0, told.int()) > 0).nonzero()[:, 0]
        phrases = told[places]
        parts.append((places, places + length, weights[phrases.long()], _previous(places, phrases)))
    begins, ends, weights, previous = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return Hits(begins, ends, weights, previous, total)


def _rarity(times: Tensor, tokens: int) -> Tensor:
    """Rarity in nats of phrases that a text holds so many times; 0 for those that all its parts hold."""
    runs = tokens / RARITY_WINDOW + 1
    return (1 + (runs - times + 0.5).clamp(min=0) / (times + 0.5)).log()


def _previous(places: Tensor, phrases: Tensor) -> Tensor:
    """The place of the same phrase before each place, (H,) int64; far below 0 where there is none."""
    ordered, order = phrases.sort(stable=True)
    before = places.new_full((len(places),), -(1 << 40))
    same = ordered[1:] == ordered[:-1]
    before[order[1:][same]] = places[order[:-1][same]]
    return before


def window_scores(hits: Hits, tokens: int, size: int) -> Tensor:
    """Weight of the distinct phrases in each window of `size` of `tokens` tokens, (tokens - size + 1,) int32."""
    # A hit counts for the windows that hold it whole and begin behind the previous hit of its phrase.
    starts = tokens - size + 1
    first = torch.maximum(hits.previous + 1, hits.ends - size).clamp(min=0, max=starts)
    beyond = (hits.begins + 1).clamp(max=starts)
    weights = hits.weights * (first < beyond)
    changes = torch.zeros(starts + 1, dtype=torch.int32)
    changes.scatter_add_(0, first, weights).scatter_add_(0, beyond, -weights)
    return changes.cumsum(0, dtype=torch.int32)[:-1]


def _place(
    text: Tensor, first: int, last: int, size: int, low: int, high: int, breaks: Sequence[Tensor]
) -> tuple[int, int]:
    """Put a passage of at most `size` tokens, within `low` and `high`, around hits from `first` to `last`."""
    spare = size - (last - first)
    lead = int(spare * LEAD)
    target = max(min(first - lead, high - size), low)
    start = _nearest_break(text, target, max(low, last - size, target - lead), first, breaks, target)
    limit = min(start + size, high)
    end = _nearest_break(text, limit, last + (limit - last) // 2, limit, breaks, limit)
    return start, end


def _nearest_break(text: Tensor, target: int, low: int, high: int, breaks: Sequence[Tensor], default: int) -> int:
    """The place in [low, high] nearest to `target` that follows a break, of the first kind that has any."""
    before = text[max(low - 1, 0) : high]
    for table in breaks:
        places = table[before.long()].nonzero()[:, 0] + max(low - 1, 0) + 1
        if low == 0:
            places = torch.cat([places.new_zeros(1), places])
        if high == len(text):
            places = torch.cat([places, places.new_full((1,), len(text))])
        if len(places):
            return int(places[(places - target).abs().argmin()])
    return max(low, min(default, high))
