"""Put the pieces of a window together, row by row, without gaps, and find them again in the result.

Rows of a batch may lack pieces or have shorter ones. Each row's real embeddings are moved to the left, so that a causal
backbone needs neither an attention mask nor position ids: what follows a row's last real position cannot reach it.

Shape legend: B rows, M window positions, D embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hmt.memory.rows import pack, take


@dataclass(frozen=True)
class Window:
    """A packed window and where each piece went.

    Attributes:
        embeddings: (B, M, D), each row's real positions first.
        positions: (B, M) int64, where the slot of the unpacked window stands in the packed one (0 for empty slots).
        widths: Slots of each piece, in order.
    """

    embeddings: Tensor
    positions: Tensor
    widths: tuple[int, ...]

    def split(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Hidden states (B, M, D) of the packed window, as one tensor per piece; meaningless in empty slots."""
        return take(hidden, self.positions).split(self.widths, dim=1)


def splice(*pieces: tuple[Tensor, Tensor]) -> Window:
    """Join pieces, each (embeddings (B, m, D), valid (B, m) bool), into one packed window."""
    embeddings = torch.cat([piece for piece, _ in pieces], dim=1)
    valid = torch.cat([mask for _, mask in pieces], dim=1)
    packed, _ = pack(embeddings, valid)
    positions = (valid.cumsum(dim=1) - 1).clamp(min=0)
    return Window(packed, positions, tuple(mask.shape[1] for _, mask in pieces))
