"""Tasks by name: what to read, where it comes from, and its splits.

A task is one entry of the registry and one function; `load_documents` and `load_questions` read it, or what lies at a
path, or a data set of a hub.
"""

from hmt.text.tasks.loading import find_task, iter_documents, load_documents, load_questions, settings_of, where_from
from hmt.text.tasks.registry import TASKS, task_of
from hmt.text.tasks.task import Reading, Source, Task, count_words

__all__ = [
    "TASKS",
    "Reading",
    "Source",
    "Task",
    "count_words",
    "find_task",
    "iter_documents",
    "load_documents",
    "load_questions",
    "settings_of",
    "task_of",
    "where_from",
]
