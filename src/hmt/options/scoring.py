"""Runs that score text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hmt.options.base import AugmentOptions, OutputOptions, ReadingOptions, check_positive, parse_counts

PLAIN: dict[str, object] = {"mode": "backbone", "num_recalled_tokens": 0, "copy_context": 0}
"""The backbone with sensory tokens: a sliding window."""

COPIED: dict[str, object] = {"mode": "backbone", "num_recalled_tokens": 0, "memory_policy": "fifo"}
"""The same with copying: a bank of tokens alone, which has no embeddings that a policy could compare."""

ROWS: dict[str, dict[str, object]] = {
    "backbone": PLAIN,
    "isolated": {**PLAIN, "num_sensory": 0},
    "episodic": {"mode": "backbone", "recall_selection": "lexical", "copy_context": 0},
    "copying": COPIED,
    "copy_shuffled": COPIED,
    "rmt": {"mode": "rmt"},
    "short_term": {"mode": "short_term"},
    "hmt": {"mode": "hmt"},
    "hmt_previous": {"mode": "hmt", "recall_query": "previous"},
    "hmt_dynamic": {"mode": "hmt", "dynamic_reading": True},
    "hmt_uniform": {"mode": "hmt"},
    "hmt_shuffled": {"mode": "hmt"},
}
"""Ways of reading segments that an evaluation can put side by side, as changes of the memory settings.

`hmt_uniform` and the shuffled ones are controls: every slot recalled alike, and another text's bank.
"""

BASELINES = ("native", "sliding", "sinks")
"""Rows in which the backbone reads windows of raw text: its own longest window, W positions, W with attention sinks."""

OTHER_NAMES = {"rmt_sensory": "short_term"}
"""RMT with sensory tokens and the short-term mode of HMT are one and the same."""

SHUFFLED = ("copy_shuffled", "hmt_shuffled")
"""Rows that read with another text's bank."""

COPYING = ("copying", "copy_shuffled")
"""Rows of the backbone that copies: of the memory's weights they use those of copying alone."""

WITHOUT_MEMORY = ("backbone", "isolated", "episodic", *BASELINES)
"""Rows that use no other weights than those of the backbone."""


def check_means(options: ReadingOptions, rows: Sequence[str]) -> None:
    """Make sure that rows which need a setting have it.

    Raises:
        ValueError: Naming the row and the flag.
    """
    if "episodic" in rows and not options.num_recalled_tokens:
        raise ValueError("the row episodic reads tokens of earlier segments again; give --num_recalled_tokens")
    if copying := [row for row in rows if row in COPYING and not options.copy_context]:
        raise ValueError(f"the row {copying[0]} copies what followed the same words before; give --copy_context")


@dataclass(kw_only=True)
class EvaluateOptions(OutputOptions, AugmentOptions, ReadingOptions):
    """Score the same targets at several context lengths, or answer a task's questions, several ways of reading."""

    lengths: str = "1k,2k,4k"
    """Context lengths in tokens, the targets included; 1k is 1,024."""
    modes: str | None = None
    """native sliding sinks backbone isolated episodic copying copy_shuffled rmt short_term hmt hmt_(previous dynamic
    uniform shuffled)."""
    split: Literal["train", "validation", "test"] = "test"
    """Split to score."""
    target_tokens: int | None = None
    """Tokens scored per span; by default half of the shortest context."""
    spans_per_document: int = 1
    """Spans of target tokens per document, spread over it."""
    batch_size: int = 1
    """Spans read side by side."""
    stride: int | None = None
    """Targets that share a window of sliding and sinks: each has W - stride to W tokens before it; by default W / 2."""
    num_sinks: int = 4
    """First tokens of the text that stay in the window of sinks."""
    reference: str | None = None
    """Row that the others are compared with; by default backbone, where it is one of them."""
    replicas: str | None = None
    """More checkpoints, trained like load_from_ckpt with other seeds: rows give mean and spread (A,B)."""
    match_budget: bool = False
    """Train the other rows on as many tokens as load_from_ckpt first; they are kept beside it as CKPT.matched-ROW."""
    matched_learning_rate: float | None = None
    """Learning rate of a matched adapter; by default that of the memory, or of the adapter where there was one."""
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
        check_positive(self, "max_questions", "max_new_tokens", "matched_learning_rate")
        lengths = parse_counts(self.lengths)
        if not lengths or lengths[0] < 2:
            raise ValueError(f"lengths must be numbers of tokens of at least 2, got {self.lengths!r}")
        if self.target_tokens is not None and self.target_tokens >= lengths[0]:
            raise ValueError(
                f"target_tokens must be below the shortest of lengths ({lengths[0]}), got {self.target_tokens}"
            )
        self._check_rows()
        self._check_windows()
        if self.load_from_ckpt is None and (self.match_budget or self.replicas):
            raise ValueError("match_budget and replicas are about trained checkpoints; give one as --load_from_ckpt")

    def _check_rows(self) -> None:
        known = (*BASELINES, *ROWS)
        if not self.rows:
            raise ValueError(f"modes must name at least one of {', '.join(known)}, got {self.modes!r}")
        for row in self.rows:
            if row not in known:
                raise ValueError(f"modes must be of {', '.join(known)}, got {row!r}")
        check_means(self, self.rows)
        if self.reference is not None and self.compared_with is None:
            raise ValueError(f"reference must be one of the rows ({', '.join(self.rows)}), got {self.reference!r}")

    def _check_windows(self) -> None:
        room = self.segment_length - (self.num_sinks if "sinks" in self.rows else 0)
        if self.num_sinks < 0 or room < 1:
            raise ValueError(f"num_sinks must lie between 0 and segment_length ({self.segment_length}) - 1")
        most = min(room, max(self.segment_length // 2, 1))
        if self.window_stride > most:
            raise ValueError(
                f"stride must be at most {most}: every target of a window has half of it in front, got {self.stride}"
            )

    @property
    def rows(self) -> list[str]:
        """The rows of the table, each once."""
        named = [row.strip() for row in (self.modes or self.mode).split(",") if row.strip()]
        return list(dict.fromkeys(OTHER_NAMES.get(row, row) for row in named))

    @property
    def compared_with(self) -> str | None:
        """The row that the others are compared with, or None."""
        row = OTHER_NAMES.get(self.reference or "backbone", self.reference or "backbone")
        return row if row in self.rows else None

    @property
    def scored_tokens(self) -> int:
        """Tokens scored per span."""
        return self.target_tokens or parse_counts(self.lengths)[0] // 2

    @property
    def window_stride(self) -> int:
        """Targets that share a window."""
        return self.stride or max(self.segment_length // 2, 1)

    @property
    def checkpoints(self) -> list[str | None]:
        """What is evaluated: the checkpoint and its replicas, or None for a new memory."""
        replicas = [name.strip() for name in (self.replicas or "").split(",") if name.strip()]
        return list(dict.fromkeys([self.load_from_ckpt, *replicas]))


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
