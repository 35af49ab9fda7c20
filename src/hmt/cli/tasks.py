"""`hmt tasks`: what there is to read, where it comes from, and what one task looks like. No model, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hmt.options import OutputOptions, TaskOptions
from hmt.report.table import format_table
from hmt.text.questions import Question
from hmt.text.tasks import TASKS, Task, load_documents, load_questions, settings_of, where_from

WHERE = {"name": "task", "kind": "kind", "from": "read from", "licence": "licence", "length": "length"}
WHAT = {"name": "task", "about": "what it is", "source": "source"}

SHOWN_CHARACTERS = 160
"""Of a text that is shown in one line."""


@dataclass(kw_only=True)
class TasksOptions(OutputOptions, TaskOptions):
    """List the tasks and where they are read from; with --task_name, show one of them."""

    task_name: str = ""
    """Task to show: a name of the list, a directory, a file, or a hub id."""
    split: Literal["train", "validation", "test"] = "test"
    """Split to show."""

    def check(self) -> None:
        """Raise a ValueError that names the first flag that makes no sense."""
        self.check_task()


def run(options: TasksOptions) -> tuple[dict[str, Any], str]:
    """List the tasks, or show one.

    Returns:
        The figures, and the same as text.
    """
    return show(options) if options.task_name else listing()


def listing() -> tuple[dict[str, Any], str]:
    """All tasks of the registry, as figures and as a table with a line on each below."""
    rows = [_entry(task) for task in TASKS.values()]
    closing = (
        "Directories, files and hub ids are tasks too. A local copy stands for a task with --hub_map TASK=DIR; what it "
        "holds, and the subsets and columns, are in --json FILE."
    )
    return {"tasks": rows}, f"{format_table(rows, WHERE)}\n\n{format_table(rows, WHAT)}\n\n{closing}"


def _entry(task: Task) -> dict[str, Any]:
    return {
        "name": task.name,
        "kind": task.kind,
        "about": task.about,
        "from": where_from(task),
        "licence": task.licence,
        "length": task.length,
        "source": task.source,
        "hub_id": task.hub_id,
        "subsets": [*task.subsets, *task.variants],
        "splits": list(task.splits),
        "columns": list(task.columns),
        "local": task.local,
    }


def show(options: TasksOptions) -> tuple[dict[str, Any], str]:
    """One split of a task: how much it is, and its first document or question."""
    settings = settings_of(options)
    questions = load_questions(options.task_name, options.split, limit=options.max_documents, **settings)
    name = f"{options.task_name} {options.split}"
    if questions:
        figures = _of_questions(questions)
        lengths = f"{figures['characters']:,} characters of context, {figures['longest_characters']:,} the longest"
        head = f"{name}: {figures['questions']:,} questions about {figures['documents']:,} documents, {lengths}"
        lines = [
            f"{part}: {_shortened(figures['first'][part])}" for part in ("context", "prompt", "answer", "supporting")
        ]
        return figures, "\n".join([head, *lines])
    documents = load_documents(options.task_name, options.split, limit=options.max_documents, **settings)
    sizes = [len(document.text) for document in documents]
    first = {"name": documents[0].name, "text": documents[0].text}
    figures = {"documents": len(documents), "characters": sum(sizes), "longest_characters": max(sizes), "first": first}
    head = f"{name}: {len(documents):,} documents, {sum(sizes):,} characters, {max(sizes):,} the longest"
    return figures, f"{head}\n{first['name']}: {_shortened(first['text'])}"


def _of_questions(questions: list[Question]) -> dict[str, Any]:
    first = questions[0]
    contexts = {question.context for question in questions}
    return {
        "questions": len(questions),
        "documents": len(contexts),
        "characters": sum(map(len, contexts)),
        "longest_characters": max(map(len, contexts)),
        "first": {
            "name": first.name,
            "source": first.source,
            "context": first.context,
            "prompt": first.prompt,
            "answer": first.answers[0],
            "choices": list(first.choices),
            "supporting": " ... ".join(first.context[start:end] for start, end in first.supporting),
            "length": first.length,
            "depth": first.depth,
        },
    }


def _shortened(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= SHOWN_CHARACTERS else f"{words[: SHOWN_CHARACTERS - 4]} ..."
