"""Put the pieces of a window together, row by row, without gaps, and find them again in the result.

Rows of a batch may lack pieces or have shorter ones. For reading, each row's real embeddings are moved to the left, so
that a causal backbone needs neither an attention mask nor position ids: what follows a row's last real position cannot
reach it. For writing they are moved to the right, so that every row's next position is the next column.

Shape legend: B rows, M window positions, D embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hmt.memory.rows import packing_order, take


@dataclass(frozen=True)
class Window:
    """A packed window and where each piece went.

    Attributes:
        embeddings: (B, M, D), each row's real positions without gaps.
        mask: (B, M) bool, real positions of the packed window.
        positions: (B, M) int64, where the slot of the unpacked window stands in the packed one (0 for empty slots).
        widths: Slots of each piece, in order.
    """

    embeddings: Tensor
    mask: Tensor
    positions: Tensor
    widths: tuple[int, ...]

    def split(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Hidden states (B, M, D) of the packed window, as one tensor per piece; meaningless in empty slots."""
        return take(hidden, self.positions).split(self.widths, dim=1)


def splice(*pieces: tuple[Tensor, Tensor], pad: Literal["left", "right"] = "right") -> Window:
    """Join pieces, each (embeddings (B, m, D), valid (B, m) bool), into one packed window, padded on one side."""
    embeddings = torch.cat([piece for piece, _ in pieces], dim=1)
    valid = torch.cat([mask for _, mask in pieces], dim=1)
    order = packing_order(valid if pad == "right" else ~valid)
    positions = valid.cumsum(dim=1) - 1
    if pad == "left":
        positions = positions + (~valid).sum(dim=1, keepdim=True)
    return Window(
        embeddings=take(embeddings, order),
        mask=valid.gather(1, order),
        positions=positions.clamp(min=0),
        widths=tuple(mask.shape[1] for _, mask in pieces),
    )
