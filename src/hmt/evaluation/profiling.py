"""Runs that measure what reading and writing cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hmt.evaluation.options import check_rows
from hmt.evaluation.rows import ROWS, parse_rows
from hmt.options import ModelOptions, OutputOptions, TaskOptions, check_positive, parse_counts

ROWS_WITH_SPEED = ("full", *(n for n, r in ROWS.items() if "text" in r.tasks and not r.windows and not r.control))
"""Rows that a profile can measure; in `full` the backbone keeps the keys and values of the whole text."""


@dataclass(kw_only=True)
class ProfileOptions(OutputOptions, TaskOptions, ModelOptions):
    """Measure speed and memory against length, for the memory and for what it replaces."""

    lengths: str = "1k,4k,16k,64k"
    """Lengths of the text in tokens; 1k is 1,024."""
    modes: str = "recall,hmt,full"
    """Rows: full, and those of hmt evaluate that read through a window."""
    split: Literal["train", "validation", "test"] = "train"
    """Split whose text is read, one document after the other, and again from the first if it is too short."""
    new_tokens: int = 32
    """Tokens written after the text."""
    question_tokens: int = 16
    """Tokens asked after the text, before anything is written."""
    chunk_tokens: int = 1024
    """Tokens that full reads at one time."""
    max_minutes: float = 10.0
    """Leave a row out at lengths that would take longer, going by what it took at shorter ones."""
    plot: Path | None = None
    """Draw the figures into this PNG file."""

    def check(self) -> None:
        """Check ranges and combinations.

        Raises:
            ValueError: Naming the flag.
        """
        super().check()
        self.check_task()
        check_positive(self, "question_tokens", "chunk_tokens", "max_minutes")
        if self.new_tokens < 2:
            raise ValueError(f"new_tokens must be at least 2, for there to be time between them, got {self.new_tokens}")
        if not self.text_lengths:
            raise ValueError(f"lengths must be numbers of tokens, got {self.lengths!r}")
        check_rows(self, self.rows)

    @property
    def rows(self) -> list[str]:
        """The rows of the table, each once."""
        return parse_rows(self.modes, ROWS_WITH_SPEED)

    @property
    def text_lengths(self) -> list[int]:
        """Lengths, ascending."""
        return parse_counts(self.lengths)
