"""Tokens of documents, and the samples that training and evaluation read."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
from tempfile import SpooledTemporaryFile
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import ConcatDataset

from hmt.text.documents import Document
from hmt.text.encoding import beginning_token_ids, token_parts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of a token that is not scored, as everywhere in transformers."""

DOCUMENTS_AT_ONCE = 256
"""Documents that are tokenized in one call."""

SHORT_CHARACTERS = 100_000
"""Texts up to this length are tokenized whole."""

HELD_BYTES = 1 << 23
"""Token ids held in memory before they go to a temporary file."""

Item = TypeVar("Item")


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
        """Numbers of the segments, of `fresh_tokens` each, that the scored tokens rest on, ascending."""
        segments = {
            segment
            for start, end in self.supporting
            for segment in range(start // fresh_tokens, (end - 1) // fresh_tokens + 1)
        }
        return tuple(sorted(segments))

    def scored_segments(self, fresh_tokens: int) -> Tensor:
        """Numbers of the segments whose reading predicts a scored token, ascending, (segments,) int64."""
        predicting = (self.labels[1:] != IGNORED).nonzero().flatten()
        return (predicting // fresh_tokens).unique()


class Readable(Protocol):
    """Anything that samples are made of: a document, or a question with its answer."""

    @property
    def ids(self) -> Tensor:
        """All tokens, (tokens,) int64."""

    def samples(self, sample_tokens: int) -> Sequence[Sample]:
        """Samples of at most so many tokens."""


@dataclass(frozen=True)
class TokenDocument:
    """A document as token ids.

    Attributes:
        name: Name of the document.
        ids: (tokens,) int64.
        origins: As in `Sample`; set where documents were mixed or filler was put in.
    """

    name: str
    ids: Tensor
    origins: Tensor | None = None

    def samples(self, sample_tokens: int) -> Sequence[Sample]:
        """The document cut up; every token is scored, and a rest of at least half a sample is a sample too."""
        return _Parts(self, sample_tokens)


@dataclass(frozen=True)
class _Parts(Sequence[Sample]):
    """A document cut into samples, each made when it is asked for: a long text has very many."""

    document: TokenDocument
    sample_tokens: int

    def __len__(self) -> int:
        full, rest = divmod(len(self.document.ids), self.sample_tokens)
        least = max(self.sample_tokens // 2, 2)
        return (full if self.sample_tokens >= least else 0) + (rest >= least)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        start = range(len(self))[index] * self.sample_tokens
        part, origins = slice(start, start + self.sample_tokens), self.document.origins
        ids = self.document.ids[part]
        return Sample(ids, ids, (), None if origins is None else origins[part])


def tokenize(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, num_embeddings: int
) -> list[TokenDocument]:
    """Token ids of documents, each after the BOS token where the tokenizer adds one.

    Text is read in parts, and many ids are kept in a temporary file without a name (in TMPDIR, 8 bytes a token): the
    memory needed does not depend on the size of the documents.

    Raises:
        OSError: If a file cannot be read, or the temporary file not written.
        ValueError: If a text is not UTF-8, or the tokenizer gives ids the model has no embedding for.
    """
    beginning = beginning_token_ids(tokenizer)
    names, ends = [], [0]
    rest = iter(documents)
    with SpooledTemporaryFile(HELD_BYTES, prefix="hmt-tokens-") as file:
        while group := list(islice(rest, DOCUMENTS_AT_ONCE)):
            for document, parts in zip(group, _token_parts(group, tokenizer), strict=True):
                tokens = 0
                for ids in chain([beginning], parts):
                    check_vocabulary(ids, num_embeddings)
                    file.write(np.array(ids, dtype=np.int64).tobytes())
                    tokens += len(ids)
                names.append(document.name)
                ends.append(ends[-1] + tokens)
        all_ids = _stored(file, ends[-1])
    return [TokenDocument(name, all_ids[a:b]) for name, a, b in zip(names, ends[:-1], ends[1:], strict=True)]


def _stored(file: SpooledTemporaryFile[bytes], tokens: int) -> Tensor:
    """The ids in a file, (tokens,) int64; a long file is mapped into memory."""
    if tokens * 8 <= HELD_BYTES:
        file.seek(0)
        return torch.from_numpy(np.frombuffer(file.read(), np.int64).copy())
    file.flush()
    return torch.from_numpy(np.memmap(file, np.int64, mode="c", shape=(tokens,)))  # type: ignore[call-overload]


def _token_parts(documents: list[Document], tokenizer: PreTrainedTokenizerBase) -> Iterator[Iterable[list[int]]]:
    """Token ids of each document in parts: short texts in one call, long ones and files window by window."""
    short: list[str] = []
    for document in documents:
        if isinstance(document.content, str):
            check_text(document.name, document.content)
            if len(document.content) <= SHORT_CHARACTERS:
                short.append(document.content)
    encoded = iter(tokenizer(short, add_special_tokens=False)["input_ids"] if short else ())
    for document in documents:
        if isinstance(document.content, str) and len(document.content) <= SHORT_CHARACTERS:
            yield [next(encoded)]
        else:
            yield token_parts(document.pieces(), tokenizer)


def text_ids(name: str, text: str, tokenizer: PreTrainedTokenizerBase, num_embeddings: int, *, begins: bool) -> Tensor:
    """Token ids of one text, (tokens,) int64.

    Args:
        name: Name of the text, for messages.
        text: The text.
        tokenizer: Tokenizer of the model.
        num_embeddings: Embeddings of the model.
        begins: True if nothing is read before the text: BOS comes first where the tokenizer adds it.

    Raises:
        ValueError: As `tokenize` does.
    """
    check_text(name, text)
    ids = beginning_token_ids(tokenizer) if begins else []
    ids += chain.from_iterable(token_parts([text], tokenizer))
    check_vocabulary(ids, num_embeddings)
    return torch.tensor(ids, dtype=torch.long)


def running_text(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, tokens: int, num_embeddings: int
) -> Tensor:
    """The first `tokens` tokens of the documents one after another, again and again, (tokens,) int64."""
    parts: list[Tensor] = []
    for document in cycle(documents):
        (read,) = tokenize([document], tokenizer, num_embeddings)
        parts.append(read.ids[:tokens])
        tokens -= len(parts[-1])
        if not tokens:
            break
    return torch.cat(parts)


def check_text(name: str, text: str) -> None:
    """Refuse a text with lone surrogates, which no tokenizer takes.

    Raises:
        ValueError: If it has any; names the text and the place.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} is not UTF-8 text at character {error.start}") from error


def check_vocabulary(ids: Iterable[int], num_embeddings: int) -> None:
    """Refuse token ids that a model has no embedding for.

    Raises:
        ValueError: If there are any; names the highest and the number of embeddings.
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
        supporting: Segments that each segment rests on, (B, S, S) bool as `forward` takes them; None if unknown.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    supporting: Tensor | None = None

    def split(self, rows: int) -> list[Batch]:
        """Parts of at most so many rows."""
        tensors = [tensor for tensor in vars(self).values() if tensor is not None]
        return [Batch(*part) for part in zip(*(tensor.split(rows) for tensor in tensors), strict=True)]


def cut(texts: Sequence[Readable], sample_tokens: int) -> Sequence[Sample]:
    """Samples of at most `sample_tokens` tokens of all texts; none crosses texts.

    Raises:
        ValueError: If no text is long enough for one sample.
    """
    parts = cast(list[Any], [text.samples(sample_tokens) for text in texts])
    samples = cast(Sequence[Sample], ConcatDataset(parts))
    if not len(samples):
        longest = max(len(text.ids) for text in texts)
        raise ValueError(
            f"no document is long enough to train on: a sample has {sample_tokens} tokens, the longest document "
            f"{longest}; lower --bptt_depth, --segment_length or --test_length"
        )
    return samples


def shuffled(samples: Sequence[Item], seed: int | None, skip: int = 0) -> Iterator[Item]:
    """Samples without end, in an order drawn anew for every epoch.

    Args:
        samples: Samples to draw from.
        seed: Seed of the order; None to take them as they stand.
        skip: Number of samples to leave out at the beginning, as read before.
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
    """Number of targets among the last `loss_tokens` tokens of samples; a first token is no target."""
    total = 0
    for sample in samples:
        first = max(1, len(sample) - loss_tokens) if loss_tokens is not None else 1
        total += int((sample.labels[first:] != IGNORED).sum())
    return total


def pad(samples: Sequence[Sample], fresh_tokens: int | None = None) -> Batch:
    """Samples of different length as one batch, padded on the right.

    Args:
        samples: The rows.
        fresh_tokens: Tokens of a segment; needed for `supporting` of the batch.
    """
    lengths = torch.tensor([len(sample) for sample in samples])
    input_ids = pad_sequence([sample.ids for sample in samples], batch_first=True)
    labels = pad_sequence([sample.labels for sample in samples], batch_first=True, padding_value=IGNORED)
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
    """Largest length up to `length` that puts whole segments before the targets, or `length` if not even one fits.

    The place of the targets in their segments decides how much near text the model sees, and moves perplexity more
    than any memory does. So they start at the beginning of a segment at every context length.
    """
    segments = (length - target_tokens) // fresh_tokens
    return segments * fresh_tokens + target_tokens if segments else length


def plan_spans(
    documents: list[TokenDocument], longest: int, target_tokens: int, spans_per_document: int, max_documents: int | None
) -> list[Span]:
    """One fixed set of target tokens, spread over each document that is long enough.

    Args:
        documents: Candidates, in order.
        longest: Longest context length in tokens, targets included.
        target_tokens: Tokens per span.
        spans_per_document: Most spans per document; they do not overlap.
        max_documents: Most documents used; None for all.

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
