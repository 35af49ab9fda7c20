"""What a step knows of a segment: its tokens so far, what it asks the bank with, and what it gets of the past.

Shape legend: B rows, l new tokens of a segment, L fresh tokens, J query tokens, R memory embeddings per segment,
D embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hmt.memory.copying import Copies, Source
from hmt.memory.state import MemoryState
from hmt.model.outputs import Recollection


@dataclass(frozen=True)
class Fresh:
    """The fresh tokens of each row's segment so far.

    Attributes:
        ids: (B, at most L) int64, each row from the left.
        mask: Likewise, bool.
        new: (B,) int64, how many of them came with this call.
        complete: (B,) bool, rows whose segment these tokens complete.
    """

    ids: Tensor
    mask: Tensor
    new: Tensor
    complete: Tensor


@dataclass(frozen=True)
class Query:
    """What a segment asks the bank with.

    Attributes:
        ids: Tokens, (B, at most J) int64.
        mask: Likewise, bool.
        summary: What the backbone makes of them, (B, R, D), where that is computed already.
    """

    ids: Tensor
    mask: Tensor
    summary: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Recalled(Recollection):
    """What a segment gets to see of the past, and where it comes from.

    Attributes:
        near: Rows (B,) bool whose strongest recalled segment is a near one: their next segment is read fast, if the
            model reads at two speeds.
        leading: Prompt before the segment, (B, R, D).
        trailing: Prompt after the segment, whose last hidden state is what the segment leaves behind, (B, R, D).
        source: What the segment may copy from, or None without copying.
    """

    near: Tensor
    leading: Tensor
    trailing: Tensor
    source: Source | None

    def copies(self, state: MemoryState, ids: Tensor, mask: Tensor) -> Copies | None:
        """What copying adds to the logits of new tokens (B, l) after a state, without any to those of its newest."""
        return None if self.source is None else self.source.copies(state, ids, mask)

    def leading_prompt(self) -> tuple[Tensor, Tensor]:
        """The leading prompt as a piece of the window."""
        return self.leading, torch.ones(self.leading.shape[:2], dtype=torch.bool, device=self.leading.device)

    def trailing_prompt(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The trailing prompt as a piece of the window of some rows (B,)."""
        return self.trailing, rows[:, None].expand(self.trailing.shape[:2])
