"""Text of a given length with something to be found at given depths."""

from __future__ import annotations

import random
import re
import textwrap
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from hmt.text.documents import Document
from hmt.text.questions import Range
from hmt.text.tasks.task import HAYSTACK, Reading, Source

Planted = tuple[str, list[Range]]
"""A context, and the characters [start, end) of each needle in it."""

MAX_BOOKS = 200
"""Documents that haystacks are made of, at most."""

PIECE_CHARACTERS = 400
"""A haystack is put together from pieces of whole lines of at least so many characters, each measured once."""

WORD = re.compile(r"\S{1,20}")
"""After these text is cut: words, and parts of what is too long for one, as long numbers and addresses are."""

SLACK = 0.01
"""Share of the length by which a needle may stand before its place, where a line of the haystack ends there."""

MAX_TRIES = 8
"""Times that a context is put together; what its pieces have together is not quite what they have each."""


@dataclass(frozen=True)
class Cell:
    """What one generated question is to be like."""

    length: int
    depth: float
    number: int


def cells(reading: Reading) -> Iterator[Cell]:
    """Every length with every depth, then all of them again: the first so many are spread over all."""
    for number in range(reading.per_cell):
        for length in reading.lengths:
            for depth in reading.depths:
                yield Cell(length, depth, number)


@dataclass(frozen=True)
class Needles:
    """Lines to be hidden, in their order: one of them at the depth asked for, the others anywhere before and after."""

    before: Sequence[str]
    asked: str
    after: Sequence[str]


@dataclass(frozen=True)
class Hidden:
    """Needles in a haystack.

    Attributes:
        book: Name of the document that the context begins with.
        context: The text.
        ranges: Characters [start, end) of each needle, in their order.
        asked: Those of the needle that is asked for.
    """

    book: str
    context: str
    ranges: list[Range]
    asked: Range


class Haystack:
    """Pieces of documents, each measured once.

    Args:
        source: Its `haystack` names the text task, its split says which documents.
        default: The text task where none is named.

    Raises:
        OSError: If the text task cannot be read; names the flag that names another.
        ValueError: If the text task has no text in this split.
    """

    def __init__(self, source: Source, default: str = HAYSTACK) -> None:
        name = source.reading.haystack or default
        self._count = source.reading.count_tokens
        try:
            books = islice(source.texts(name, source.split), MAX_BOOKS)
            self._books = [(book.name, pieces) for book in books if (pieces := _pieces(book))]
        except OSError as error:
            raise OSError(
                f"{source.task.name} cannot read its text; --haystack names another, such as {HAYSTACK} or a "
                f"directory ({error})"
            ) from error
        self._lengths: dict[str, int] = {}
        if not self._books:
            raise ValueError(f"the haystack {name} has no text in its {source.split} split")

    def hide(self, needles: Needles, cell: Cell, rng: random.Random) -> Hidden:
        """Needles, a line each, in text that fills the length with them.

        The needle that is asked for begins at `depth` of what the context has besides it, or as near to that as those
        before and after it let it.

        Raises:
            ValueError: If the needles do not fit.
        """
        start = rng.randrange(len(self._books))
        first = rng.randrange(len(self._books[start][1]))
        before, after = (sorted(rng.random() for _ in part) for part in (needles.before, needles.after))
        needed = self.length([*needles.before, needles.asked, *needles.after])
        place = round(cell.depth * (cell.length - self.length([needles.asked]))) - self.length(needles.before)

        def put_together(room: int) -> tuple[str, list[Range]]:
            pieces = self._take(self._round(start, first), room)
            left, right = self._split(pieces, min(max(place, 0), room), cell)
            lines = [*self._scattered(left, needles.before, before, cell), (needles.asked, True)]
            return plant([*lines, *self._scattered(right, needles.after, after, cell)])

        context, ranges = self._fill(cell.length, cell.length - needed, put_together)
        return Hidden(self._books[start][0], context, ranges, ranges[len(needles.before)])

    def passage(self, length: int, rng: random.Random) -> tuple[str, str]:
        """Text of one document: of a given length where a document is as long, else all of the longest.

        Returns:
            Name of the document, and the text.
        """
        books = rng.sample(self._books, len(self._books))
        name, pieces = next((book for book in books if self.length(book[1]) >= length), None) or max(
            books, key=lambda book: self.length(book[1])
        )
        spare, starts = self.length(pieces) - length, 1
        for piece in pieces[:-1]:
            spare -= self._measure(piece)
            if spare < 0:
                break
            starts += 1
        first = rng.randrange(starts)
        text, _ = self._fill(length, length, lambda room: plant(_plain(self._take(iter(pieces[first:]), room))))
        if not text:
            raise ValueError(f"context_lengths must leave room for a word, got {length}")
        return name, text

    def length(self, texts: Sequence[str]) -> int:
        """How long texts are, a line each."""
        return sum(map(self._measure, texts))

    def _fill(self, length: int, room: int, put_together: Callable[[int], Planted]) -> Planted:
        """The longest context of at most `length` that was found; the room for text is mended by what is measured."""
        best: Planted | None = None
        best_over, before = -length - 1, None
        for _ in range(MAX_TRIES):
            room = max(room, 0)
            made = put_together(room)
            over = self._count(made[0]) - length
            if best_over < over <= 0:
                best, best_over = made, over
            if -SLACK * length <= over <= 0 or over == before or (over > 0 and room == 0):
                break
            room, before = room - over, over
        if best is None:
            raise ValueError(
                f"context_lengths must leave room for what is hidden in the text: that takes {length + over}, got "
                f"{length}"
            )
        return best

    def _round(self, start: int, first: int) -> Iterator[str]:
        """Pieces from a place on, without end: after the last document comes the first."""
        yield from self._books[start][1][first:]
        while True:
            start = (start + 1) % len(self._books)
            yield from self._books[start][1]

    def _take(self, pieces: Iterator[str], room: int) -> list[str]:
        """Pieces that fill the room; the last one is cut after a word."""
        taken = list[str]()
        for piece in pieces:
            if (size := self._measure(piece)) > room:
                head, _ = self._cut(piece, room)
                return [*taken, head] if head else taken
            taken.append(piece)
            room -= size
        return taken

    def _split(self, pieces: Sequence[str], tokens: int, cell: Cell) -> tuple[list[str], list[str]]:
        """Pieces up to a place, and those after it; the one in which it lies is cut after a line, or else a word."""
        for index, piece in enumerate(pieces):
            if (size := self._measure(piece)) > tokens:
                parts = self._cut(piece, tokens, round(SLACK * cell.length))
                head, tail = ([part] if part.strip() else [] for part in parts)
                return [*pieces[:index], *head], [*tail, *pieces[index + 1 :]]
            tokens -= size
        return list(pieces), []

    def _scattered(
        self, pieces: list[str], needles: Sequence[str], shares: Sequence[float], cell: Cell
    ) -> Iterator[tuple[str, bool]]:
        """Pieces with needles at shares of what they are together, ascending; says of each whether it is a needle."""
        total, done = self.length(pieces), 0
        for needle, share in zip(needles, shares, strict=True):
            head, pieces = self._split(pieces, round(share * total) - done, cell)
            done += self.length(head)
            yield from _plain(head)
            yield needle, True
        yield from _plain(pieces)

    def _cut(self, piece: str, tokens: int, slack: int | None = None) -> tuple[str, str]:
        """The beginning of a piece, and the rest.

        It ends with a word, or in one that is longer than words are.

        Args:
            piece: To be cut.
            tokens: Of the beginning, at most; with `slack` as near as a word ends.
            slack: It ends with a line where one ends at most so many tokens before.
        """
        ends = [0, *(word.end() for word in WORD.finditer(piece))]

        def size(end: int) -> int:
            return self._count(f"{piece[:end]}\n") if end else 0

        last = bisect_right(ends, tokens, key=size) - 1
        if slack is not None and last + 1 < len(ends):
            last += size(ends[last + 1]) - tokens < tokens - size(ends[last])
        end = ends[last]
        line = piece.rfind("\n", 0, end)
        if slack is not None and line > 0 and self._count(piece[line:end]) <= slack:
            end = line
        return piece[:end], piece[end + (end > 0 and piece[end : end + 1].isspace()) :]

    def _measure(self, piece: str) -> int:
        if piece not in self._lengths:
            self._lengths[piece] = max(self._count(f"{piece}\n"), 1)
        return self._lengths[piece]


def plant(lines: Iterable[tuple[str, bool]]) -> Planted:
    """Texts as lines of one context.

    Args:
        lines: Texts in order, each with whether it is a needle.

    Returns:
        The context, and the range of characters of each needle.
    """
    texts, ranges, start = [], [], 0
    for text, is_needle in lines:
        texts.append(text)
        if is_needle:
            ranges.append((start, start + len(text)))
        start += len(text) + 1
    return "\n".join(texts), ranges


def _plain(pieces: Iterable[str]) -> Iterator[tuple[str, bool]]:
    return ((piece, False) for piece in pieces)


def _pieces(book: Document) -> list[str]:
    pieces, piece, size = [], list[str](), 0
    for line in book.text.split("\n"):
        long = len(line) > 4 * PIECE_CHARACTERS
        for part in textwrap.wrap(line, PIECE_CHARACTERS, break_on_hyphens=False) if long else [line]:
            piece.append(part)
            size += len(part)
            if size >= PIECE_CHARACTERS:
                pieces.append("\n".join(piece))
                piece, size = [], 0
    if size:
        pieces.append("\n".join(piece))
    return pieces
