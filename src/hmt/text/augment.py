"""Documents made harder to remember: two mixed, or filler between; every token keeps the document it is from.

A memory that tells topics apart recalls, in a segment of one document, text of the same document, and not of the other
or of filler.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hmt.options import AugmentOptions
from hmt.text.batches import TokenDocument, check_vocabulary, tokenize
from hmt.text.documents import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILLER = -1
"""Origin of a token that is from no document."""

MAX_STREAMED = 10_000
"""Most documents of a stream that are searched for long ones: a stream need not end."""


def augment(
    documents: Sequence[TokenDocument], options: AugmentOptions, tokenizer: PreTrainedTokenizerBase, num_embeddings: int
) -> list[TokenDocument]:
    """Mix or dilate documents as `interleave_dataset` or `dilate_dataset` ask for.

    Raises:
        ValueError: If the filler is no token, or one the model has no embedding for.
    """
    if options.interleave_dataset:
        return interleave(documents, options.interleave_len)
    if options.dilate_dataset:
        ids = tokenizer(options.dilate_str, add_special_tokens=False)["input_ids"]
        if not ids:
            raise ValueError(f"dilate_str must be some text, the tokenizer makes nothing of {options.dilate_str!r}")
        check_vocabulary(ids[:1], num_embeddings)
        return dilate(documents, options.dilate_len, ids[0])
    return list(documents)


def read_enough(
    documents: Iterable[Document],
    options: AugmentOptions,
    tokenizer: PreTrainedTokenizerBase,
    num_embeddings: int,
    tokens: int,
    count: int | None,
) -> list[TokenDocument]:
    """Tokenize and augment documents until `count` of them have `tokens` tokens; all documents where `count` is None.

    Returns:
        All documents that were read, the short ones too.

    Raises:
        ValueError: As `augment` and `tokenize` do.
    """
    if options.streaming:
        documents = islice(documents, MAX_STREAMED)
    if count is None:
        return augment(tokenize(documents, tokenizer, num_embeddings), options, tokenizer, num_embeddings)
    read: list[TokenDocument] = []
    found, rest = 0, iter(documents)
    while found < count and (group := list(islice(rest, 2 if options.interleave_dataset else 1))):
        tokenized = tokenize(group, tokenizer, num_embeddings)
        read += tokenized
        mixed = augment(tokenized, options, tokenizer, num_embeddings)
        found += sum(len(document.ids) >= tokens for document in mixed)
    return augment(read, options, tokenizer, num_embeddings)


def interleave(documents: Sequence[TokenDocument], tokens: int) -> list[TokenDocument]:
    """Mix every two documents, `tokens` tokens of each in turn; the rest of the longer one follows at the end."""
    mixed = []
    for first in range(0, len(documents), 2):
        pair = documents[first : first + 2]
        parts: list[tuple[Tensor, int]] = []
        for start in range(0, max(len(document.ids) for document in pair), tokens):
            for offset, document in enumerate(pair):
                parts.append((document.ids[start : start + tokens], first + offset))
        mixed.append(_joined(" + ".join(document.name for document in pair), parts))
    return mixed


def dilate(documents: Sequence[TokenDocument], tokens: int, filler: int) -> list[TokenDocument]:
    """Put `tokens` tokens of filler, a token id, after every `tokens` tokens of a document."""
    stretched = []
    for number, document in enumerate(documents):
        parts: list[tuple[Tensor, int]] = []
        for part in document.ids.split(tokens):
            parts += [(part, number), (part.new_full((tokens,), filler), FILLER)]
        stretched.append(_joined(document.name, parts))
    return stretched


def _joined(name: str, parts: Sequence[tuple[Tensor, int]]) -> TokenDocument:
    """One document of parts, each with the index of its own document."""
    ids = torch.cat([part for part, _ in parts])
    origins = torch.cat([torch.full((len(part),), origin) for part, origin in parts])
    return TokenDocument(name, ids, origins)
