"""Text recall: passages of remembered text that answer a prompt.

Shape legend: B rows, T remembered tokens, J query tokens, V vocabulary, e tokens of a passage.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hmt.memory.search import Vocabulary, find_passages
from hmt.memory.state import MemoryState

PASSAGES = 1
"""Passages that the budget is divided among: one long passage answers more questions than several short ones."""

WHOLE_QUERY = 256
"""Prompts of up to this many tokens are the query as a whole."""

QUERY_TAIL = 64
"""Last tokens of a longer prompt that are the query."""


@dataclass(frozen=True)
class Passage:
    """A run of remembered text that was put into the window.

    Attributes:
        row: Row of the batch.
        start: Tokens of the text before it.
        ids: Its token ids, (e,) int64.
        score: Weight of the phrases it shares with the query, in nats.
    """

    row: int
    start: int
    ids: Tensor
    score: float


class SearchTables:
    """A tokenizer's knowledge of lines, sentences and words, for text recall.

    Args:
        tokenizer: Of the model.
        size: Token ids V.
    """

    def __init__(self, tokenizer: Any, size: int) -> None:
        known = min(len(tokenizer), size)
        pieces = tokenizer.batch_decode([[token] for token in range(known)])
        self.vocabulary = Vocabulary.of([*pieces, *[""] * (size - known)])
        self._tokenizer = tokenizer

    def spellings(self, query: Tensor) -> list[Tensor]:
        """The words of a query (J,) as they are encoded elsewhere: behind a space or not, capitalized or not."""
        words = re.findall(r"\w+", self._tokenizer.decode(query.tolist()))
        forms = dict.fromkeys(
            form for word in words for plain in (word, word.lower(), word.capitalize()) for form in (plain, f" {plain}")
        )
        encoded = (self._tokenizer(form, add_special_tokens=False)["input_ids"] for form in forms)
        return [torch.tensor(ids, dtype=torch.int32) for ids in encoded if ids]


def remembered_text(state: MemoryState, row: int) -> tuple[Tensor, int]:
    """Token ids of a row that are still remembered, oldest first, (T,) int32, and the number of tokens before them."""
    text, _ = state.bank.text(row)
    pending = state.pending_ids[row][state.pending_valid[row]].int()
    text = torch.cat([text, pending])
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
    """The remembered passages of a row that answer a query, oldest first; none where nothing is relevant.

    Args:
        state: What was read.
        row: Of the batch.
        query: Token ids, (J,).
        budget: Most tokens in all.
        reach: Last tokens of the text that the window holds anyway.
        sinks: First tokens of the text that it holds anyway.
        tables: Words of the tokenizer, and ends of lines and sentences, where passages begin and end if they can.
    """
    text, before = remembered_text(state, row)
    first = max(sinks - before, 0)
    text = text[first : max(len(text) - reach, first)]
    query = query.cpu()
    known: dict[str, Any] = {}
    if tables is not None:
        known = vars(tables.vocabulary) | {"spellings": tables.spellings(query)}
    found = find_passages(text, query, budget, pieces=PASSAGES, **known)
    runs = zip(found.starts.tolist(), found.ends.tolist(), found.scores.tolist(), strict=True)
    return [Passage(row, before + first + start, text[start:end].long(), score) for start, end, score in runs]


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
