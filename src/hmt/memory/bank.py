"""The memory bank: what past segments left behind, and which of it leaves when the bank is full.

Shape legend: B rows, N bank slots, R memory embeddings per segment, D embedding size, L fresh tokens per segment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hmt.memory.rows import packing_order, take

USAGE_DECAY = 0.99
"""What is left of a slot's usage after one more recall."""


@dataclass(frozen=True, eq=False)
class Bank:
    """Memory embeddings, oldest first; a row's filled slots come before its empty ones.

    Attributes:
        embeddings: (B, N, D), in the dtype of the backbone's hidden states.
        valid: (B, N) bool, True where a slot is filled.
        segments: (B, N) int64, the number of the segment that left the embedding.
        usage: (B, N) float32, decayed sum of the recall weights the slot received.
        tokens: (B, N, L) int32, the fresh tokens of that segment, so that what is recalled can be read.
    """

    embeddings: Tensor
    valid: Tensor
    segments: Tensor
    usage: Tensor
    tokens: Tensor

    @classmethod
    def empty(cls, batch_size: int, width: int, fresh_tokens: int, device: torch.device, dtype: torch.dtype) -> Bank:
        """A bank of no slots for `batch_size` rows of embeddings of size `width`, of segments of `fresh_tokens`."""
        return cls(
            embeddings=torch.zeros(batch_size, 0, width, device=device, dtype=dtype),
            valid=torch.zeros(batch_size, 0, device=device, dtype=torch.bool),
            segments=torch.zeros(batch_size, 0, device=device, dtype=torch.long),
            usage=torch.zeros(batch_size, 0, device=device, dtype=torch.float32),
            tokens=torch.zeros(batch_size, 0, fresh_tokens, device=device, dtype=torch.int32),
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> Bank:
        """The bank with `function` applied to each of its tensors."""
        return Bank(**{f.name: function(getattr(self, f.name)) for f in fields(self)})

    @property
    def filled(self) -> Tensor:
        """(B,) bool, True where a row has at least one memory embedding."""
        return self.valid.any(dim=1)

    def last(self, count: int) -> Tensor:
        """The newest `count` embeddings of each row, (B, count, D); undefined where a row has fewer."""
        newest = self.valid.sum(dim=1, keepdim=True) - count
        slots = (newest + torch.arange(count, device=newest.device)).clamp(min=0)
        return take(self.embeddings, slots)

    def record_usage(self, weights: Tensor, rows: Tensor) -> Bank:
        """Note the recall weights (B, R, N) of the rows (B,) that recalled."""
        usage = self.usage * USAGE_DECAY + weights.detach().sum(dim=1)
        return replace(self, usage=torch.where(rows[:, None] & self.valid, usage, self.usage))

    def append(
        self,
        embeddings: Tensor,
        rows: Tensor,
        segments: Tensor,
        tokens: Tensor,
        policy: RetentionPolicy,
        capacity: int,
    ) -> Bank:
        """Remember what a segment left behind, and let the policy drop what no longer fits.

        Args:
            embeddings: Memory embeddings of this segment, (B, R, D).
            rows: Rows that finished a segment, (B,) bool; the others stay as they are.
            segments: The segment's number in each row, (B,).
            tokens: Its fresh tokens, (B, at most L); fewer only where no row finished a segment.
            policy: Decides what leaves a full bank.
            capacity: Slots kept per row at most.
        """
        new = rows[:, None].expand(-1, embeddings.shape[1])
        tokens = F.pad(tokens, (0, self.tokens.shape[2] - tokens.shape[1])).to(self.tokens.dtype)
        grown = Bank(
            embeddings=torch.cat([self.embeddings, embeddings.to(self.embeddings.dtype)], dim=1),
            valid=torch.cat([self.valid, new], dim=1),
            segments=torch.cat([self.segments, segments[:, None].expand_as(new)], dim=1),
            usage=torch.cat([self.usage, torch.zeros(new.shape, device=self.usage.device)], dim=1),
            tokens=torch.cat([self.tokens, tokens[:, None].expand(-1, new.shape[1], -1)], dim=1),
        )
        return grown.keep(policy(grown, capacity), capacity)

    def keep(self, mask: Tensor, capacity: int) -> Bank:
        """Only the slots in `mask` (B, N), moved together in order of age; at most `capacity` wide."""
        order = packing_order(mask)[:, :capacity]
        return replace(self, valid=mask).map(lambda values: take(values, order))


RetentionPolicy = Callable[[Bank, int], Tensor]
"""(bank, capacity) -> mask (B, N) of the slots to keep, at most `capacity` per row, never an empty slot."""


def fifo(bank: Bank, capacity: int) -> Tensor:
    """Keep the newest: what the published program does."""
    newer = bank.valid.flip(1).cumsum(dim=1).flip(1)
    return bank.valid & (newer <= capacity)


POLICIES: dict[str, RetentionPolicy] = {"fifo": fifo}


def retention_policy(name: str) -> RetentionPolicy:
    """The policy of this name.

    Raises:
        ValueError: If there is none; names those that exist.
    """
    if name not in POLICIES:
        raise ValueError(f"memory_policy must be one of {', '.join(POLICIES)}, got {name!r}")
    return POLICIES[name]
