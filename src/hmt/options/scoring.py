"""Runs that score text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hmt.options.base import ModelOptions, OutputOptions, TaskOptions, check_positive, parse_counts

ROWS: dict[str, dict[str, object]] = {
    "backbone": {"mode": "backbone", "num_recalled_tokens": 0},
    "isolated": {"mode": "backbone", "num_recalled_tokens": 0, "num_sensory": 0},
    "episodic": {"mode": "backbone", "recall_selection": "lexical"},
    "rmt": {"mode": "rmt"},
    "short_term": {"mode": "short_term"},
    "hmt": {"mode": "hmt"},
    "hmt_previous": {"mode": "hmt", "recall_query": "previous"},
}
"""Ways of reading that an evaluation can put side by side, as changes of the memory settings."""


@dataclass(kw_only=True)
class EvaluateOptions(OutputOptions, TaskOptions, ModelOptions):
    """Score the same target tokens at several context lengths, several ways of reading side by side."""

    lengths: str = "1k,2k,4k"
    """Context lengths in tokens, the targets included; 1k is 1,024."""
    modes: str | None = None
    """Rows of a window: backbone, isolated, episodic, rmt, short_term, hmt, hmt_previous; by default that of --mode."""
    split: Literal["train", "validation", "test"] = "test"
    """Split to score."""
    target_tokens: int | None = None
    """Tokens scored per span; by default half of the shortest context."""
    spans_per_document: int = 1
    """Spans of target tokens per document, spread over it."""
    batch_size: int = 1
    """Spans read side by side."""

    def check(self) -> None:
        """Check ranges.

        Raises:
            ValueError: Naming the flag.
        """
        super().check()
        check_positive(self, "batch_size", "spans_per_document", "max_documents", "target_tokens")
        lengths = parse_counts(self.lengths)
        if not lengths or lengths[0] < 2:
            raise ValueError(f"lengths must be numbers of tokens of at least 2, got {self.lengths!r}")
        if self.target_tokens is not None and self.target_tokens >= lengths[0]:
            raise ValueError(
                f"target_tokens must be below the shortest of lengths ({lengths[0]}), got {self.target_tokens}"
            )
        if not self.rows:
            raise ValueError(f"modes must name at least one of {', '.join(ROWS)}, got {self.modes!r}")
        for row in self.rows:
            if row not in ROWS:
                raise ValueError(f"modes must be of {', '.join(ROWS)}, got {row!r}")
        if "episodic" in self.rows and not self.num_recalled_tokens:
            raise ValueError("the row episodic reads tokens of earlier segments again; give --num_recalled_tokens")

    @property
    def rows(self) -> list[str]:
        """The rows of the table."""
        return [row.strip() for row in (self.modes or self.mode).split(",") if row.strip()]

    @property
    def scored_tokens(self) -> int:
        """Tokens scored per span."""
        return self.target_tokens or parse_counts(self.lengths)[0] // 2


@dataclass(kw_only=True)
class DemoOptions(OutputOptions):
    """The whole story in a few minutes: score, train the memory, score again, draw the picture."""

    model_name: str = "smollm2-135m"
    """Backbone."""
    task_name: str = "stdlib"
    """Text."""
    lengths: str = "1k,2k,4k"
    """Context lengths in tokens."""
    train_minutes: float = 2.0
    """Minutes of training."""
    max_documents: int = 2
    """Documents scored."""
    out: Path = Path("report")
    """Directory of the report."""
    seed: int = 0
    """Of everything drawn at random."""

    def check(self) -> None:
        """Check ranges.

        Raises:
            ValueError: Naming the flag.
        """
        check_positive(self, "train_minutes", "max_documents")
        parse_counts(self.lengths)
