"""Put the pieces of a window together, row by row, without gaps, and find them again in the result.

Rows of a batch may lack pieces or have shorter ones. Each row's real embeddings are moved to the left, so that a causal
backbone needs neither an attention mask nor position ids: what follows a row's last real position cannot reach it.

Shape legend: B rows, M window positions, D embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hmt.memory.rows import packing_order, take


@dataclass(frozen=True)
class Spliced:
    """A packed window and where each piece went.

    Attributes:
        embeddings: (B, M, D), each row's real positions without gaps.
        positions: (B, slots) int64, place of each slot of the pieces in the packed window; None where nothing moved.
        widths: Slots of each piece, in order.
    """

    embeddings: Tensor
    positions: Tensor | None
    widths: tuple[int, ...]

    def split(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Hidden states (B, M, D) of the packed window, as one tensor per piece; meaningless in empty slots."""
        hidden = hidden if self.positions is None else take(hidden, self.positions)
        return hidden.split(self.widths, dim=1)


def splice(*pieces: tuple[Tensor, Tensor]) -> Spliced:
    """Join pieces, each (embeddings (B, m, D), valid (B, m) bool), into one window, each row packed to the left."""
    embeddings = torch.cat([piece for piece, _ in pieces], dim=1)
    valid = torch.cat([mask for _, mask in pieces], dim=1)
    widths = tuple(mask.shape[1] for _, mask in pieces)
    if valid.all():  # nothing to move
        return Spliced(embeddings, None, widths)
    positions = (valid.cumsum(dim=1) - 1).clamp(min=0)
    used = int(valid.sum(dim=1).max())
    return Spliced(take(embeddings, packing_order(valid)[:, :used]), positions, widths)
