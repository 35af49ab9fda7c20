"""Text recall: the passage of remembered text that answers a prompt.

Shape legend: B rows, T remembered tokens, J query tokens, V vocabulary, e tokens of a passage.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hmt.memory.search import Term, find_passage
from hmt.memory.state import MemoryState

WHOLE_QUERY = 256
"""Prompts of up to this many tokens are the query as a whole."""

QUERY_TAIL = 64
"""Last tokens of a longer prompt that are the query."""

FUNCTION_WORDS = frozenset(
    "a about according all also am an and any are as at be been but by can could describe did discuss discussed do "
    "does explain for from give had has have he hello her hi him his how i if in into is it its list many me mentioned "
    "more most much my no not of on or our please provide she so some such summarize tell than thank thanks that the "
    "their them then there these they think this thought to us was we were what when where which who whom whose why "
    "will with would you your".split()
)
"""English words that do not tell what a question is about."""


@dataclass(frozen=True)
class Passage:
    """A run of remembered text that was put into the window.

    Attributes:
        row: Row of the batch.
        start: Tokens of the text before it.
        ids: Its token ids, (e,) int64.
        score: Weight of the terms it shares with the query, in nats.
    """

    row: int
    start: int
    ids: Tensor
    score: float


class SearchTables:
    """Lines, sentences and words of a tokenizer, for text recall.

    Args:
        tokenizer: Of the model.
        size: Token ids V.

    Attributes:
        newlines: True for tokens that end a line, (V,) bool.
        sentences: True for tokens that end a sentence, (V,) bool.
    """

    def __init__(self, tokenizer: Any, size: int) -> None:
        known = min(len(tokenizer), size)
        pieces = [*tokenizer.batch_decode([[token] for token in range(known)]), *[""] * (size - known)]
        ends = [piece.rstrip(string.whitespace + "\"')]*_\u201d\u2019") for piece in pieces]
        self.newlines = torch.tensor(["\n" in piece for piece in pieces])
        self.sentences = torch.tensor([end.endswith((".", "!", "?", "\u3002")) for end in ends])
        self._tokenizer = tokenizer

    def terms(self, query: Tensor) -> list[Term]:
        """Words of a query (J,) in order: each behind a space or not, in any usual case, without function words."""
        words = re.findall(r"\w+", self._tokenizer.decode(query.tolist()))
        words = [word for word in words if word.lower() not in FUNCTION_WORDS]
        if not words:
            return []
        cased = [dict.fromkeys((word, word.lower(), word.capitalize(), word.upper())) for word in words]
        forms = [[form for plain in cases for form in (plain, f" {plain}")] for cases in cased]
        flat = list(dict.fromkeys(form for word in forms for form in word))
        encoded = self._tokenizer(flat, add_special_tokens=False)["input_ids"]
        spellings = {form: tuple(ids) for form, ids in zip(flat, encoded, strict=True) if ids}
        return [frozenset(spellings[form] for form in word if form in spellings) for word in forms]


def remembered_text(state: MemoryState, row: int) -> tuple[Tensor, int]:
    """Token ids of a row that are still remembered, oldest first, (T,) int32, and the number of tokens before them."""
    pending = state.pending_ids[row][state.pending_valid[row]].int()
    text = torch.cat([state.bank.text(row), pending])
    return text, int(state.tokens_read[row]) - len(text)


def choose_passages(
    state: MemoryState,
    row: int,
    query: Tensor,
    budget: int,
    *,
    reach: int,
    sinks: int = 0,
    tables: SearchTables | None = None,
) -> list[Passage]:
    """Find the remembered passage of a row that answers a query; an empty list where nothing is relevant.

    One long passage answers more questions than several short ones (benchmarks/NOTES.md).

    Args:
        state: What was read.
        row: Of the batch.
        query: Token ids, (J,).
        budget: Most tokens of the passage.
        reach: Last tokens of the text that the window holds anyway.
        sinks: First tokens of the text that it holds anyway.
        tables: Words, lines and sentences of the tokenizer; without them each token is a word.
    """
    text, before = remembered_text(state, row)
    first = max(sinks - before, 0)
    text = text[first : max(len(text) - reach, first)]
    query = query.cpu()
    if tables is None:
        found = find_passage(text, [frozenset({(token,)}) for token in query.tolist()], budget)
    else:
        found = find_passage(text, tables.terms(query), budget, tables.newlines, tables.sentences)
    if found is None:
        return []
    return [Passage(row, before + first + found.start, text[found.start : found.end].long(), found.score)]


def query_of(prompt: Tensor) -> Tensor:
    """Query (J,) that a prompt (T,) makes: all of a short prompt, the end of a long one."""
    return prompt if len(prompt) <= WHOLE_QUERY else prompt[-QUERY_TAIL:]


def note_use(state: MemoryState, passages: list[Passage]) -> MemoryState:
    """The state with the use of these passages noted in the bank, for policies that ask for it."""
    if not passages or not state.bank.valid.shape[1]:
        return state
    used = torch.zeros_like(state.bank.usage)
    length = state.bank.tokens.shape[2]
    for passage in passages:
        numbers = torch.arange(passage.start // length, (passage.start + len(passage.ids) - 1) // length + 1)
        used[passage.row] += torch.isin(state.bank.segments[passage.row], numbers)
    return replace(state, bank=replace(state.bank, usage=state.bank.usage + used))
