"""Questions about a text, with their answers kept apart from the prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmt.files import kind_of
from hmt.text.documents import QUESTIONS_PREFIX, TABLE_SUFFIXES, fingerprint, table_rows

Range = tuple[int, int]
"""[start, end)."""

PASSAGE_BREAK = "\n\n"
"""Text between the passages of a context."""


@dataclass(frozen=True)
class Question:
    """A question about a context.

    A model reads `context + prompt` and writes the answer; nothing it reads depends on `answers`.

    Attributes:
        name: Name of the question, unique in its split.
        source: Name of the document behind the context; no document is in two splits.
        context: Text that the question is about.
        prompt: Text after the context, up to the answer.
        answers: Accepted answers; the first is the one to be learned.
        choices: All possible answers, such as yes, no and maybe, where the answer is a choice.
        supporting: Ranges of characters [start, end) of the context that the answer rests on, where they are known.
        length: Requested length of a generated context, in tokens (or words, where no tokenizer measured it).
        depth: Requested place of the needle in a generated context, 0 at its beginning, 1 at its end.

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

    def continuation(self, answer: str) -> str:
        """An answer as it continues the prompt: with a space before it where the prompt ends in a word or mark."""
        return answer if not self.prompt or self.prompt[-1].isspace() else f" {answer}"


def ask(question: str) -> str:
    """The usual prompt after a context: a question, and where its answer begins."""
    return f"{PASSAGE_BREAK}Question: {question.strip()}\nAnswer:"


def joined(passages: Sequence[str], supporting: Sequence[int] = ()) -> tuple[str, tuple[Range, ...]]:
    """Join passages to one context.

    Args:
        passages: Passages in order.
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


def holds_questions(file: Path) -> bool:
    """True for a table of questions, by its name or the columns of its first row."""
    if kind_of(file) not in TABLE_SUFFIXES:
        return False
    if file.name.startswith(QUESTIONS_PREFIX):
        return True
    _, first = next(table_rows(file), (0, {}))
    return {"context", "prompt", "answers"} <= set(first)


def file_questions(file: Path) -> Iterator[Question]:
    """Questions of a table: rows with the fields of `Question`, of which context, prompt and answers are needed.

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


def _question(name: str, row: dict[str, Any]) -> Question:
    answers = (row["answers"],) if isinstance(row["answers"], str) else tuple(row["answers"])
    if not all(isinstance(text, str) for text in (row["context"], row["prompt"], *answers)):
        raise TypeError("context, prompt and answers must be texts")
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
