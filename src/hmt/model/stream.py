"""The tokens of a call as aligned segments: each row is cut from its own first real token, whatever its padding.

Token ids and their bookkeeping are on the CPU, so that no step waits for the device.

Segments are cut one after the other, since how long one is may depend on what the one before it recalled.

Shape legend: B rows, T columns of the call, l columns of one segment.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hmt.memory.rows import pack, take
from hmt.memory.state import MemoryState


@dataclass(frozen=True)
class Segment:
    """The part of a call that belongs to one segment.

    Attributes:
        ids: (B, l) int64, each row's new tokens of the segment, from the left.
        mask: (B, l) bool.
        slots: (B, l) int64, where these tokens stand in the packed call.
    """

    ids: Tensor
    mask: Tensor
    slots: Tensor

    def of(self, values: Tensor, fill: int) -> Tensor:
        """This segment's part (B, l) of values (B, T) of the packed tokens; `fill` where a row has no token."""
        return take(values, self.slots).masked_fill(~self.mask, fill)


class Stream:
    """The real tokens of a call, packed to the left, after the tokens that the state holds of an unfinished segment.

    Args:
        input_ids: (B, T) int64.
        attention_mask: (B, T), nonzero where a token is real; all are where it is None.
        state: What was read before.

    Raises:
        ValueError: If the shapes do not fit, or a row holds no token at all.
    """

    def __init__(self, input_ids: Tensor, attention_mask: Tensor | None, state: MemoryState) -> None:
        if input_ids.dim() != 2 or input_ids.shape[1] == 0:
            raise ValueError(f"input_ids must be (batch, tokens) with at least one token, got {tuple(input_ids.shape)}")
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask must have the shape of input_ids {tuple(input_ids.shape)}, "
                f"got {tuple(attention_mask.shape)}"
            )
        input_ids = input_ids.long().cpu()
        self.real = (
            torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool().cpu()
        )
        empty = ~self.real.any(dim=1) & (state.tokens_read == 0)
        if empty.any():
            raise ValueError(f"attention_mask leaves no token in row(s) {empty.nonzero().flatten().tolist()}")
        self.pending = state.pending_counts
        self.ids, self.mask = pack(input_ids, self.real)
        self.lengths = self.mask.sum(dim=1)
        self.index = (self.real.cumsum(dim=1) - 1).clamp(min=0)  # (B, T): which packed token a column holds
        self._cuts: list[tuple[Tensor, Tensor]] = []
        self._done = torch.zeros_like(self.lengths)
        # The same text with the unfinished segment's tokens in front: where all segments have L tokens, segment n is
        # [n * L, (n + 1) * L) of it.
        self.whole_ids, self.whole_mask = pack(
            torch.cat([state.pending_ids, self.ids], dim=1), torch.cat([state.pending_valid, self.mask], dim=1)
        )

    def cut(self, room: Tensor) -> Segment | None:
        """The next part of each row, as wide as the longest of them.

        Args:
            room: Tokens that the row's segment has room for, (B,) int64.

        Returns:
            The part, or None where every row is at its end.
        """
        start, end = self._done, torch.minimum(self._done + room, self.lengths)
        width = int((end - start).max())
        if not width:
            return None
        self._cuts.append((start, end))
        self._done = end
        slots = start[:, None] + torch.arange(width, device=start.device)
        mask = slots < end[:, None]
        slots = slots.clamp(max=self.ids.shape[1] - 1)
        return Segment(take(self.ids, slots), mask, slots)

    def count(self, fresh_tokens: int, whole: bool) -> int:
        """Segments of `fresh_tokens` that the longest row has, its unfinished ones included; or whole ones alone."""
        longest = int((self.pending + self.lengths).max())
        return longest // fresh_tokens if whole else -(-longest // fresh_tokens)

    def span(self, start: int, length: int) -> tuple[Tensor, Tensor]:
        """Tokens [start, start + length) of the text with its pending tokens: ids and mask, (B, length)."""
        pad = max(start + length - self.whole_ids.shape[1], 0)
        ids = F.pad(self.whole_ids[:, start : start + length], (0, pad))
        mask = F.pad(self.whole_mask[:, start : start + length], (0, pad))
        return ids, mask

    def pack(self, values: Tensor, fill: int) -> Tensor:
        """Values (B, T) of the call's columns in the order of the packed tokens; `fill` where there is none."""
        return pack(values.long().cpu(), self.real)[0].masked_fill(~self.mask, fill)

    def join(self, parts: list[Tensor]) -> Tensor:
        """One tensor for each part that was cut, (B, l, ...), as values of the packed tokens, (B, T, ...)."""
        joined = torch.cat(parts, dim=1)
        if self.mask.all() and joined.shape[1] == self.ids.shape[1]:  # all rows were cut alike: nothing to move
            return joined
        slots = torch.zeros_like(self.ids)
        offset = 0
        for (start, end), part in zip(self._cuts, parts, strict=True):
            place = torch.arange(self.ids.shape[1], device=start.device) - start[:, None]
            inside = (place >= 0) & (place < (end - start)[:, None])
            slots = torch.where(inside, place + offset, slots)
            offset += part.shape[1]
        return take(joined, slots)

    def unpack(self, values: Tensor) -> Tensor:
        """Values of the packed tokens, (B, T) or (B, T, V), back in the call's columns; 0 at padding."""
        if self.real.all():
            return values
        real = (self.real if values.dim() == 2 else self.real[..., None]).to(values.device)
        return take(values, self.index) * real


def groups(first: int, end: int, at_once: int, few_sizes: bool) -> Iterator[range]:
    """Numbers from `first` to `end` in groups of `at_once`, the last of them smaller.

    Args:
        first: Number.
        end: One more than the last number.
        at_once: Size of a group.
        few_sizes: Cut a smaller last group into powers of two: libraries keep a kernel for every size they have met, so
            that texts of all lengths would otherwise cost memory that grows with the number of lengths.
    """
    while first < end:
        left = end - first
        size = at_once if left >= at_once else 1 << (left.bit_length() - 1) if few_sizes else left
        yield range(first, first + size)
        first += size
