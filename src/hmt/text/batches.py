"""Tokens of documents, and the samples that training and evaluation read."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from hmt.text.documents import Document
from hmt.text.store import TokenStore
from hmt.text.stream import token_parts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of a token that is not scored, as everywhere in transformers."""

DOCUMENTS_AT_ONCE = 256
"""Documents whose texts are held together."""

PARTS_AT_ONCE = 4
"""Parts of a long text that a tokenizer works on side by side."""

PART_CHARACTERS = 50_000
"""Characters of such a part."""


Item = TypeVar("Item")
Made = TypeVar("Made", covariant=True)


class Indexable(Protocol[Made]):
    """Things by number, which may be made when they are asked for."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: int, /) -> Made:
        """The one of this number."""


@dataclass(frozen=True)
class Sample:
    """Tokens that are read in one go.

    Attributes:
        ids: (tokens,) int64.
        labels: (tokens,) int64, -100 where a token is not scored.
        supporting: Ranges of tokens [start, end) that the scored ones rest on, where they are known.
        origins: (tokens,) int64, index of the document that a token is from, -1 for filler; None where all are from
            one document.
    """

    ids: Tensor
    labels: Tensor
    supporting: tuple[tuple[int, int], ...] = ()
    origins: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def supporting_segments(self, fresh_tokens: int) -> tuple[int, ...]:
        """Numbers of the segments that the scored tokens rest on, ascending, when so many tokens are read at a time."""
        segments = {
            segment
            for start, end in self.supporting
            for segment in range(start // fresh_tokens, (end - 1) // fresh_tokens + 1)
        }
        return tuple(sorted(segments))

    def scored_segments(self, fresh_tokens: int) -> Tensor:
        """Numbers of the segments whose reading predicts a scored token, ascending, (segments,) int64."""
        places = (self.labels[1:] != IGNORED).nonzero().flatten()  # of the tokens before the scored ones
        return (places // fresh_tokens).unique()


class Readable(Protocol):
    """What samples can be made of: a document, or a question with its answer."""

    @property
    def ids(self) -> Tensor:
        """All tokens, (tokens,) int64."""

    def samples(self, sample_tokens: int) -> Indexable[Sample]:
        """Samples of at most so many tokens."""


@dataclass(frozen=True)
class TokenDocument:
    """A document as token ids.

    Attributes:
        name: Of the document.
        ids: (tokens,) int64.
        origins: As in `Sample`; set where documents were mixed or filler was put in.
    """

    name: str
    ids: Tensor
    origins: Tensor | None = None

    def samples(self, sample_tokens: int) -> Indexable[Sample]:
        """The document cut up; every token is scored, and a rest of at least half a sample is a sample too."""
        return _Parts(self, sample_tokens)


@dataclass(frozen=True)
class _Parts:
    """A document cut into samples, each made when it is asked for: a long text has very many."""

    document: TokenDocument
    sample_tokens: int

    def __len__(self) -> int:
        full, rest = divmod(len(self.document.ids), self.sample_tokens)
        least = max(self.sample_tokens // 2, 2)
        return (full if self.sample_tokens >= least else 0) + (rest >= least)

    def __getitem__(self, index: int) -> Sample:
        start = range(len(self))[index] * self.sample_tokens
        part, origins = slice(start, start + self.sample_tokens), self.document.origins
        ids = self.document.ids[part]
        return Sample(ids, ids, (), None if origins is None else origins[part])


def tokenize(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, num_embeddings: int
) -> list[TokenDocument]:
    """Token ids of documents, with nothing added.

    Text is read and tokenised in parts, and tokens that are many are kept in a file without a name (see `TokenStore`):
    what documents take in memory does not depend on their size.

    Raises:
        ValueError: If a text cannot be written as UTF-8, or the tokenizer gives ids the model has no embedding for.
    """
    store = TokenStore()
    names, ends = [], [0]
    rest = iter(documents)
    while group := list(islice(rest, DOCUMENTS_AT_ONCE)):
        for document, parts in _token_parts(group, tokenizer):
            for ids in parts:
                check_vocabulary(ids, num_embeddings)
                store.add(ids)
            names.append(document.name)
            ends.append(len(store))
    tokens = store.tokens()
    return [TokenDocument(name, tokens[a:b]) for name, a, b in zip(names, ends[:-1], ends[1:], strict=True)]


def _token_parts(
    documents: list[Document], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[Document, Iterable[list[int]]]]:
    """Token ids of each document: of those in memory all in one call, of files many parts in one."""
    held = [document for document in documents if isinstance(document.content, str)]
    for document in held:
        check_text(document.name, document.text)
    texts = [document.text for document in held]
    together = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else ())
    for document in documents:
        if isinstance(document.content, str):
            yield document, [next(together)]
        else:
            yield document, token_parts(document.pieces(), tokenizer, PARTS_AT_ONCE, PART_CHARACTERS)


def running_text(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, tokens: int, num_embeddings: int
) -> Tensor:
    """So many tokens, (tokens,) int64: document after document, and again from the first if they are too short."""
    parts: list[Tensor] = []
    missing = tokens
    for document in documents:
        (read,) = tokenize([document], tokenizer, num_embeddings)
        parts.append(read.ids[:missing])
        missing -= len(parts[-1])
        if not missing:
            return torch.cat(parts)
    once = torch.cat(parts)
    if not len(once):
        raise ValueError("the text has no tokens")
    return once.repeat(-(-tokens // len(once)))[:tokens]


def check_text(name: str, text: str) -> None:
    """Make sure that a text can be tokenised: what was decoded from other bytes than UTF-8 may hold lone surrogates.

    Raises:
        ValueError: If it does; names the text and the place.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} is not UTF-8 text at character {error.start}") from error


def check_vocabulary(ids: Iterable[int], num_embeddings: int) -> None:
    """Make sure that a model has an embedding for each token.

    Raises:
        ValueError: If it has not; names the token and the number of embeddings.
    """
    if (highest := max(ids, default=0)) >= num_embeddings:
        raise ValueError(
            f"the vocabulary does not fit: the tokenizer gives token {highest}, the model has {num_embeddings}"
        )


@dataclass(frozen=True)
class Batch:
    """Equally long rows of tokens.

    Attributes:
        input_ids: (B, T) int64.
        attention_mask: (B, T) bool.
        labels: (B, T) int64, -100 where a token is not scored.
        supporting: Segments that hold what is needed, (B, S) or (B, S, S) bool as `forward` takes them, or None where
            they are not known.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    supporting: Tensor | None = None

    def split(self, rows: int) -> list[Batch]:
        """The batch in parts of at most so many rows."""
        tensors = [tensor for tensor in vars(self).values() if tensor is not None]
        return [Batch(*part) for part in zip(*(tensor.split(rows) for tensor in tensors), strict=True)]


def cut(texts: Sequence[Readable], sample_tokens: int) -> Indexable[Sample]:
    """Samples of at most so many tokens of all texts; none crosses texts.

    Raises:
        ValueError: If no text is long enough for one sample.
    """
    parts: list[Any] = [text.samples(sample_tokens) for text in texts]
    samples: Any = ConcatDataset(parts)
    if not len(samples):
        longest = max(len(text.ids) for text in texts)
        raise ValueError(
            f"no document is long enough to train on: a sample has {sample_tokens} tokens, the longest document "
            f"{longest}; lower --bptt_depth, --segment_length or --test_length"
        )
    return samples  # type: ignore[no-any-return]


def shuffled(samples: Indexable[Item], seed: int | None, skip: int = 0) -> Iterator[Item]:
    """Samples without end, in an order drawn anew each time all have been read; the first `skip` are left out.

    Args:
        samples: To be drawn from.
        seed: Of the order; None to take them as they stand.
        skip: How many were read before.
    """
    order = random.Random(seed)
    while True:
        epoch = list(range(len(samples)))
        if seed is not None:
            order.shuffle(epoch)
        for index in epoch[skip:]:
            yield samples[index]
        skip = max(skip - len(epoch), 0)


def scored_targets(samples: Sequence[Sample], loss_tokens: int | None) -> int:
    """Targets that count in the loss of samples; the first token of a sample is no target."""
    total = 0
    for sample in samples:
        first = max(1, len(sample) - loss_tokens) if loss_tokens is not None else 1
        total += int((sample.labels[first:] != IGNORED).sum())
    return total


def pad(samples: Sequence[Sample], fresh_tokens: int | None = None) -> Batch:
    """Samples of different length as one batch, padded on the right.

    Args:
        samples: One a row.
        fresh_tokens: Tokens of a segment, to tell which segments those that predict scored tokens rest on.
    """
    lengths = torch.tensor([len(sample) for sample in samples])
    input_ids = torch.nn.utils.rnn.pad_sequence([sample.ids for sample in samples], batch_first=True)
    labels = torch.nn.utils.rnn.pad_sequence(
        [sample.labels for sample in samples], batch_first=True, padding_value=IGNORED
    )
    supporting = None
    if fresh_tokens is not None and any(sample.supporting for sample in samples):
        segments = -(-input_ids.shape[1] // fresh_tokens)
        supporting = torch.zeros(len(samples), segments, segments, dtype=torch.bool)
        for row, sample in enumerate(samples):
            asking, resting = sample.scored_segments(fresh_tokens), sample.supporting_segments(fresh_tokens)
            supporting[row, asking[:, None], torch.tensor(resting, dtype=torch.long)] = True
    return Batch(input_ids, torch.arange(input_ids.shape[1]) < lengths[:, None], labels, supporting)


@dataclass(frozen=True)
class Span:
    """Tokens [start, end) of a document, to be predicted at every context length.

    Attributes:
        document: Index of the document.
        start: First scored token.
        end: One past the last scored token, where every sample of the span ends.
    """

    document: int
    start: int
    end: int

    def sample(self, ids: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The `length` tokens before `end`, and their labels: -100 before `start`."""
        window = ids[self.end - length : self.end]
        labels = window.clone()
        labels[: length - (self.end - self.start)] = IGNORED
        return window, labels


def aligned_length(length: int, target_tokens: int, fresh_tokens: int) -> int:
    """Tokens to read so that whole segments stand before the targets: `length`, or less than a segment below it.

    Where the targets fall in their segments decides how much of the near text the model sees, and moves perplexity
    more than any memory does. So they start at the beginning of a segment at every context length. Where not even one
    segment fits before them, the length stays as it is.
    """
    segments = (length - target_tokens) // fresh_tokens
    return segments * fresh_tokens + target_tokens if segments else length


def plan_spans(
    documents: list[TokenDocument], longest: int, target_tokens: int, spans_per_document: int, max_documents: int | None
) -> list[Span]:
    """One fixed set of target tokens: spread over each document that has the longest context in front of them.

    Args:
        documents: Candidates, in order.
        longest: Longest context length, targets included.
        target_tokens: Tokens per span.
        spans_per_document: Spans per document at most; they do not overlap.
        max_documents: Documents used at most.

    Raises:
        ValueError: If no document is long enough.
    """
    long_enough = [index for index, document in enumerate(documents) if len(document.ids) >= longest]
    if not long_enough:
        most = max(len(document.ids) for document in documents)
        raise ValueError(
            f"no document has {longest} tokens, the longest of --lengths; the longest of {len(documents)} has {most}"
        )
    spans = []
    for index in long_enough[:max_documents]:
        room = len(documents[index].ids) - longest
        count = min(spans_per_document, 1 + room // target_tokens)
        for number in range(count):
            end = longest + (room * number // max(count - 1, 1) if count > 1 else 0)
            spans.append(Span(index, end - target_tokens, end))
    return spans
