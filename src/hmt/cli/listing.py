"""Runs that show what there is to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hmt.options import OutputOptions, TaskOptions


@dataclass(kw_only=True)
class TasksOptions(OutputOptions, TaskOptions):
    """List the tasks and where they are read from; with --task_name, show one of them."""

    task_name: str = ""
    """Show this one: a name of the list, a directory, a file, or a hub id."""
    split: Literal["train", "validation", "test"] = "test"
    """Split to show."""

    def check(self) -> None:
        """Check ranges.

        Raises:
            ValueError: Naming the flag.
        """
        self.check_task()
