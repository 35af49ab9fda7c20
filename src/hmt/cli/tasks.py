"""`hmt tasks`: the registry of tasks, or one task with its first sample. No model, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hmt.options import OutputOptions, TaskOptions
from hmt.terminal import format_table
from hmt.text.questions import Question
from hmt.text.tasks import TASKS, Task, load_documents, load_questions, settings_of, where_from

COLUMNS = {"name": "task", "kind": "kind", "from": "read from", "licence": "licence"}
DESCRIPTION = {"name": "task", "about": "content", "authors": "authors"}

SHOWN_CHARACTERS = 160
"""Most characters of a text in one line."""


@dataclass(kw_only=True)
class TasksOptions(OutputOptions, TaskOptions):
    """List the tasks and their sources; with --task_name, show a sample of one."""

    task_name: str = ""
    """Task to show: a name from the list, a directory, a file, or a hub id."""
    split: Literal["train", "validation", "test"] = "test"
    """Split to show the sample of."""

    def check(self) -> None:
        """Raise a ValueError that names the first flag that makes no sense."""
        self.check_task()


def run(options: TasksOptions) -> tuple[dict[str, Any], str]:
    """List the tasks, or show one.

    Returns:
        The figures, and the same as text.
    """
    if options.task_name:
        return show(options)
    rows = [_row(task) for task in TASKS.values()]
    closing = (
        "Directories, files and hub ids are tasks too. --hub_map TASK=DIR reads a local copy of a task; --json FILE "
        "names its files, splits and subsets."
    )
    return {"tasks": rows}, f"{format_table(rows, COLUMNS)}\n\n{format_table(rows, DESCRIPTION)}\n\n{closing}"


def _row(task: Task) -> dict[str, Any]:
    names = ("name", "kind", "about", "authors", "licence", "hub_id", "local")
    return {name: getattr(task, name) for name in names} | {
        "from": where_from(task),
        "splits": list(task.splits),
        "subsets": list(task.variants) if task.subset is None else [task.subset],
    }


def show(options: TasksOptions) -> tuple[dict[str, Any], str]:
    """Count one split of a task, and show its first document or question."""
    settings = settings_of(options)
    name = f"{options.task_name} {options.split}"
    if questions := load_questions(options.task_name, options.split, limit=options.max_documents, **settings):
        figures = _question_figures(questions)
        lengths = f"{figures['characters']:,} characters of context, {figures['longest_characters']:,} the longest"
        head = f"{name}: {figures['questions']:,} questions about {figures['documents']:,} documents, {lengths}"
        parts = ("context", "prompt", "answer", "supporting")
        return figures, "\n".join([head, *(f"{part}: {_shortened(figures['first'][part])}" for part in parts)])
    documents = load_documents(options.task_name, options.split, limit=options.max_documents, **settings)
    sizes = [len(document.text) for document in documents]
    first = {"name": documents[0].name, "text": documents[0].text}
    figures = {"documents": len(documents), "characters": sum(sizes), "longest_characters": max(sizes), "first": first}
    head = f"{name}: {len(documents):,} documents, {sum(sizes):,} characters, {max(sizes):,} the longest"
    return figures, f"{head}\n{first['name']}: {_shortened(first['text'])}"


def _question_figures(questions: list[Question]) -> dict[str, Any]:
    first = questions[0]
    contexts = {question.context for question in questions}
    return {
        "questions": len(questions),
        "documents": len(contexts),
        "characters": sum(map(len, contexts)),
        "longest_characters": max(map(len, contexts)),
        "first": vars(first)
        | {
            "answer": first.answers[0],
            "supporting": " ... ".join(first.context[start:end] for start, end in first.supporting),
        },
    }


def _shortened(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= SHOWN_CHARACTERS else f"{words[: SHOWN_CHARACTERS - 4]} ..."
