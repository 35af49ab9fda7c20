"""Row-wise moves in a batch whose rows hold different amounts, and windows joined from pieces without gaps.

Rows of a batch may lack pieces or have shorter ones. Each row's real embeddings are moved to the left, so that a causal
backbone needs neither an attention mask nor position ids: what follows a row's last real position cannot reach it.

Shape legend: B rows, M slots or window positions, D embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def take(values: Tensor, slots: Tensor) -> Tensor:
    """Slots (B, m) of values (B, M) or (B, M, D)."""
    slots = slots.to(values.device)
    if values.dim() == 3:
        slots = slots[..., None].expand(-1, -1, values.shape[-1])
    return values.gather(1, slots)


def put(values: Tensor, slots: Tensor, new: Tensor, rows: Tensor) -> Tensor:
    """Values (B, M) or (B, M, D) with new ones, (B, m) or (B, m, D), in the slots (B, m) of some rows (B,)."""
    slots, rows = slots.to(values.device), rows.to(values.device)
    if values.dim() == 3:
        slots, rows = slots[..., None].expand(-1, -1, values.shape[-1]), rows[:, None]
    return torch.where(rows[:, None], values.scatter(1, slots, new), values)


def packing_order(valid: Tensor) -> Tensor:
    """Slots (B, M) in the order that moves each row's valid ones to the left and keeps their order."""
    return torch.argsort((~valid).to(torch.int8), dim=1, stable=True)


def pack(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Move each row's valid slots to the left, in order.

    Args:
        values: (B, M) or (B, M, D).
        valid: (B, M) bool.

    Returns:
        The moved values, and their mask (B, M).
    """
    order = packing_order(valid)
    return take(values, order), valid.gather(1, order)


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
