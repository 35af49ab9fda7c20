"""What a step knows of a segment: its tokens so far, the query of its recall, and the memory prompt.

Shape legend: B rows, l new tokens of a segment, L fresh tokens, J query tokens, R memory embeddings per segment,
D embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hmt.model.outputs import Recollection


@dataclass(frozen=True)
class Fresh:
    """The fresh tokens of each row's unfinished segment, new ones included.

    Attributes:
        ids: (B, pending + l) int64, each row from the left.
        mask: Likewise, bool.
        new: (B,) int64, how many of them came with this call.
        complete: (B,) bool, rows that have a whole segment now.
    """

    ids: Tensor
    mask: Tensor
    new: Tensor
    complete: Tensor


@dataclass(frozen=True)
class Query:
    """The tokens that a segment's summary reads.

    Attributes:
        ids: (B, at most J) int64.
        mask: Likewise, bool.
        asked: (B,) int64, how many of them are tokens of the segment itself.
        summary: Summary of them, (B, R, D), where it is computed already.
    """

    ids: Tensor
    mask: Tensor
    asked: Tensor
    summary: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Recalled(Recollection):
    """The memory prompt of a segment, and where it comes from.

    Attributes:
        leading: Prompt before the segment, (B, R, D).
        trailing: Prompt behind the segment, whose last hidden state is the memory embedding, (B, R, D).
        near: (B,) bool, rows whose strongest recalled segment is one of the last.
        asked: (B,) int64, tokens of the segment itself that the query has read.
    """

    leading: Tensor
    trailing: Tensor
    near: Tensor
    asked: Tensor
