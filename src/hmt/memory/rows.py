"""Row-wise moves in a batch whose rows hold different amounts.

Shape legend: B rows, M slots, D embedding size.
"""

from __future__ import annotations

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
