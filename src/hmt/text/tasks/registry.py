"""All tasks by name. A new one is an entry and a function in one of these files, or in a file like them."""

from __future__ import annotations

from hmt.text.tasks import babi, needle, openroad, papers, passages, stories
from hmt.text.tasks.task import Task

TASKS: dict[str, Task] = {
    task.name: task for file in (passages, papers, openroad, stories, babi, needle) for task in file.TASKS
}


def task_of(name: str) -> Task | None:
    """The task of a name or hub id; None where the registry has none."""
    return TASKS.get(name) or next((task for task in TASKS.values() if task.hub_id == name), None)
