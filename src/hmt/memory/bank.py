"""The memory bank: token ids of past segments, and their memory embeddings where the mode has them.

Retention policies (retention.py) decide which segments leave a full bank. Embeddings are on the model's device,
everything else on the CPU.

Shape legend: B rows, N bank slots, R memory embeddings per segment, D embedding size, L fresh tokens of the longest
segment, T remembered tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hmt.memory.rows import packing_order, take

USAGE_DECAY = 0.99
"""Factor of a slot's usage at each later recall."""

NO_TOKEN = -1
"""Stands in `tokens` after the end of a segment that is shorter than the longest."""


@dataclass(frozen=True, eq=False)
class Bank:
    """Memory embeddings, oldest first; a row's filled slots come before its empty ones.

    Attributes:
        embeddings: (B, N, D), in the dtype of the backbone's hidden states.
        valid: (B, N) bool, True where a slot is filled.
        segments: (B, N) int64, the number of the segment that left the embedding.
        usage: (B, N) float32, decayed sum of the recall weights the slot received.
        tokens: (B, N, L) int32, the fresh tokens of that segment, so that what is recalled can be read; NO_TOKEN
            after its end.
        merged: (B, N) int32, how many segments the embedding stands for; above 1 where segments were merged.
    """

    embeddings: Tensor
    valid: Tensor
    segments: Tensor
    usage: Tensor
    tokens: Tensor
    merged: Tensor

    @classmethod
    def empty(cls, batch_size: int, width: int, longest_segment: int, device: torch.device, dtype: torch.dtype) -> Bank:
        """A bank of no slots for `batch_size` rows of embeddings of size `width`, of segments of `longest_segment`."""
        return cls(
            embeddings=torch.zeros(batch_size, 0, width, device=device, dtype=dtype),
            valid=torch.zeros(batch_size, 0, dtype=torch.bool),
            segments=torch.zeros(batch_size, 0, dtype=torch.long),
            usage=torch.zeros(batch_size, 0, dtype=torch.float32),
            tokens=torch.zeros(batch_size, 0, longest_segment, dtype=torch.int32),
            merged=torch.zeros(batch_size, 0, dtype=torch.int32),
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> Bank:
        """The bank with `function` applied to each of its tensors."""
        return Bank(**{f.name: function(getattr(self, f.name)) for f in fields(self)})

    @property
    def filled(self) -> Tensor:
        """(B,) bool, True where a row has at least one memory embedding."""
        return self.valid.any(dim=1)

    @property
    def numbers(self) -> Tensor:
        """Number of the segment behind each slot, (B, N) int64, -1 where it is empty."""
        return self.segments.masked_fill(~self.valid, -1)

    def last(self, count: int) -> Tensor:
        """The newest `count` embeddings of each row, (B, count, D); undefined where a row has fewer."""
        newest = self.valid.sum(dim=1, keepdim=True) - count
        slots = (newest + torch.arange(count, device=newest.device)).clamp(min=0)
        return take(self.embeddings, slots)

    def record_usage(self, weights: Tensor, rows: Tensor) -> Bank:
        """Note the recall weights (B, R, N) of the rows (B,) that recalled."""
        usage = self.usage * USAGE_DECAY + weights.detach().sum(dim=1).cpu()
        return replace(self, usage=torch.where(rows[:, None] & self.valid, usage, self.usage))

    def append(self, embeddings: Tensor, rows: Tensor, segments: Tensor, tokens: Tensor) -> Bank:
        """Remember what a segment left behind, however full the bank is.

        Args:
            embeddings: Memory embeddings of this segment, (B, R, D).
            rows: Rows that finished a segment, (B,) bool; the others stay as they are.
            segments: The segment's number in each row, (B,).
            tokens: Its fresh tokens, (B, at most L), NO_TOKEN after the end of a row's segment.
        """
        new = rows[:, None].expand(-1, embeddings.shape[1])
        tokens = F.pad(tokens, (0, self.tokens.shape[2] - tokens.shape[1]), value=NO_TOKEN).to(self.tokens.dtype)
        grown = Bank(
            embeddings=torch.cat([self.embeddings, embeddings.to(self.embeddings.dtype)], dim=1),
            valid=torch.cat([self.valid, new], dim=1),
            segments=torch.cat([self.segments, segments[:, None].expand_as(new)], dim=1),
            usage=torch.cat([self.usage, torch.zeros(new.shape)], dim=1),
            tokens=torch.cat([self.tokens, tokens[:, None].expand(-1, new.shape[1], -1)], dim=1),
            merged=torch.cat([self.merged, torch.ones_like(new, dtype=self.merged.dtype)], dim=1),
        )
        if bool(grown.valid.all()):
            return grown
        return grown.keep(grown.valid, int(grown.valid.sum(dim=1).max()))

    def text(self, row: int) -> Tensor:
        """Remembered token ids of a row, oldest first, (T,) int32."""
        tokens = self.tokens[row, self.valid[row] & self.starts[row]]
        return tokens[tokens != NO_TOKEN]

    @property
    def starts(self) -> Tensor:
        """The first slot of each segment, and of those that are empty, (B, N) bool."""
        starts = torch.ones_like(self.valid)
        starts[:, 1:] = (self.segments[:, 1:] != self.segments[:, :-1]) | (self.valid[:, 1:] != self.valid[:, :-1])
        return starts

    def per_segment(self, values: Tensor) -> Tensor:
        """Values of the slots, (B, N) float, as the mean over the slots of the same segment."""
        group = self.starts.cumsum(dim=1) - 1
        sums, sizes = (
            torch.zeros_like(values).scatter_add(1, group, part) for part in (values, torch.ones_like(values))
        )
        return (sums / sizes.clamp(min=1)).gather(1, group)

    def keep(self, mask: Tensor, width: int) -> Bank:
        """Only the slots in `mask` (B, N), moved together in order of age; at most `width` wide."""
        order = packing_order(mask)[:, :width]
        return replace(self, valid=mask).map(lambda values: take(values, order))
