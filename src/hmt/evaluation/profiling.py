"""Options of `hmt profile`."""

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
    """Measure speed and memory use against text length, with the memory and with full attention."""

    lengths: str = "1k,4k,16k,64k"
    """Text lengths in tokens, separated by commas; 1k is 1,024."""
    modes: str = "recall,hmt,full"
    """Methods to measure, separated by commas: full (full attention with a KV cache of the whole text), sliding, sinks,
    isolated, backbone, ngram, rmt, short_term, hmt, hmt_previous, hmt_cache, recall; hmt evaluate --help explains
    them."""
    split: Literal["train", "validation", "test"] = "train"
    """Split to read text from: its documents one after the other, repeated if it is too short."""
    new_tokens: int = 32
    """Number of tokens to generate after the text."""
    max_minutes: float = 10.0
    """Maximum minutes per measurement; a length is skipped if it is predicted to take longer than that from the times
    of shorter ones."""
    plot: Path | None = None
    """Write the plots to this PNG file."""

    def check(self) -> None:
        """Check ranges and combinations.

        Raises:
            ValueError: Naming the flag.
        """
        super().check()
        self.check_task()
        check_positive(self, "max_minutes")
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
