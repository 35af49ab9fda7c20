"""Options of runs that score text, ask questions, or measure speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hmt.evaluation.rows import ROWS, parse_rows
from hmt.options import AugmentOptions, ModelOptions, OutputOptions, TaskOptions, check_positive, parse_counts


def check_rows(options: ModelOptions, rows: Sequence[str]) -> None:
    """Check that rows which need a setting have it.

    Raises:
        ValueError: Naming the row and the flag.
    """
    if ngram := [row for row in rows if row.startswith("ngram") and not options.ngram_cache]:
        raise ValueError(f"the row {ngram[0]} needs an n-gram cache; give --ngram_cache")


@dataclass(kw_only=True)
class EvaluateOptions(OutputOptions, AugmentOptions, ModelOptions):
    """Score the same targets at several context lengths, or answer a task's questions, several ways of reading."""

    lengths: str = "1k,2k,4k"
    """Context lengths in tokens, the targets included; 1k is 1,024."""
    modes: str | None = None
    """Rows, with commas between them: full recompute sliding sinks isolated backbone ngram ngram_shuffled rmt
    short_term hmt hmt_(previous shuffled cache) recall; for questions also bm25 oracle random absent. Default: the
    model as it is configured."""
    split: Literal["train", "validation", "test"] = "test"
    """Split to score."""
    target_tokens: int | None = None
    """Tokens scored per span; by default half of the shortest context."""
    spans_per_document: int = 1
    """Spans of target tokens per document, spread over it."""
    batch_size: int = 1
    """Spans read side by side."""
    stride: int | None = None
    """Targets that share a window of the row recompute: each has W - stride to W tokens before it. Default: W / 2."""
    reference: str | None = None
    """Row that the others are compared with; Default: sinks or backbone, where it is one of them."""
    replicas: str | None = None
    """More checkpoints, trained like load_from_ckpt with other seeds: rows give mean and spread (A,B)."""
    max_questions: int | None = None
    """Ask at most so many questions, where the task has questions."""
    max_new_tokens: int = 32
    """Tokens of an answer at most."""
    first_line: bool = False
    """An answer ends with its line: judge nothing of what is written after it."""
    predictions: Path | None = None
    """Write every answer to this file, as jsonl."""

    def check(self) -> None:
        """Check ranges and combinations.

        Raises:
            ValueError: Naming the flag.
        """
        super().check()
        self.check_task()
        check_positive(self, "batch_size", "spans_per_document", "target_tokens", "stride")
        check_positive(self, "max_questions", "max_new_tokens")
        lengths = parse_counts(self.lengths)
        if not lengths or lengths[0] < 2:
            raise ValueError(f"lengths must be numbers of tokens of at least 2, got {self.lengths!r}")
        if self.target_tokens is not None and self.target_tokens >= lengths[0]:
            raise ValueError(
                f"target_tokens must be below the shortest of lengths ({lengths[0]}), got {self.target_tokens}"
            )
        self._check_rows()
        self._check_windows()
        if self.load_from_ckpt is None and self.replicas:
            raise ValueError("replicas are more checkpoints of one training; give the first as --load_from_ckpt")

    def _check_rows(self) -> None:
        check_rows(self, self.rows)
        if self.reference is not None and self.compared_with is None:
            raise ValueError(f"reference must be one of the rows ({', '.join(self.rows)}), got {self.reference!r}")

    def _check_windows(self) -> None:
        most = max(self.window // 2, 1)
        if self.window_stride > most:
            raise ValueError(
                f"stride must be at most {most}: every target of a window has half of it in front, got {self.stride}"
            )

    @property
    def rows(self) -> list[str]:
        """The rows of the table, each once."""
        own: str = self.mode
        if self.rolling and self.mode == "hmt":
            plain = "ngram" if self.ngrams else "recall" if self.recalled_tokens else "sinks"
            own = "hmt_cache" if self.recalls else plain
        return parse_rows(own if self.modes is None else self.modes)

    @property
    def compared_with(self) -> str | None:
        """The row that the others are compared with, or None."""
        wanted = [self.reference] if self.reference else ["sinks", "backbone"]
        return next((row for row in wanted if row in self.rows), None)

    @property
    def scored_tokens(self) -> int:
        """Tokens scored per span."""
        return self.target_tokens or parse_counts(self.lengths)[0] // 2

    @property
    def window_stride(self) -> int:
        """Targets that share a window."""
        return self.stride or max(self.window // 2, 1)

    @property
    def checkpoints(self) -> list[str | None]:
        """Checkpoints to evaluate: the one given and its replicas, or None for a new memory."""
        replicas = [name.strip() for name in (self.replicas or "").split(",") if name.strip()]
        return list(dict.fromkeys([self.load_from_ckpt, *replicas]))


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
