"""Tasks by name: a task is one entry of the registry and one function that reads it."""

from hmt.text.tasks.loading import (
    TASKS,
    find_task,
    iter_documents,
    load_documents,
    load_questions,
    settings_of,
    where_from,
)
from hmt.text.tasks.task import Reading, Source, Task

__all__ = [
    "TASKS",
    "Reading",
    "Source",
    "Task",
    "find_task",
    "iter_documents",
    "load_documents",
    "load_questions",
    "settings_of",
    "where_from",
]
