"""What recall should have looked at (the retrieval loss) and what is to be kept (the retention loss), where known.

Shape legend: B rows, S segments of a text, R memory embeddings per segment, N bank slots.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hmt.memory.bank import Bank
from hmt.memory.retention import RetentionPolicy
from hmt.memory.rows import take
from hmt.memory.state import MemoryState
from hmt.model.outputs import StepOutput
from hmt.model.stream import Segment, Stream

Supporting = Tensor | Sequence[Sequence[int]]
"""Segments that hold what is needed: (B, S) bool or their numbers row by row, or (B, S, S) bool, see `forward`."""

LEAST_SHARE = 1e-9
"""Shares below this are not told apart, so that their logarithm stays finite."""

RETRIEVAL_LOSS_WEIGHT = 1.0
"""Weight beside the loss of the language model. With 0.05 recall finds its way too, 100 of 300 steps later."""


class RetrievalLoss:
    """Mean nats of recalling a supporting segment, over the segments for which one is known and in the bank.

    Cross-entropy of the recall logits against the sum of the weights of all supporting slots, so that it does not
    matter which of several is recalled. A supporting segment that the bank no longer keeps cannot be recalled: it is
    left out.

    Args:
        supporting: (B, S) bool or numbers of segments, those that support the last segment that each row has in this
            call; or (B, S, S) bool, where [b, n, m] says that segment m supports segment n. Segments are counted from
            the beginning of the text, what the memory had read included.
        stream: The tokens of the call.

    Raises:
        ValueError: If the shape does not fit.
    """

    def __init__(self, supporting: Supporting, stream: Stream) -> None:
        rows, device = len(stream.ids), stream.ids.device
        if not isinstance(supporting, Tensor):
            supporting = _mask(supporting)
        square = supporting.dim() == 3 and supporting.shape[1] == supporting.shape[2]
        if supporting.shape[:1] != (rows,) or not (supporting.dim() == 2 or square):
            raise ValueError(
                f"supporting must be (rows, segments) or (rows, segments, segments) with {rows} row(s), "
                f"got {tuple(supporting.shape)}"
            )
        self._supporting = supporting.to(device).bool()
        self._last = stream.lengths - 1  # of each row, the packed token that the call ends with
        self._nats: Tensor = torch.zeros((), device=device)
        self._count = torch.zeros((), device=device)

    def add(self, segment: Segment, output: StepOutput, before: MemoryState) -> None:
        """Note what a segment recalled from the memory before it."""
        if output.recall_logits is None:
            return
        wanted = self._wanted(segment, before) & before.bank.valid
        known = wanted.any(dim=1)
        logits = output.recall_logits.float()
        hits = logits.masked_fill(~wanted[:, None], torch.finfo(logits.dtype).min)
        nats = (logits.logsumexp(dim=-1) - hits.logsumexp(dim=-1)).mean(dim=1)
        self._nats = self._nats + torch.where(known, nats, torch.zeros_like(nats)).sum()
        self._count = self._count + known.sum()

    def mean(self) -> Tensor:
        """Mean nats, a scalar; 0 where nothing was known."""
        return self._nats / self._count.clamp(min=1)

    def retention(self, policy: RetentionPolicy, bank: Bank) -> Tensor:
        """What a policy that learns has to learn: mean nats of keeping a supporting segment, a scalar.

        Minus the log of a slot's share in the scores of its bank, over the slots of all segments that support one of
        this call. Dropping a slot has no gradient, and the bias of recall has little where recall needs no help.

        Args:
            policy: Whose scores are positive and have a gradient.
            bank: After the text.
        """
        supporting = self._supporting.any(dim=1) if self._supporting.dim() == 3 else self._supporting
        last = supporting.shape[-1] - 1
        wanted = take(supporting, bank.segments.clamp(max=last)) & (bank.segments <= last) & bank.valid
        worth = policy.scores(bank).float() * bank.valid
        shares = worth / worth.sum(dim=1, keepdim=True).clamp(min=LEAST_SHARE)
        return -(shares.clamp(min=LEAST_SHARE).log() * wanted).sum() / wanted.sum().clamp(min=1)

    def _wanted(self, segment: Segment, before: MemoryState) -> Tensor:
        """Slots (B, N) that hold a segment which supports the one at hand."""
        segments, supporting = before.bank.segments, self._supporting
        last = supporting.shape[-1] - 1
        present = segment.mask.any(dim=1)
        if supporting.dim() == 3:
            number = before.segments_read
            present = present & (number <= last)
            supporting = supporting[torch.arange(len(number), device=number.device), number.clamp(max=last)]
        else:
            reached = segment.slots.gather(1, (segment.mask.sum(dim=1, keepdim=True) - 1).clamp(min=0))[:, 0]
            present = present & (reached == self._last)
        return take(supporting, segments.clamp(max=last)) & (segments <= last) & present[:, None]


def _mask(numbers: Sequence[Sequence[int]]) -> Tensor:
    """Numbers of segments, row by row, as (B, S) bool."""
    mask = torch.zeros(len(numbers), 1 + max((max(row, default=0) for row in numbers), default=0), dtype=torch.bool)
    for row, segments in enumerate(numbers):
        mask[row, list(segments)] = True
    return mask
