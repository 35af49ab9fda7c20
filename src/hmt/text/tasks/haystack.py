"""Text of a given length with something to be found at given depths."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from hmt.text.documents import Document
from hmt.text.questions import Range
from hmt.text.tasks.task import HAYSTACK, Reading, Source

MAX_BOOKS = 200
"""Documents that haystacks are made of, at most."""

PIECE_CHARACTERS = 400
"""A haystack is put together from pieces of whole lines of at least so many characters; needles lie between them."""


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


class Haystack:
    """Pieces of documents, each measured once.

    Args:
        source: Its `haystack` names the text task, its split says which documents.
        default: The text task where none is named.

    Raises:
        ValueError: If the text task has no text in this split.
    """

    def __init__(self, source: Source, default: str = HAYSTACK) -> None:
        name = source.reading.haystack or default
        books = islice(source.texts(name, source.split), MAX_BOOKS)
        self._count = source.reading.count_tokens
        self._books = [(book.name, pieces) for book in books if (pieces := _pieces(book))]
        self._lengths: dict[str, int] = {}
        if not self._books:
            raise ValueError(f"the haystack {name} has no text in its {source.split} split")

    def take(self, room: int, rng: random.Random, one_book: bool = False) -> tuple[str, list[str]]:
        """Pieces of text that together are at most `room` long, from a random place on.

        Args:
            room: In what `count_tokens` counts.
            rng: Chooses the place.
            one_book: End with the document; by default the next one follows, and after the last the first.

        Returns:
            Name of the document at the beginning, and the pieces.
        """
        start = rng.randrange(len(self._books))
        name, pieces = self._books[start]
        first = rng.randrange(len(pieces))
        if one_book and sum(map(self._measure, pieces[first:])) < room:
            first = 0
        found = []
        for piece in pieces[first:] if one_book else self._round(start, first):
            room -= self._measure(piece)
            if room < 0:
                break
            found.append(piece)
        return name, found

    def length(self, texts: Sequence[str]) -> int:
        """How long texts are."""
        return sum(map(self._measure, texts))

    def _round(self, start: int, first: int) -> Iterator[str]:
        """Pieces from a place on, without end."""
        yield from self._books[start][1][first:]
        while True:
            start = (start + 1) % len(self._books)
            yield from self._books[start][1]

    def _measure(self, piece: str) -> int:
        if piece not in self._lengths:
            self._lengths[piece] = max(self._count(f"{piece}\n"), 1)
        return self._lengths[piece]


def plant(pieces: Sequence[str], needles: Sequence[tuple[str, float]]) -> tuple[str, list[Range]]:
    """Put needles, a line each, between pieces of text.

    Args:
        pieces: Of the haystack, in order.
        needles: Texts with their depths, 0 before all pieces to 1 after all; those of equal depth keep their order.

    Returns:
        The context, and the range of characters of each needle.
    """
    places = [round(depth * len(pieces)) for _, depth in needles]
    lines: list[tuple[str, int | None]] = []
    for index in range(len(pieces) + 1):
        lines += [(text, number) for number, (text, _) in enumerate(needles) if places[number] == index]
        lines += [(piece, None) for piece in pieces[index : index + 1]]
    ranges, start = [(0, 0)] * len(needles), 0
    for text, number in lines:
        if number is not None:
            ranges[number] = (start, start + len(text))
        start += len(text) + 1
    return "\n".join(text for text, _ in lines), ranges


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
