"""Lexical search: the passage of a remembered text that answers a query.

A term of the query is a word in all its spellings, as token ids. A passage is scored as in BM25: by the terms in it, by
how rare each is in the text, with saturation. Neighboring terms of the query that are neighbors in the text count once
more, and so do terms that share a line. A passage may begin at every occurrence of a term, so the work is one lookup
per token of the text, and the rest grows with the number of occurrences. No model runs.

Weights count documents: the text is taken as one after another of half a passage each, and a term that occurs in every
document has no weight. All weights and evidence are in nats.

Shape legend: T tokens of text, V vocabulary, H hits (occurrences of terms and phrases).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

Term = frozenset[tuple[int, ...]]
"""A word of a query: its spellings as token ids."""

SATURATION = (1.0, 0.43, 0.24, 0.15)
"""Weight of the first, second, third and fourth occurrence in a passage, as in BM25 with k1 = 1.5."""

PHRASE_WEIGHT = 0.5
"""Weight of two neighboring terms of the query that are neighbors in the text, on top of their own."""

PHRASE_GAP = 2
"""Most tokens between the two."""

LINE_WEIGHT = 0.7
"""Weight of terms in the line in which a passage begins, on top of their own: a line is about one thing."""

LEAD = 0.25
"""Share of a passage's spare tokens that may precede its first hit; answers follow more often than they lead."""

LEAST_FILL = 0.75
"""Least share of the budget that a passage uses to end with a line or a sentence."""

MOST_HITS = 4096
"""Most hits that are scored, of the rarest terms first; at least one in 64 tokens of text."""

MISSING_WEIGHT = 0.15
"""Evidence against a passage per nat of rarity of the query's terms that it lacks."""

EVIDENCE_PER_NAT = 1.5
"""Evidence that a passage needs per nat by which the documents exceed `CERTAIN_DOCUMENTS`: a longer text has more
passages that share words with a query by chance. `benchmarks/passages.py` measures how often one is recalled."""

CERTAIN_DOCUMENTS = 14
"""Documents that every text is taken to have besides its own, so that a short one needs little evidence."""


class Found(NamedTuple):
    """A passage of a text.

    Attributes:
        start: First token.
        end: One past the last token.
        score: Weight of the terms it shares with the query, in nats.
    """

    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Hits:
    """Occurrences of terms and phrases, ordered by where they begin.

    Attributes:
        begins: First token of each, (H,) int64.
        ends: One past its last token, (H,) int64.
        numbers: Number of its term or phrase, (H,) int64.
        weights: Rarity of its term or phrase, (H,) float64, in nats.
    """

    begins: Tensor
    ends: Tensor
    numbers: Tensor
    weights: Tensor

    def before(self, count: int) -> list[Tensor]:
        """Index of the hit of the same term 0, 1, ..., `count` hits earlier, (H,) int64 each; -1 for none."""
        order = self.numbers.argsort(stable=True)
        ordered = self.numbers[order]
        found = [torch.arange(len(order))]
        for back in range(1, count + 1):
            same = ordered[back:] == ordered[:-back]
            earlier = torch.full_like(order, -1)
            earlier[order[back:][same]] = order[:-back][same]
            found.append(earlier)
        return found


def find_passage(
    text: Tensor,
    terms: Sequence[Term],
    budget: int,
    newlines: Tensor | None = None,
    sentences: Tensor | None = None,
) -> Found | None:
    """Find the passage of a text that shares most with a query.

    Args:
        text: Remembered token ids, oldest first, (T,), any integer dtype, on the CPU.
        terms: Words of the query in order, without those that do not tell what it is about.
        budget: Most tokens of the passage, at least 1.
        newlines: True for tokens that end a line, (V,) bool; a passage begins and ends with one where it can.
        sentences: True for tokens that end a sentence, (V,) bool; they divide long lines.

    Returns:
        The passage, the newest of equal ones; None where nothing in the text is relevant.
    """
    distinct = list(dict.fromkeys(terms))
    if not len(text) or not distinct:
        return None
    text = text.int()
    places = _occurrences(text, distinct)
    documents = 2 * len(text) / budget + CERTAIN_DOCUMENTS
    rarities = [_rarity(len(begins), documents) for begins, _ in places]
    hits = _hits(max(MOST_HITS, len(text) // 64), documents, [distinct.index(term) for term in terms], places, rarities)
    if hits is None:
        return None
    within_budget = torch.searchsorted(hits.begins, hits.ends - budget)
    scores = _scores(hits, within_budget)
    if newlines is not None:
        lines = torch.searchsorted(newlines.index_select(0, text).nonzero()[:, 0], hits.begins)
        scores += LINE_WEIGHT * _scores(hits, within_budget.maximum(torch.searchsorted(lines, lines)))
    score = float(scores.max())
    first = int(hits.begins[(scores > score - 1e-6).nonzero()[-1]])
    inside = (hits.begins >= first) & (hits.ends <= first + budget)
    shared = [number for number in hits.numbers[inside].unique().tolist() if number < len(distinct)]
    if not shared or not _relevant(sum(rarities[number] for number in shared), sum(rarities), documents):
        return None
    start, end = _bounds(text, first, int(hits.ends[inside].max()), budget, newlines, sentences)
    return Found(start, end, score)


def _relevant(shared: float, total: float, documents: float) -> bool:
    """True if a passage shares more with a query than the best of a text of this length does by chance."""
    needed = EVIDENCE_PER_NAT * math.log(documents / CERTAIN_DOCUMENTS)
    return shared - MISSING_WEIGHT * (total - shared) > needed


def _rarity(times: int, documents: float) -> float:
    """Inverse document frequency of a term that occurs so many times."""
    return math.log(1 + max(documents - times + 0.5, 0.0) / (times + 0.5))


def _occurrences(text: Tensor, terms: Sequence[Term]) -> list[tuple[Tensor, Tensor]]:
    """First token and end of each occurrence of each term, in order."""
    beginnings = {spelling[0] for term in terms for spelling in term}
    begins_term = torch.zeros(max(int(text.max()), *beginnings) + 1, dtype=torch.bool)
    begins_term[list(beginnings)] = True
    candidates = begins_term.index_select(0, text).nonzero()[:, 0]
    tokens, order = text[candidates].sort(stable=True)
    candidates = candidates[order]
    found = []
    for term in terms:
        begins, ends = [candidates[:0]], [candidates[:0]]
        for spelling in sorted(term):
            bounds = torch.tensor([spelling[0], spelling[0] + 1], dtype=tokens.dtype)
            low, high = torch.searchsorted(tokens, bounds).tolist()
            at = candidates[low:high]
            at = at[at <= len(text) - len(spelling)]
            for offset, token in enumerate(spelling[1:], start=1):
                at = at[text[at + offset] == token]
            begins.append(at)
            ends.append(at + len(spelling))
        ordered, index = torch.cat(begins).sort(stable=True)
        first = torch.ones(len(ordered), dtype=torch.bool)
        first[1:] = ordered[1:] != ordered[:-1]  # of two spellings at one place, one
        found.append((ordered[first], torch.cat(ends)[index][first]))
    return found


def _hits(
    most: int, documents: float, query: Sequence[int], places: list[tuple[Tensor, Tensor]], rarities: Sequence[float]
) -> Hits | None:
    """Up to `most` occurrences of the terms, rarest first, and those of pairs that are neighbors in the query."""
    used: dict[int, tuple[Tensor, Tensor, float]] = {}
    left = most
    for number in sorted(range(len(places)), key=lambda number: -rarities[number]):
        begins, ends = places[number]
        left -= len(begins)
        if left < 0 or rarities[number] <= 0:
            break
        if len(begins):
            used[number] = begins, ends, rarities[number]
    if not used:
        return None
    for count, (one, other) in enumerate(dict.fromkeys(pairwise(query))):
        if one == other or one not in used or other not in used:
            continue
        (begins, ends, weight), (next_begins, next_ends, next_weight) = used[one], used[other]
        following = torch.searchsorted(next_begins, ends).clamp(max=len(next_begins) - 1)
        gaps = next_begins[following] - ends
        near = (gaps >= 0) & (gaps <= PHRASE_GAP)
        if near.any():
            rarity = min(_rarity(int(near.sum()), documents), weight + next_weight)
            used[len(places) + count] = begins[near], next_ends[following][near], PHRASE_WEIGHT * rarity
    sizes = torch.tensor([len(begins) for begins, _, _ in used.values()])
    begins, order = torch.cat([begins for begins, _, _ in used.values()]).sort(stable=True)
    ends = torch.cat([ends for _, ends, _ in used.values()])
    numbers = torch.tensor(list(used)).repeat_interleave(sizes)
    weights = torch.tensor([weight for _, _, weight in used.values()], dtype=torch.float64).repeat_interleave(sizes)
    return Hits(begins, ends[order], numbers[order], weights[order])


def _scores(hits: Hits, lowest: Tensor) -> Tensor:
    """Score of the passage that begins with each hit, (H,) float64.

    Args:
        hits: Of the query.
        lowest: The first hit whose passage holds each hit, (H,) int64; the passages of all up to it do.
    """
    changes = torch.zeros(len(lowest) + 1, dtype=torch.float64)
    # As the n-th occurrence of its term, a hit counts in passages that begin behind the n-th hit of the term before it.
    for share, (later, earlier) in zip(SATURATION, pairwise(hits.before(len(SATURATION))), strict=True):
        low, high = torch.maximum(earlier + 1, lowest), later + 1
        counted = share * hits.weights * (low < high)
        changes.scatter_add_(0, low, counted).scatter_add_(0, high, -counted)
    return changes.cumsum(0)[:-1]


def _bounds(
    text: Tensor, first: int, last: int, budget: int, newlines: Tensor | None, sentences: Tensor | None
) -> tuple[int, int]:
    """First token and end of the passage around the hits from token `first` to the end `last`."""
    earliest = max(first - int(LEAD * (budget - (last - first))), 0)
    start: int | None = None if earliest else 0
    tables = [table for table in (newlines, sentences) if table is not None]
    for table in tables:
        if start is None:
            ends = table[text[earliest - 1 : first]].nonzero()
            start = earliest + int(ends[0]) if len(ends) else None
    start = earliest if start is None else start
    limit = min(start + budget, len(text))
    least = max(last, start + int(LEAST_FILL * budget))
    if limit == len(text):
        return start, limit
    for table in tables:
        ends = table[text[least - 1 : limit]].nonzero()
        if len(ends):
            return start, least + int(ends[-1])
    return start, limit
