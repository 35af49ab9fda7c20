"""Perplexity over a whole evaluation: nats are summed, and divided once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hmt.metrics.intervals import Sums, ratio_interval


@dataclass
class Tally:
    """Nats, and the number of targets that they are of."""

    nats: float = 0.0
    tokens: int = 0

    def add(self, nll: Tensor, counts: Tensor) -> None:
        """Count the targets in `counts` (..., bool) of `nll`, nats of the same shape."""
        self.nats += float(nll[counts].sum())
        self.tokens += int(counts.sum())

    def merge(self, other: Tally) -> None:
        """Count all that another tally has counted."""
        self.nats += other.nats
        self.tokens += other.tokens

    @property
    def mean(self) -> float | None:
        """Nats per target; None if nothing was counted."""
        return self.nats / self.tokens if self.tokens else None

    @property
    def ppl(self) -> float | None:
        """Perplexity; None if nothing was counted."""
        return None if self.mean is None else math.exp(min(self.mean, 700.0))


@dataclass
class Perplexity:
    """Sums over scored targets; never a mean of per-batch perplexities.

    Attributes:
        all: Scored targets.
        causal: Scored targets that the memory prompt cannot have seen.
        documents: Scored targets of each document, by its index.
        text_bytes: UTF-8 bytes of the scored text.
    """

    all: Tally = field(default_factory=Tally)
    causal: Tally = field(default_factory=Tally)
    documents: dict[int, Tally] = field(default_factory=dict)
    text_bytes: int = 0

    def add(self, nll: Tensor, scored: Tensor, causal: Tensor, text_bytes: int, documents: Sequence[int]) -> None:
        """Count a batch.

        Args:
            nll: Nats per target, (B, T - 1).
            scored: Targets that count, (B, T - 1) bool.
            causal: Targets that the memory prompt cannot have seen, (B, T - 1) bool.
            text_bytes: UTF-8 bytes of the batch's scored text.
            documents: Document of each row.

        Raises:
            FloatingPointError: If the nats of a scored target are not finite.
        """
        nll, scored, causal = nll.cpu().double(), scored.cpu(), causal.cpu()
        if not bool(nll[scored].isfinite().all()):
            raise FloatingPointError("the loss of a text is not finite; check the weights and their dtype")
        self.all.add(nll, scored)
        self.causal.add(nll, scored & causal)
        self.text_bytes += text_bytes
        for row, counts, document in zip(nll, scored, documents, strict=True):
            self.documents.setdefault(document, Tally()).add(row, counts)

    @classmethod
    def pooled(cls, parts: Sequence[Perplexity]) -> Perplexity:
        """Return the sums of several."""
        pooled = cls()
        for part in parts:
            pooled.all.merge(part.all)
            pooled.causal.merge(part.causal)
            pooled.text_bytes += part.text_bytes
            for index, tally in part.documents.items():
                pooled.documents.setdefault(index, Tally()).merge(tally)
        return pooled

    @property
    def sums(self) -> Sums:
        """Nats and tokens of each document, in order of their indices."""
        return [(tally.nats, tally.tokens) for _, tally in sorted(self.documents.items())]

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte of the scored text; None if nothing was counted."""
        return self.all.nats / math.log(2) / self.text_bytes if self.text_bytes else None

    def result(self) -> dict[str, float | int | None]:
        """Return every metric by name, and the 95% interval of the perplexity over documents."""
        low, high = ratio_interval(self.sums, torch.exp)
        return {name: measure(self) for name, measure in METRICS.items()} | {"ppl_low": low, "ppl_high": high}


METRICS: dict[str, Callable[[Perplexity], float | int | None]] = {
    "loss": lambda sums: sums.all.mean,
    "ppl": lambda sums: sums.all.ppl,
    "ppl_causal": lambda sums: sums.causal.ppl,
    "bits_per_byte": lambda sums: sums.bits_per_byte,
    "tokens": lambda sums: sums.all.tokens,
    "causal_tokens": lambda sums: sums.causal.tokens,
}
"""Metrics of scored text, by their names in the figures."""
