"""Perplexity over a whole evaluation: nats are summed, and divided once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Perplexity:
    """Sums over scored targets; never a mean of per-batch perplexities.

    Attributes:
        nats: Over all scored targets.
        tokens: Scored targets.
        causal_nats: Over scored targets that the memory prompt cannot have seen.
        causal_tokens: Those targets.
        text_bytes: UTF-8 bytes of the scored text.
        last_segments: Perplexity of each sample's last segment.
    """

    nats: float = 0.0
    tokens: int = 0
    causal_nats: float = 0.0
    causal_tokens: int = 0
    text_bytes: int = 0
    last_segments: list[float] = field(default_factory=list)

    def add(self, nll: Tensor, scored: Tensor, causal: Tensor, segment_tokens: int, text_bytes: int) -> None:
        """Count a batch.

        Args:
            nll: Nats per target, (B, T - 1).
            scored: Targets that count, (B, T - 1) bool.
            causal: Targets that the memory prompt cannot have seen, (B, T - 1) bool.
            segment_tokens: Fresh tokens of a segment: so many targets are the last segment of a row.
            text_bytes: UTF-8 bytes of the batch's scored text.
        """
        nll, scored, causal = nll.cpu().double(), scored.cpu(), causal.cpu()
        both = scored & causal
        self.nats += float(nll[scored].sum())
        self.tokens += int(scored.sum())
        self.causal_nats += float(nll[both].sum())
        self.causal_tokens += int(both.sum())
        self.text_bytes += text_bytes
        for row, counts in zip(nll, scored, strict=True):
            last = row[counts][-segment_tokens:]
            if len(last):
                self.last_segments.append(math.exp(float(last.mean())))

    def result(self) -> dict[str, float | int | None]:
        """The figures by name; None where nothing was counted."""
        return {
            "loss": _ratio(self.nats, self.tokens),
            "ppl": _exp(_ratio(self.nats, self.tokens)),
            "ppl_causal": _exp(_ratio(self.causal_nats, self.causal_tokens)),
            "ppl_last_segment_mean": _ratio(sum(self.last_segments), len(self.last_segments)),
            "bits_per_byte": _ratio(self.nats / math.log(2), self.text_bytes),
            "tokens": self.tokens,
            "causal_tokens": self.causal_tokens,
        }


def _ratio(total: float, count: int) -> float | None:
    return total / count if count else None


def _exp(nats: float | None) -> float | None:
    return None if nats is None else math.exp(min(nats, 700.0))
