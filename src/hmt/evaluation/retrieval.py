"""Passages that a question is given instead of those that the memory finds: by BM25, by the key, or at random."""

from __future__ import annotations

import random
from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from hmt.text.answers import TokenQuestion
from hmt.text.questions import Range


def bm25_passages(question: TokenQuestion, budget: int, tokenizer: PreTrainedTokenizerBase) -> list[Range]:
    """Return the two chunks of half the budget that rank highest by BM25, in order of the text.

    Raises:
        ImportError: If bm25s is not installed; names the extra.
    """
    try:
        import bm25s
    except ImportError as error:
        raise ImportError("the row bm25 needs bm25s, the extra bm25: pip install bm25s") from error
    size, length = budget // 2, len(question.context)
    chunks = [(start, min(start + size, length)) for start in range(0, length, size)]
    texts = [str(tokenizer.decode(question.context[start:end].tolist())) for start, end in chunks]
    index = bm25s.BM25()
    index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
    query = bm25s.tokenize([str(tokenizer.decode(question.prompt.tolist()))], show_progress=False)
    best, _ = index.retrieve(query, k=min(2, len(chunks)), show_progress=False)
    return [chunks[number] for number in sorted(best[0].tolist())]


def oracle_passages(question: TokenQuestion, budget: int, tokenizer: PreTrainedTokenizerBase) -> list[Range]:
    """Return the passages around the supporting text, which share the budget evenly, in order of the text."""
    length, found, taken = len(question.context), list[Range](), 0
    share = min(budget // max(len(question.supporting), 1), length)
    for start, end in sorted(question.supporting):
        first = max(min(start - (share - (end - start)) // 2, length - share), 0)
        if first + share > taken:
            found.append((max(first, taken), first + share))
            taken = first + share
    return found


def random_passages(question: TokenQuestion, budget: int, tokenizer: PreTrainedTokenizerBase) -> list[Range]:
    """Return two passages of half the budget from anywhere in the text; the same for the same question."""
    half = min(budget // 2, len(question.context))
    generator = random.Random(question.question.name)
    starts = sorted(generator.randrange(len(question.context) - half + 1) for _ in range(2))
    return [(start, start + half) for start in starts]


RETRIEVERS: dict[str, Callable[[TokenQuestion, int, PreTrainedTokenizerBase], list[Range]]] = {
    "bm25": bm25_passages,
    "oracle": oracle_passages,
    "random": random_passages,
}
"""Question, budget in tokens, tokenizer -> token ranges [start, end) of its context."""
