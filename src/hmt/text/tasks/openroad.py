"""Questions about OpenROAD, a tool for chip design: with its documentation (ORD-QA), and without (EDA corpus)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hmt.files import read_json
from hmt.text.documents import fingerprint, hash_split
from hmt.text.questions import Question, ask, joined
from hmt.text.tables import table_rows
from hmt.text.tasks.splits import balanced, groups
from hmt.text.tasks.task import Source, Task

NUM_DISTRACTORS = 12
"""Passages beside those that a hard question rests on, as published."""


def eda_qa(source: Source) -> Iterator[Question]:
    """Questions with the passages of the documentation that answer them, known as supporting.

    In the variant simple the context is these passages; in hard they lie in random order among distractors. Questions
    that share a passage are of one split, and a tenth of all are of validation and of test each (`balanced`: by hash
    the largest groups would decide). So are the distractors: a passage that no question rests on belongs to the split
    of its own hash.
    """
    rows = [row for _, row in table_rows(_needed(source, "ORD-QA.jsonl"))]
    grouped = [fingerprint(group) for group in groups(rows, lambda row: row["reference"])]
    split_of = balanced(grouped)
    referenced = {passage for row in rows for passage in row["reference"]}
    hard = source.variant == "hard"
    spare = []
    if hard:
        passages = _documentation(_needed(source, "openroad_documentation.json"))
        spare = [text for name, text in passages.items() if name not in referenced and hash_split(name) == source.split]
    for row, group in zip(rows, grouped, strict=True):
        if split_of[group] != source.split:
            continue
        supporting = [_body(text) for text in row["reference_content"]]
        order = [*supporting]
        if hard:
            drawn = source.random(row["id"])
            order += drawn.sample(spare, min(NUM_DISTRACTORS, len(spare)))
            drawn.shuffle(order)
        context, ranges = joined(order, [order.index(text) for text in supporting])
        yield Question(
            f"ORD-QA:{row['id']}", group, context, ask(row["question"]), (row["answer"].strip(),), (), ranges
        )


def _documentation(file: Path) -> dict[str, str]:
    """Passages by name."""
    held: list[dict[str, Any]] = read_json(file)
    return {passage["id"]: _body(passage["content"]) for part in held for passage in part["knowledge"]}


def _body(content: str) -> str:
    """A passage without the line that names it."""
    head, _, body = content.partition("\n")
    return (body if head.startswith("id:") else content).strip()


def eda_corpus(source: Source) -> Iterator[Question]:
    """Question and answer pairs without a context; pairs that share a question or an answer are of one split."""
    pairs: dict[tuple[str, str], None] = {}
    for file in source.files(None, (".csv",)) if source.directory is not None else []:
        for number, row in table_rows(file):
            texts = [text.strip() for text in list(row.values())[:2] if isinstance(text, str)]
            if len(texts) < 2:
                raise ValueError(f"{file}, row {number}, must have a question and an answer, got {row}")
            if all(texts):
                pairs[texts[0], texts[1]] = None
    if not pairs:
        raise FileNotFoundError(f"{source.where} holds no eda_corpus: expected {source.task.local}")
    named = groups(list(pairs), lambda pair: (f"1 {pair[0].lower()}", f"2 {pair[1].lower()}"))
    for (question, answer), group in zip(pairs, named, strict=True):
        name = fingerprint(group)
        if hash_split(name) == source.split:
            prompt = ask(question).lstrip()
            yield Question(f"{name}:{fingerprint(question + answer)}", name, "", prompt, (answer,))


def _needed(source: Source, name: str) -> Path:
    file = source.file(name)
    if file is None:
        raise FileNotFoundError(f"{source.where} has no {name}; expected {source.task.local}")
    return file


TASKS = (
    Task(
        name="eda_qa",
        kind="questions",
        about="questions about OpenROAD with passages of its documentation; --task_subset hard adds distractors",
        source="Pu et al., Customized Retrieval Augmented Generation for EDA Documentation QA (arXiv:2407.15353)",
        licence="none stated",
        length="simple: 1 to 7 passages of 150 words, hard: 12 more; 90 questions",
        columns=("id", "type", "question", "ref_num", "reference", "reference_content", "answer"),
        local="ORD-QA.jsonl, and openroad_documentation.json for the distractors of hard",
        splits=(),
        variants=("simple", "hard"),
        questions=eda_qa,
    ),
    Task(
        name="eda_corpus",
        kind="questions",
        about="questions and answers about OpenROAD, without a text",
        source="Wu et al., EDA Corpus (arXiv:2405.06676)",
        licence="CC BY 4.0",
        length="a question: 10 words, an answer: 40; 581 pairs that are filled in and differ",
        columns=("Prompts", "Answers"),
        local="the authors' .csv files of question and answer pairs",
        splits=(),
        questions=eda_corpus,
    ),
)
