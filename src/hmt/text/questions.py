"""Questions about a text, with their answers kept apart from what a model is shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmt.text.documents import read_text


@dataclass(frozen=True)
class Question:
    """A question about a context.

    A model reads `context + prompt` and writes the answer; nothing of `answers` stands in what it reads, except where
    the context itself says it.

    Attributes:
        name: Of the question, unique in its split.
        source: Name of the document behind the context; no document is in two splits.
        context: What there is to know.
        prompt: What follows the context, up to where the answer begins.
        answers: Accepted answers; the first is the one to be learnt.
        choices: All answers that are possible, such as yes, no and maybe, where the answer is a choice.
        supporting: Ranges of characters [start, end) of the context that the answer rests on, where they are known.
    """

    name: str
    source: str
    context: str
    prompt: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    supporting: tuple[tuple[int, int], ...] = ()


def jsonl_questions(file: Path) -> Iterator[Question]:
    """Questions of a .jsonl file: rows with the fields of `Question`; context, prompt and answers must be there.

    Raises:
        ValueError: If a row is not one; names the line.
    """
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield _question(f"{file.name}:{number}", row)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file}, line {number}, is no question: it needs context, prompt and answers ({error})"
            ) from error


def _question(name: str, row: dict[str, Any]) -> Question:
    answers = row["answers"]
    return Question(
        name=row.get("name", name),
        source=row.get("source", name),
        context=row["context"],
        prompt=row["prompt"],
        answers=(answers,) if isinstance(answers, str) else tuple(answers),
        choices=tuple(row.get("choices", ())),
        supporting=tuple((start, end) for start, end in row.get("supporting", ())),
    )
