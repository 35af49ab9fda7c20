"""Perplexity over a whole evaluation: nats are summed, and divided once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hmt.metrics.intervals import Sums, ratio_interval


@dataclass
class Tally:
    """Nats, and over how many targets."""

    nats: float = 0.0
    tokens: int = 0

    def add(self, nll: Tensor, counts: Tensor) -> None:
        """Count the targets in `counts` (..., bool) of `nll`, nats of the same shape."""
        self.nats += float(nll[counts].sum())
        self.tokens += int(counts.sum())

    @property
    def mean(self) -> float | None:
        """Nats per target; None where nothing was counted."""
        return self.nats / self.tokens if self.tokens else None

    @property
    def ppl(self) -> float | None:
        """Perplexity; None where nothing was counted."""
        return None if self.mean is None else math.exp(min(self.mean, 700.0))


@dataclass
class Perplexity:
    """Sums over scored targets; never a mean of per-batch perplexities.

    Attributes:
        all: Scored targets.
        causal: Scored targets that the memory prompt cannot have seen.
        second_half: Scored targets with at least half a segment of tokens before them in their own window.
        text_bytes: UTF-8 bytes of the scored text.
        last_segments: Perplexity of each sample's last segment, where what reads has segments.
        documents: Scored targets of each document, by its index.
    """

    all: Tally = field(default_factory=Tally)
    causal: Tally = field(default_factory=Tally)
    second_half: Tally = field(default_factory=Tally)
    text_bytes: int = 0
    last_segments: list[float] = field(default_factory=list)
    documents: dict[int, Tally] = field(default_factory=dict)

    def add(
        self,
        nll: Tensor,
        scored: Tensor,
        causal: Tensor,
        segment_tokens: int | None,
        text_bytes: int,
        documents: Sequence[int],
    ) -> None:
        """Count a batch.

        Args:
            nll: Nats per target, (B, T - 1).
            scored: Targets that count, (B, T - 1) bool.
            causal: Targets that the memory prompt cannot have seen, (B, T - 1) bool.
            segment_tokens: Fresh tokens of a segment, the first of which begins at a row's first token; None where
                every target has at least half a window before it, 0 where segments differ in length: then neither the
                second half nor the last segment is counted.
            text_bytes: UTF-8 bytes of the batch's scored text.
            documents: The document of each row.
        """
        nll, scored, causal = nll.cpu().double(), scored.cpu(), causal.cpu()
        self.all.add(nll, scored)
        self.causal.add(nll, scored & causal)
        self.second_half.add(nll, scored & second_half(nll.shape[1], segment_tokens))
        self.text_bytes += text_bytes
        for row, counts, document in zip(nll, scored, documents, strict=True):
            self.documents.setdefault(document, Tally()).add(row, counts)
            last = row[counts][-segment_tokens:] if segment_tokens else row[:0]
            if len(last):
                self.last_segments.append(math.exp(min(float(last.mean()), 700.0)))

    def merge(self, other: Perplexity) -> None:
        """Count all that another one has counted."""
        pairs = [(getattr(self, name), getattr(other, name)) for name in ("all", "causal", "second_half")]
        pairs += [(self.documents.setdefault(index, Tally()), tally) for index, tally in other.documents.items()]
        for own, theirs in pairs:
            own.nats += theirs.nats
            own.tokens += theirs.tokens
        self.text_bytes += other.text_bytes
        self.last_segments += other.last_segments

    @property
    def sums(self) -> Sums:
        """Nats and tokens of each document, in order of their indices."""
        return [(tally.nats, tally.tokens) for _, tally in sorted(self.documents.items())]

    def result(self) -> dict[str, float | int | None]:
        """The figures by name; None where nothing was counted, and for intervals over a single document."""
        low, high = ratio_interval(self.sums, torch.exp)
        return {
            "loss": self.all.mean,
            "ppl": self.all.ppl,
            "ppl_low": low,
            "ppl_high": high,
            "ppl_causal": self.causal.ppl,
            "ppl_second_half": self.second_half.ppl,
            "ppl_last_segment_mean": sum(self.last_segments) / len(self.last_segments) if self.last_segments else None,
            "bits_per_byte": self.all.nats / math.log(2) / self.text_bytes if self.text_bytes else None,
            "tokens": self.all.tokens,
            "causal_tokens": self.causal.tokens,
            "second_half_tokens": self.second_half.tokens,
        }


def second_half(targets: int, segment_tokens: int | None) -> Tensor:
    """Which of a row's targets (T - 1,) stand in the second half of a segment; all where there are none, none at 0."""
    if segment_tokens is None:
        return torch.ones(targets, dtype=torch.bool)
    if not segment_tokens:
        return torch.zeros(targets, dtype=torch.bool)
    return 2 * (torch.arange(1, targets + 1) % segment_tokens) >= segment_tokens
