"""Needles in haystacks, and passages to be recited: questions that are made here, from any text."""

from __future__ import annotations

import random
from collections.abc import Iterator

from hmt.text.documents import hash_split
from hmt.text.questions import Question
from hmt.text.tasks.haystack import Cell, Haystack, Needles, cells
from hmt.text.tasks.task import Source, Task

NUM_PAIRS = 16
"""Keys with values in a haystack, one of which is asked for."""

RECITED = "fineweb"
"""What is recited where nothing else is named."""


def needle(source: Source) -> Iterator[Question]:
    """A pass key, or one of several keys with values, to be found again."""
    make = {"passkey": _pass_key, "key_value": _key_values}[source.variant]
    haystack = Haystack(source)
    for cell in cells(source.reading):
        rng = source.random(source.variant, cell)
        asked, others, prompt, answer = make(rng, source.split)
        hidden = haystack.hide(_around(asked, others, haystack, cell, rng), cell, rng)
        yield Question(
            name=f"{source.variant}:{cell.length}:{cell.depth:g}:{cell.number}",
            source=hidden.book,
            context=hidden.context,
            prompt=prompt,
            answers=(answer,),
            supporting=(hidden.asked,),
            length=cell.length,
            depth=cell.depth,
        )


def _around(asked: str, others: list[str], haystack: Haystack, cell: Cell, rng: random.Random) -> Needles:
    """The other needles before and after the one asked for: by chance, as many as there is room for on each side."""
    ahead = cell.depth * (cell.length - haystack.length([asked]))
    behind = cell.length - haystack.length([asked]) - ahead
    before, after = list[str](), list[str]()
    for other in others:
        size = haystack.length([other])
        is_before = rng.random() < cell.depth
        if (ahead if is_before else behind) < size <= (behind if is_before else ahead):
            is_before = not is_before
        if is_before:
            before.append(other)
            ahead -= size
        else:
            after.append(other)
            behind -= size
    return Needles(before, asked, after)


def _pass_key(rng: random.Random, split: str) -> tuple[str, list[str], str, str]:
    """The needle, other needles, the prompt and the answer."""
    key = _drawn(rng, split, 5)
    told = f"The pass key is {key}. Remember it. {key} is the pass key."
    return told, [], "\n\nWhat is the pass key? The pass key is", key


def _key_values(rng: random.Random, split: str) -> tuple[str, list[str], str, str]:
    pairs = {_drawn(rng, split, 6): _drawn(rng, split, 6) for _ in range(NUM_PAIRS)}
    told = [f"The value of key {key} is {value}." for key, value in pairs.items()]
    key, value = next(iter(pairs.items()))
    return told[0], told[1:], f"\n\nWhat is the value of key {key}? The value of key {key} is", value


def _drawn(rng: random.Random, split: str, digits: int) -> str:
    """A random number that belongs to the split, so that no key of training is asked for in a test."""
    while hash_split(number := str(rng.randrange(10 ** (digits - 1), 10**digits))) != split:
        pass
    return number


def recite(source: Source) -> Iterator[Question]:
    """A passage, which then is to be written down again from its beginning."""
    haystack = Haystack(source, RECITED)
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
        about="a pass key (or key_value, a subset) hidden in text, at --depths in --context_lengths",
        source="after Mohtashami and Jaggi, Landmark Attention (arXiv:2305.16300); made here, by the seed",
        licence="that of the haystack",
        length="any: --context_lengths",
        columns=(),
        local="none needed; --haystack names the text: stdlib, pg19, a directory, ...",
        splits=(),
        variants=("passkey", "key_value"),
        made_here=True,
        questions=needle,
    ),
    Task(
        name="recite",
        kind="questions",
        about="a passage, then the same again from the beginning; only the second copy is scored",
        source="made here, from fineweb or any --haystack",
        licence="that of the haystack",
        length="any: --context_lengths, each half of a sample",
        columns=(),
        local="none needed; --haystack names the text: fineweb, stdlib, a directory, ...",
        splits=(),
        made_here=True,
        questions=recite,
    ),
)
