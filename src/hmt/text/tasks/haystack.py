"""Questions hidden in any text: needles to be found again, and passages to be recited."""

from __future__ import annotations

import random
import textwrap
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, chain, cycle, islice

from hmt.text.documents import Document, hash_split
from hmt.text.questions import Question, Range
from hmt.text.tasks.task import Reading, Source, Task

MAX_BOOKS = 200
"""Most documents that haystacks are made of."""

LINE_CHARACTERS = 100
"""Longest line of a haystack; a needle stands between two lines."""

SLACK = 0.01
"""Share of the length by which a context may be too short."""

MAX_TRIES = 6
"""Most attempts at a context of a length: lines have other lengths together than each alone."""

NUM_PAIRS = 16
"""Keys with values in a haystack, one of which is asked for."""

Planted = tuple[str, list[Range]]
"""A context, and the characters [start, end) of each needle in it."""


@dataclass(frozen=True)
class Cell:
    """Requested length and depth of a generated question, and its number among those alike."""

    length: int
    depth: float
    number: int


def cells(reading: Reading) -> Iterator[Cell]:
    """Every length with every depth, `per_cell` times over."""
    for number in range(reading.per_cell):
        for length in reading.lengths:
            for depth in reading.depths:
                yield Cell(length, depth, number)


class Haystack:
    """Lines of documents, each measured once.

    Args:
        source: Names the text task (`haystack`) and the split.
        default: The text task where none is named.

    Raises:
        OSError: If the text task cannot be read; names the flag that names another.
        ValueError: If the text task has no text in this split.
    """

    def __init__(self, source: Source, default: str = "stdlib") -> None:
        name = source.reading.haystack or default
        self._count = source.reading.count_tokens
        self.size = cache(lambda line: self._count(f"{line}\n"))
        try:
            books = [(book.name, _lines(book)) for book in islice(source.texts(name), MAX_BOOKS)]
        except OSError as error:
            raise OSError(
                f"{source.task.name} cannot read its text; --haystack names another, such as stdlib or a directory "
                f"({error})"
            ) from error
        self._books = [(name, lines) for name, lines in books if self.sizes(lines)]
        if not self._books:
            raise ValueError(f"the haystack {name} has no text in its {source.split} split")

    def sizes(self, lines: Iterable[str]) -> int:
        """Length of lines, each measured alone."""
        return sum(map(self.size, lines))

    def hide(
        self, before: Sequence[str], asked: str, after: Sequence[str], cell: Cell, rng: random.Random
    ) -> tuple[str, str, list[Range]]:
        """Hide needles, a line each, in text that fills the length with them.

        Args:
            before: Needles anywhere before the one asked for, in order.
            asked: Needle at the depth, between the two lines nearest to it; deeper where those before need the room.
            after: Needles anywhere after it, in order.
            cell: Length and depth.
            rng: Draws the text and the places.

        Returns:
            Name of the document that the context begins with, the context, and the characters of each needle.

        Raises:
            ValueError: If the needles do not fit.
        """
        start = rng.randrange(len(self._books))
        name, lines = self._books[start]
        first = rng.randrange(len(lines))
        place = cell.depth * (cell.length - self.size(asked)) - self.sizes(before)  # in text besides the needles
        needles = [*before, asked, *after]
        shares_before, shares_after = (sorted(rng.random() for _ in part) for part in (before, after))

        def plant(room: int) -> Planted:
            middle = min(max(place, 0), room)
            places = [share * middle for share in shares_before]
            places += [middle, *(middle + share * (room - middle) for share in shares_after)]
            return self._planted(self._filler(start, first, room), list(zip(places, needles, strict=True)))

        context, ranges = self._fill(cell.length, cell.length - self.sizes(needles), plant)
        return name, context, ranges

    def passage(self, length: int, rng: random.Random) -> tuple[str, str]:
        """Text of a length from a random line on, and the name of the document that it begins in."""
        start = rng.randrange(len(self._books))
        name, lines = self._books[start]
        first = rng.randrange(len(lines))
        text, _ = self._fill(length, length, lambda room: ("\n".join(self._filler(start, first, room)), []))
        return name, text

    def _fill(self, length: int, room: int, plant: Callable[[int], Planted]) -> Planted:
        """The longest context of at most `length` that was found, beginning with `room` for text."""
        best: Planted = ("", [])
        for _ in range(MAX_TRIES):
            if room < 0:
                break
            made = plant(room)
            missing = length - self._count(made[0])
            if missing >= 0 and len(made[0]) > len(best[0]):
                best = made
            if 0 <= missing <= SLACK * length:
                break
            room += missing
        if not best[0]:
            raise ValueError(f"context_lengths must leave room for what is hidden in the text, got {length}")
        return best

    def _filler(self, start: int, first: int, room: int) -> list[str]:
        """Lines that fill the room, from a line of a document on; after the last document comes the first."""
        books = cycle(lines for _, lines in [*self._books[start:], *self._books[:start]])
        taken = []
        for line in islice(chain.from_iterable(books), first, None):
            room -= self.size(line)
            if room < 0:
                break
            taken.append(line)
        return taken

    def _planted(self, filler: Sequence[str], needles: Sequence[tuple[float, str]]) -> Planted:
        """Put needles between lines, as near to their places in the filler as a line ends; places ascend."""
        sizes = [self.size(line) for line in filler]
        middles = [end - size / 2 for end, size in zip(accumulate(sizes), sizes, strict=True)]
        text, done, ranges = "", 0, list[Range]()
        for place, needle in needles:
            index = bisect_right(middles, place)
            text += "".join(f"{line}\n" for line in filler[done:index])
            ranges.append((len(text), len(text) + len(needle)))
            text += f"{needle}\n"
            done = index
        text += "".join(f"{line}\n" for line in filler[done:])
        return text.removesuffix("\n"), ranges


def _lines(book: Document) -> list[str]:
    lines = []
    for line in book.text.split("\n"):
        lines += [line] if len(line) <= LINE_CHARACTERS else textwrap.wrap(line, LINE_CHARACTERS)
    return lines


def needle(source: Source) -> Iterator[Question]:
    """A pass key, or one of several keys with values, to be found again."""
    make = {"passkey": _pass_key, "key_value": _key_values}[source.variant]
    haystack = Haystack(source)
    for cell in cells(source.reading):
        rng = source.random(source.variant, cell)
        asked, others, prompt, answer = make(rng, source.split)
        is_before = [rng.random() < cell.depth for _ in others]
        before = [other for other, first in zip(others, is_before, strict=True) if first]
        after = [other for other, first in zip(others, is_before, strict=True) if not first]
        book, context, ranges = haystack.hide(before, asked, after, cell, rng)
        yield Question(
            name=f"{source.variant}:{cell.length}:{cell.depth:g}:{cell.number}",
            source=book,
            context=context,
            prompt=prompt,
            answers=(answer,),
            supporting=(ranges[len(before)],),
            length=cell.length,
            depth=cell.depth,
        )


def _pass_key(rng: random.Random, split: str) -> tuple[str, list[str], str, str]:
    """The needle asked for, the others, the prompt and the answer."""
    key = _number(rng, split, 5)
    fact = f"The pass key is {key}. Remember it. {key} is the pass key."
    return fact, [], "\n\nWhat is the pass key? The pass key is", key


def _key_values(rng: random.Random, split: str) -> tuple[str, list[str], str, str]:
    pairs = {_number(rng, split, 6): _number(rng, split, 6) for _ in range(NUM_PAIRS)}
    facts = [f"The value of key {key} is {value}." for key, value in pairs.items()]
    key, value = next(iter(pairs.items()))
    return facts[0], facts[1:], f"\n\nWhat is the value of key {key}? The value of key {key} is", value


def _number(rng: random.Random, split: str, digits: int) -> str:
    """A random number of the split: no key of training is asked for in a test."""
    while hash_split(number := str(rng.randrange(10 ** (digits - 1), 10**digits))) != split:
        pass
    return number


def recite(source: Source) -> Iterator[Question]:
    """A passage, which is then to be written again from its beginning."""
    haystack = Haystack(source, "fineweb")
    for number in range(source.reading.per_cell * len(source.reading.depths)):
        for length in source.reading.lengths:
            book, passage = haystack.passage(length, source.random(length, number))
            yield Question(
                name=f"recite:{length}:{number}",
                source=book,
                context=passage,
                prompt="\n\nThe same text again, from the beginning:\n\n",
                answers=(passage,),
                supporting=((0, len(passage)),),
                length=length,
            )


TASKS = (
    Task(
        name="needle",
        kind="questions",
        about="a pass key, or one of 16 keys with values (--task_subset key_value), hidden in text",
        authors="after Mohtashami and Jaggi (arXiv:2305.16300); made here, by the seed",
        licence="that of the haystack",
        local="none needed; --haystack names the text: stdlib, pg19, a directory, ...",
        read=needle,
        splits=(),
        variants=("passkey", "key_value"),
        made_here=True,
    ),
    Task(
        name="recite",
        kind="questions",
        about="a passage and the same again, of which the second is scored; of --context_lengths each",
        authors="made here, from fineweb or any --haystack",
        licence="that of the haystack",
        local="none needed; --haystack names the text: fineweb, stdlib, a directory, ...",
        read=recite,
        splits=(),
        made_here=True,
    ),
)
