"""Questions about a text, with their answers kept apart from what a model is shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmt.files import kind_of
from hmt.text.documents import fingerprint
from hmt.text.tables import table_rows

Range = tuple[int, int]
"""[start, end)."""

PASSAGE_BREAK = "\n\n"
"""What stands between the passages of a context."""


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
        length: Length that a generated context was made for, in tokens (or words, where no tokenizer measured it).
        depth: Where in a generated context the answer stands, 0 at its beginning, 1 at its end.

    Raises:
        ValueError: If there is no answer, or none but blank ones.
    """

    name: str
    source: str
    context: str
    prompt: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    supporting: tuple[Range, ...] = ()
    length: int | None = None
    depth: float | None = None

    def __post_init__(self) -> None:
        if not any(answer.strip() for answer in self.answers):
            raise ValueError(f"answers must hold at least one text, question {self.name} has none")

    @property
    def shown(self) -> str:
        """All that a model is shown before it answers."""
        return self.context + self.prompt

    def continuation(self, answer: str) -> str:
        """An answer as it continues the prompt: with a space before it where the prompt ends in a word or mark."""
        return answer if not self.prompt or self.prompt[-1].isspace() else f" {answer}"


def ask(question: str) -> str:
    """The usual prompt: a question after a context, and where its answer begins."""
    return f"{PASSAGE_BREAK}Question: {question.strip()}\nAnswer:"


def joined(passages: Sequence[str], supporting: Sequence[int] = ()) -> tuple[str, tuple[Range, ...]]:
    """Passages as one context.

    Args:
        passages: In order.
        supporting: Indices of those that the answer rests on.

    Returns:
        The context, and the ranges of characters of the supporting passages, in order.
    """
    starts, place = [], 0
    for passage in passages:
        starts.append(place)
        place += len(passage) + len(PASSAGE_BREAK)
    ranges = tuple((starts[index], starts[index] + len(passages[index])) for index in sorted(set(supporting)))
    return PASSAGE_BREAK.join(passages), ranges


def file_questions(file: Path) -> Iterator[Question]:
    """Questions of a .jsonl or .parquet file: rows with the fields of `Question`; context, prompt and answers must be.

    Raises:
        ValueError: If a row is not one; names the line.
    """
    word = "line" if kind_of(file) == ".jsonl" else "row"
    for number, row in table_rows(file):
        try:
            yield _question(f"{file.name}:{number}", row)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{file}, {word} {number}, is no question: it needs context, prompt and answers ({error})"
            ) from error


def holds_questions(file: Path) -> bool:
    """Whether a table is one of questions, as far as its first row shows."""
    first = next(table_rows(file), None)
    return first is not None and {"context", "prompt", "answers"} <= set(first[1])


def _question(name: str, row: dict[str, Any]) -> Question:
    answers = row["answers"]
    if not isinstance(row["context"], str) or not isinstance(row["prompt"], str):
        raise TypeError("context and prompt must be texts")
    answers = (answers,) if isinstance(answers, str) else tuple(answers)
    if not all(isinstance(answer, str) for answer in answers):
        raise TypeError("answers must be texts")
    return Question(
        name=str(row.get("name") or name),
        source=str(row.get("source") or fingerprint(row["context"])),
        context=row["context"],
        prompt=row["prompt"],
        answers=answers,
        choices=tuple(row.get("choices") or ()),
        supporting=tuple((int(start), int(end)) for start, end in row.get("supporting") or ()),
        length=row.get("length"),
        depth=row.get("depth"),
    )
