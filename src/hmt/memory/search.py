"""Lexical search: the passages of remembered text that answer a query.

The text is divided into lines; a passage is a few whole lines, and one may begin at every line. It is scored like in
BM25, by the phrases it shares with the query: one to three tokens in a row, by how rare they are in the text, with
saturation and length normalization. No model and no index: a few passes over the token ids with tables over the
vocabulary, then work on what matched.

Shape legend: T tokens of text, J query tokens, V vocabulary, U distinct phrases of one length, H hits, K passages that
may be chosen, P passages that are.
"""

from __future__ import annotations

import string
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

PHRASE_WEIGHTS = (1.0, 0.5, 0.25)
"""Weight of a phrase of one, two and three tokens; a longer one counts on top of the shorter ones in it."""

RARITY_WINDOW = 64
"""Tokens per document, for inverse document frequencies; a phrase of one in every document has no weight."""

SATURATION = 0.4
"""Weight of a phrase's second occurrence in a passage; further ones have none."""

LENGTH_NORMALIZATION = 0.25
"""As b in BM25: 0 does not favor short passages, 1 divides by length."""

LEAD = 0.25
"""Share of a passage's spare tokens that may precede its first hit; answers follow more often than they lead."""

FRAGMENT_WEIGHT = 0.3
"""Weight of a token that is a part of a word of the query, alone."""

QUERY_LENGTHS = 2
"""Least tokens of a passage per token of the query: a long question shares words with more than one line."""

LONGEST_QUERY = 512
"""A query is cut to its last so many tokens."""

MOST_HITS = 4096
"""Most matches of phrases of one length that are scored, rarest phrases first; at least one in 32 tokens of text."""

STEPS = 1024
"""Weights are whole multiples of 1 / STEPS nats, so sums are exact in any order and equal passages tie."""

THRESHOLD = 0.4
"""Least share of the query's weight that the best passage must have."""

FUNCTION_WORDS = frozenset(
    "a about all also am an and any are as at be been but by can could did do does for from had has have he her him "
    "his how i if in into is it its many me mentioned more most much my no not of on or our please she so some such "
    "tell than that the their them then there these they this to us was we were what when where which who whom whose "
    "why will with would you your".split()
)
"""English words that do not tell what a question is about."""


@dataclass(frozen=True)
class Passages:
    """Runs of a text, oldest first; none if nothing in the text is relevant.

    Attributes:
        starts: First token of each, (P,) int64.
        ends: One past its last token, (P,) int64.
        scores: Weight of the phrases it shares with the query, (P,) float32, in nats, normalized by length.
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
class Vocabulary:
    """Tables of a tokenizer that the search reads.

    Attributes:
        newlines: True for tokens that end a line, (V,) bool.
        sentences: True for tokens that end a sentence, (V,) bool.
        words: Id of the word each token stands for, whatever its case and its space, (V,) int32; negative for words
            that have no weight.
    """

    newlines: Tensor
    sentences: Tensor
    words: Tensor

    @classmethod
    def of(cls, pieces: Sequence[str], ignored: Collection[str] = FUNCTION_WORDS) -> Vocabulary:
        """Make the tables from the text of each token, `pieces`; `ignored` words and punctuation have no weight."""
        ids: dict[str, int] = {}
        words = []
        for number, piece in enumerate(pieces):
            word = piece.strip().lower() or piece
            bare = word.strip(string.punctuation + string.whitespace)
            identity = ids.setdefault(word, number)
            words.append(-1 - identity if not bare or bare in ignored else identity)
        ends = [piece.rstrip(string.whitespace + "\"')]*_\u201d\u2019") for piece in pieces]
        return cls(
            torch.tensor(["\n" in piece for piece in pieces], dtype=torch.bool),
            torch.tensor([end.endswith((".", "!", "?", "\u3002")) for end in ends], dtype=torch.bool),
            torch.tensor(words, dtype=torch.int32),
        )


@dataclass(frozen=True)
class Hits:
    """The phrases that a text shares with a query.

    Attributes:
        begins: First token of each hit, (H,) int64.
        ends: One past its last token, (H,) int64.
        weights: Weight of its phrase, (H,) int32, in 1 / STEPS nats.
        previous: First token of the same phrase's hit before this one, (H,) int64; -1 if there is none.
        before: The same of the hit before that one.
        total: Weight of all distinct words of the query, in the text or not, in 1 / STEPS nats.
    """

    begins: Tensor
    ends: Tensor
    weights: Tensor
    previous: Tensor
    before: Tensor
    total: int


def find_passages(
    text: Tensor,
    query: Tensor,
    budget: int,
    *,
    newlines: Tensor | None = None,
    sentences: Tensor | None = None,
    words: Tensor | None = None,
    spellings: Sequence[Tensor] = (),
    pieces: int = 4,
    threshold: float = THRESHOLD,
) -> Passages:
    """Find the passages of a text that share most with a query.

    Args:
        text: Remembered token ids, oldest first, (T,), any integer dtype, on the CPU.
        query: Token ids of the question, (J,); of a longer one than `LONGEST_QUERY` its end.
        budget: Most tokens of all passages together.
        newlines: True for tokens that end a line, (V,) bool; passages begin and end with a line that fits the budget.
        sentences: True for tokens that end a sentence, (V,) bool; they divide lines that are longer than the budget.
        words: Id of the word each token stands for, (V,), so that " Key" matches "key"; negative for words that have
            no weight. Without it every token stands for itself.
        spellings: Words of the query encoded otherwise, one tensor each, e.g. without the space before it, since
            many tokenizers divide a word differently at the start of a line.
        pieces: Number of passages to divide the budget among: each has up to `budget // pieces` tokens, or one line
            if that is longer. There may be more if they are shorter.
        threshold: Least share of the query's weight (0 to 1) that the best passage must have; 0 for whatever shares
            anything.

    Returns:
        Passages that do not overlap, oldest first. Of equal passages the newest come first to use the budget.

    Raises:
        ValueError: If `budget` or `pieces` is below 1.
    """
    if budget < 1 or pieces < 1:
        raise ValueError(f"budget and pieces must be at least 1, got {budget} and {pieces}")
    if not len(text) or not len(query):
        return _passages([], 0.0)
    text, query = text.int(), query[-LONGEST_QUERY:]
    size = min(max(budget // pieces, QUERY_LENGTHS * len(query), 1), budget)
    edges, lines = divide(text, budget, max(size // 4, 1), newlines, sentences)
    starts = edges[:-1]
    units = torch.zeros(len(text) + 1, dtype=torch.int32)
    units[edges[1:]] = 1
    units = units.cumsum(0, dtype=torch.int32)
    # A passage from each unit of the text on: to the end of its line, or the units that fit in its size; one at least.
    longest = torch.maximum(torch.minimum(lines, starts + budget), starts + size).clamp(max=len(text))
    reach = torch.maximum(units[longest], torch.arange(1, len(edges)))
    ends = edges[reach]
    hits = shared_phrases(text, query.int(), words, spellings)
    shared = score(hits, units, reach)
    # A query is taken to weigh as much as one word that is not in the text, or frequent words alone would cover it.
    least = STEPS * float(_rarity(torch.zeros(1), len(text)))
    coverage = min(int(shared.max()) / max(hits.total, least), 1.0)
    if coverage < threshold:
        return _passages([], coverage)
    lengths = (ends - starts).float()
    scores = shared / (1 - LENGTH_NORMALIZATION + LENGTH_NORMALIZATION * lengths / lengths.mean())
    chosen: list[tuple[int, int, float]] = []
    left, allowed = budget, shared > 0
    while 2 * left >= size:
        allowed &= ends - starts <= left
        ranked = scores.masked_fill(~allowed, 0)
        best = float(ranked.max())
        if best == 0:
            break
        number = int((ranked == best).nonzero()[-1])
        first = int(hits.begins[torch.searchsorted(hits.begins, starts[number])])
        number = _lead_in(number, first, size, starts, shared, allowed)
        start, end = int(starts[number]), int(ends[number])
        chosen.append((start, end, best))
        left -= end - start
        allowed &= (ends <= start) | (starts >= end)
    return _passages(chosen, coverage)


def _passages(chosen: Sequence[tuple[int, int, float]], coverage: float) -> Passages:
    rows = sorted(chosen)
    places = torch.tensor([row[:2] for row in rows], dtype=torch.int64).reshape(-1, 2)
    return Passages(places[:, 0], places[:, 1], torch.tensor([row[2] for row in rows]) / STEPS, coverage)


def _lead_in(number: int, first: int, size: int, starts: Tensor, shared: Tensor, allowed: Tensor) -> int:
    """The earliest passage before `number` that shares as much and leads up to the token `first` with few others."""
    while number and allowed[number - 1] and shared[number - 1] >= shared[number]:
        if first - int(starts[number - 1]) > LEAD * size:
            break
        number -= 1
    return number


def divide(
    text: Tensor, limit: int, step: int, newlines: Tensor | None, sentences: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Divide a text into units: lines; those above `limit` tokens into sentences; those above it every `step` tokens.

    Returns:
        Where units begin, and the end of the text, (K + 1,) int64, ascending; and where the line of each unit ends,
        (K,) int64: where the unit ends without `newlines`.
    """
    edges = torch.tensor([0, len(text)])
    lines = edges[1:]
    tables = [(kind, table) for kind, table in ((1, sentences), (2, newlines)) if table is not None]
    if tables:
        kinds = torch.zeros(len(tables[0][1]), dtype=torch.int8)
        for kind, table in tables:
            kinds[table] = kind
        told = kinds.index_select(0, text[:-1])
        places = told.nonzero()[:, 0]
        line = told[places] == 2
        bounds = torch.cat([edges[:1], places[line] + 1, edges[1:]])
        number = line.cumsum(0)
        kept = line | (bounds[number + 1] - bounds[number] > limit)
        edges = torch.cat([edges[:1], places[kept] + 1, edges[1:]])
        lines = bounds[torch.cat([number.new_zeros(1), number[kept]]) + 1]
    gaps = edges.diff()
    cuts = torch.where(gaps > limit, (gaps - 1).div(step, rounding_mode="floor"), 0)
    if int(cuts.sum()):
        index = torch.arange(int(cuts.sum())) - (cuts.cumsum(0) - cuts).repeat_interleave(cuts)
        starts = torch.cat([edges[:-1], edges[:-1].repeat_interleave(cuts) + step * (index + 1)])
        lines = torch.cat([lines, lines.repeat_interleave(cuts)])
        starts, order = starts.sort()
        edges, lines = torch.cat([starts, edges[-1:]]), lines[order]
    return edges, edges[1:] if newlines is None else lines


def shared_phrases(text: Tensor, query: Tensor, words: Tensor | None = None, spellings: Sequence[Tensor] = ()) -> Hits:
    """Find the phrases of a query in a text, ordered by position.

    Args:
        text: Token ids, (T,) int32.
        query: Token ids, (J,) int32.
        words: Id of the word each token stands for, (V,), negative for those without weight.
        spellings: Words of the query encoded otherwise; they find hits but do not add to the weight of the query.
    """
    spelled = torch.cat([query, *(one.int() for one in spellings)])
    largest = int(torch.maximum(text.max(), spelled.max())) + 1
    table = torch.arange(largest, dtype=torch.int32) if words is None else words.int()
    lowest = int(table.min())
    distinct, asked = table.index_select(0, spelled).unique(return_inverse=True)
    asked = asked + 1
    # Number each distinct word of the query from 1; 0 is any other word.
    numbers = _numbering(distinct - lowest, int(table.max()) - lowest + 1).index_select(0, table - lowest)
    word_of_token = numbers.index_select(0, text)
    word_asked, words_asked = asked, len(distinct) + 1

    found: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []
    told, places, count, total = word_of_token, torch.arange(0), len(distinct), 0
    most = most_of_word = torch.zeros(0)
    for length in range(1, min(len(PHRASE_WEIGHTS), len(spelled), len(text)) + 1):
        if length > 1:
            # A phrase is the phrase without its last token, and the last token: a pair of numbers, numbered again.
            pairs, asked = (asked[:-1] * words_asked + word_asked[length - 1 :]).unique(return_inverse=True)
            asked = asked + 1
            table = _numbering(pairs, (count + 1) * words_asked)
            # It is worth no more than its words together: "is the name of" says no more than "name".
            most = torch.cat([most[:1], most[pairs // words_asked] + most_of_word[pairs % words_asked]])
            count = len(pairs)
            if length == 2:
                told = table.index_select(0, told[:-1].int() * words_asked + told[1:])
                places = told.nonzero()[:, 0]
                told = told[places]
            else:
                inside = places <= len(text) - length
                places = places[inside]
                told = table.index_select(0, told[inside].int() * words_asked + word_of_token[places + length - 1])
                places, told = places[told > 0], told[told > 0]
        shares = _shares(length, count, asked, len(query), spellings)
        times = torch.bincount(told, minlength=count + 1)
        rarity = _rarity(times, len(text))
        if length == 1:
            rarity[1:][distinct < 0] = 0
            most = most_of_word = rarity
        weights = (shares * STEPS * torch.minimum(rarity, most)).round().int()
        weights[0] = 0
        if length == 1:
            total = int(weights[asked[: len(query)].unique()].sum())
        weights[_too_frequent(weights, times, max(MOST_HITS, len(text) // 32))] = 0
        counted = (weights > 0).index_select(0, told.int()).nonzero()[:, 0]
        begins, phrases = counted if length == 1 else places[counted], told[counted]
        found.append((begins, begins + length, weights[phrases.long()], *_previous(begins, phrases)))
    begins, ends, weights, previous, before = (torch.cat(columns) for columns in zip(*found, strict=True))
    order = begins.argsort(stable=True)
    return Hits(begins[order], ends[order], weights[order], previous[order], before[order], total)


def _shares(length: int, count: int, asked: Tensor, first: int, spellings: Sequence[Tensor]) -> Tensor:
    """Share of its rarity that each phrase of a length weighs, (count + 1,), with the spellings from `first` on."""
    shares = torch.full((count + 1,), PHRASE_WEIGHTS[length - 1])
    begins = list(zip(accumulate((len(one) for one in spellings), initial=first), spellings, strict=False))
    if length == 1:
        for begin, one in begins:
            if len(one) > 1:
                shares[asked[begin : begin + len(one)]] = FRAGMENT_WEIGHT
    shares[asked[[begin for begin, one in begins if len(one) == length]]] = PHRASE_WEIGHTS[0]
    return shares


def _too_frequent(weights: Tensor, times: Tensor, limit: int) -> Tensor:
    """Phrases that weigh least and match most: those beyond a number of matches of the weightier ones."""
    order = weights.argsort(descending=True)
    matches = (times * (weights > 0))[order].cumsum(0)
    return order[matches > limit]


def _numbering(keys: Tensor, size: int) -> Tensor:
    """A table that numbers keys (U,) from 1, and anything else 0, (size,) int16."""
    table = torch.zeros(size, dtype=torch.int16)
    table[keys.long()] = torch.arange(1, len(keys) + 1, dtype=torch.int16)
    return table


def _rarity(times: Tensor, tokens: int) -> Tensor:
    """Inverse document frequency, in nats, of phrases that a text of so many tokens holds so many times."""
    documents = tokens / RARITY_WINDOW + 1
    return (1 + (documents - times + 0.5).clamp(min=0) / (times + 0.5)).log()


def _previous(places: Tensor, phrases: Tensor) -> tuple[Tensor, Tensor]:
    """The last place of the same phrase before each place, and the last but one, each (H,) int64; -1 for none."""
    ordered, order = phrases.sort(stable=True)
    result = torch.full_like(places, -1), torch.full_like(places, -1)
    for back, earlier in enumerate(result, start=1):
        same = ordered[back:] == ordered[:-back]
        earlier[order[back:][same]] = places[order[:-back][same]]
    return result


def score(hits: Hits, units: Tensor, reach: Tensor) -> Tensor:
    """Weight of the phrases that passages share with a query, before length normalization.

    Args:
        hits: Of the query.
        units: Number of the unit that each token is in, and the number of units, (T + 1,) int32.
        reach: One past the last unit of the passage that begins with each unit, ascending, (K,) int64.

    Returns:
        (K,) int32, in 1 / STEPS nats.
    """
    # How many passages end before each unit does: the first passages that hold it whole.
    earliest = torch.bincount(reach, minlength=len(reach) + 1).cumsum(0)
    whole = earliest[units[hits.ends - 1]]
    last, second, third = (
        torch.where(at < 0, 0, units[at.clamp(min=0)] + 1).long() for at in (hits.begins, hits.previous, hits.before)
    )
    # A hit counts for the passages that hold it whole: in full for those that begin behind the hit of its phrase
    # before it, and less for those that hold that one too but not the one before.
    changes = torch.zeros(len(reach) + 1, dtype=torch.int32)
    repeated = (SATURATION * hits.weights).round().int()
    for low, high, weights in ((second, last, hits.weights), (third, second, repeated)):
        low = torch.maximum(low, whole)
        counted = weights * (low < high)
        changes.scatter_add_(0, low, counted).scatter_add_(0, high, -counted)
    return changes.cumsum(0, dtype=torch.int32)[:-1]
