"""Documents made harder to remember: two mixed, or filler between; where each token is from is kept.

A memory that tells topics apart recalls, in a segment of one document, what it read of the same document, and not of
the other or of filler (see `metrics/topics.py`).
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
"""Documents of a stream that are read at most in search of long ones: a stream need not end."""


def augment(
    documents: Sequence[TokenDocument], options: AugmentOptions, tokenizer: PreTrainedTokenizerBase, num_embeddings: int
) -> list[TokenDocument]:
    """Documents as `interleave_dataset` or `dilate_dataset` ask for them; as they are where neither is set.

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
    """Documents as tokens, mixed or dilated as asked for, read until enough of them are long enough.

    Args:
        documents: Read one by one, and no further than needed; of a stream (`streaming`) at most MAX_STREAMED.
        options: Say how documents are mixed or dilated, and whether they are a stream.
        tokenizer: Of the model.
        num_embeddings: Of the model.
        tokens: That make a document long enough, after mixing.
        count: So many of these are enough; all documents where None.

    Returns:
        All that were read, the short ones too.

    Raises:
        ValueError: As `augment` and `tokenize` do.
    """
    if options.streaming:
        documents = islice(documents, MAX_STREAMED)
    if count is None:
        return augment(tokenize(documents, tokenizer, num_embeddings), options, tokenizer, num_embeddings)
    read: list[TokenDocument] = []
    found, rest = 0, iter(documents)
    while found < count and (pair := list(islice(rest, 2 if options.interleave_dataset else 1))):
        pieces = tokenize(pair, tokenizer, num_embeddings)
        read += pieces
        mixed = augment(pieces, options, tokenizer, num_embeddings)
        found += sum(len(document.ids) >= tokens for document in mixed)
    return augment(read, options, tokenizer, num_embeddings)


def interleave(documents: Sequence[TokenDocument], tokens: int) -> list[TokenDocument]:
    """Every two documents as one: so many tokens of the first, so many of the second, and so on.

    What the longer one has over follows at the end; a last document without a partner stays alone.

    Args:
        documents: In order; `origins` of the result are their indices.
        tokens: Of each in turn.
    """
    mixed = []
    for first in range(0, len(documents), 2):
        pair = documents[first : first + 2]
        parts: list[tuple[Tensor, int]] = []
        turns = max(-(-len(document.ids) // tokens) for document in pair)
        for turn in range(turns):
            for offset, document in enumerate(pair):
                parts.append((document.ids[turn * tokens : (turn + 1) * tokens], first + offset))
        mixed.append(_joined(" + ".join(document.name for document in pair), parts))
    return mixed


def dilate(documents: Sequence[TokenDocument], tokens: int, filler: int) -> list[TokenDocument]:
    """Documents with so many tokens of filler after every so many of their own.

    Args:
        documents: In order; `origins` of the result are their indices, -1 for filler.
        tokens: Of the document and of filler in turn.
        filler: Token id.
    """
    stretched = []
    for number, document in enumerate(documents):
        parts: list[tuple[Tensor, int]] = []
        for part in document.ids.split(tokens):
            parts += [(part, number), (part.new_full((tokens,), filler), FILLER)]
        stretched.append(_joined(document.name, parts))
    return stretched


def _joined(name: str, parts: Sequence[tuple[Tensor, int]]) -> TokenDocument:
    """Parts of documents, each with the index of its document, as one."""
    ids = torch.cat([part for part, _ in parts])
    origins = torch.cat([torch.full((len(part),), origin) for part, origin in parts])
    return TokenDocument(name, ids, origins)
