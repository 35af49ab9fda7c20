"""What is recalled across topics: of the own document, of others, of filler; against chance.

Shape legend: B rows, R memory embeddings per segment, N bank slots, T tokens, S segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from hmt.model.outputs import RecallTrace
from hmt.text.augment import FILLER

PARTS = ("own", "filler", "other")


def segment_shares(origins: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """What the segments of one text consist of.

    Args:
        origins: (T,) int64, index of the document that a token is from, -1 for filler.
        lengths: Tokens of each segment.

    Returns:
        Share of each origin in each segment, (S, origins) float64, and the origins, ascending.
    """
    names, places = origins.unique(return_inverse=True)
    parts = places.split(list(lengths))
    counts = torch.stack([torch.bincount(part, minlength=len(names)) for part in parts]).double()
    return counts / counts.sum(dim=1, keepdim=True), names


@dataclass
class TopicRecall:
    """Adds up where recall goes.

    The document of a segment is the one that most of its tokens are from. A segment of filler alone asks for nothing
    and is left out, and so is the first, which has nothing to recall.

    Attributes:
        mass: Sum of recall weights on the own document, on filler and on other documents.
        chance: The same for even weights over the slots of the bank.
        segments: Segments that were counted.
    """

    mass: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))
    chance: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))
    segments: int = 0

    def add(self, trace: RecallTrace, origins: Tensor, row: int = 0) -> None:
        """Count what one row of a call recalled.

        Args:
            trace: What was recalled, in a call that began with an empty memory.
            origins: Of the tokens of the row, (T,) int64.
            row: Number of the row.
        """
        bounds = trace.bounds(len(origins), row)
        shares, names = segment_shares(origins.cpu(), [end - start for start, end in pairwise(bounds)])
        first = len(trace.by_segment) - len(trace.weights)  # the first segments have no bank to ask
        for number, (weights, segments) in enumerate(zip(trace.weights, trace.segments, strict=True), start=first):
            if number >= len(shares):
                break
            own = int(shares[number].masked_fill(names == FILLER, -1.0).argmax())
            if names[own] == FILLER or shares[number, own] <= 0:
                continue
            filled = segments[row] >= 0
            weight = weights[row, :, filled].detach().double().mean(dim=0).cpu()
            slots = shares[segments[row, filled].cpu()]  # (filled slots, origins)
            parts = torch.stack([slots[:, own], slots[:, names == FILLER].sum(dim=1)])
            parts = torch.cat([parts, 1 - parts.sum(dim=0, keepdim=True)])  # (3, filled slots)
            self.mass += parts @ (weight / weight.sum())
            self.chance += parts.mean(dim=1)
            self.segments += 1

    def result(self) -> dict[str, float]:
        """Mean shares of the recall mass, `recalled_own`, `recalled_filler`, `recalled_other`, and of chance."""
        found: dict[str, float] = {"segments": self.segments}
        for name, mass, chance in zip(PARTS, self.mass.tolist(), self.chance.tolist(), strict=True):
            count = max(self.segments, 1)
            found |= {f"recalled_{name}": mass / count, f"chance_{name}": chance / count}
        return found
