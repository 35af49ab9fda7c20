"""Options of `hmt evaluate` and `hmt profile`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hmt.evaluation.rows import ROWS, parse_rows
from hmt.options import AugmentOptions, ModelOptions, OutputOptions, TaskOptions, check_positive, parse_counts

ROWS_WITH_SPEED = ("full", *(n for n, r in ROWS.items() if "text" in r.tasks and not r.windows and not r.control))
"""Rows that a profile can measure; in `full` the backbone keeps the keys and values of the whole text."""


def check_rows(options: ModelOptions, rows: Sequence[str]) -> None:
    """Check that rows which need a setting have it.

    Raises:
        ValueError: Naming the row and the flag.
    """
    if ngram := [row for row in rows if row.startswith("ngram") and not options.ngram_cache]:
        raise ValueError(f"the row {ngram[0]} needs an n-gram cache; give --ngram_cache")


@dataclass(kw_only=True)
class EvaluateOptions(OutputOptions, AugmentOptions, ModelOptions):
    """Compare methods of reading: perplexity at several context lengths, or answers to a task's questions."""

    lengths: str = "1k,2k,4k"
    """Context lengths in tokens, scored tokens included, separated by commas; 1k is 1,024."""
    modes: str | None = None
    """Methods to compare, separated by commas, all but full with a window of W positions. Default: the model as
    configured. Backbone alone: full (attention to the whole context), recompute (sliding window, re-encoded every
    --stride tokens), sliding (rolling cache), sinks (rolling cache with attention sinks, StreamingLLM), isolated
    (separate segments), backbone (segments after re-encoded sensory tokens), ngram (sinks with an n-gram cache). With
    memory: recall (text recall), rmt (recurrent memory transformer), short_term (memory of the segment before), hmt (as
    published), hmt_previous (hmt with --recall_query previous), hmt_cache (memory prompts beside the rolling cache).
    Controls: hmt_shuffled and ngram_shuffled (memory of another document). For questions also bm25 (passages found by
    BM25), oracle (passages that hold the answer), random (random passages), absent (text recall after the answer was
    cut from the text)."""
    split: Literal["train", "validation", "test"] = "test"
    """Split to score."""
    target_tokens: int | None = None
    """Number of tokens scored per span. Default: half of the shortest context length."""
    spans_per_document: int = 1
    """Number of spans scored per document, evenly spread."""
    batch_size: int = 1
    """Spans per batch."""
    stride: int | None = None
    """Tokens scored per window of the method recompute. Default and maximum: W / 2."""
    reference: str | None = None
    """Method that the others are compared with. Default: sinks or backbone, if --modes names one of them."""
    replicas: str | None = None
    """Checkpoints trained like --load_from_ckpt with other seeds, separated by commas; shows mean and spread of all."""
    max_questions: int | None = None
    """Maximum number of questions, for tasks with questions."""
    max_new_tokens: int = 32
    """Maximum number of new tokens per answer."""
    first_line: bool = False
    """Score only the first line of each answer."""
    predictions: Path | None = None
    """Write all answers to this JSON Lines file."""

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
