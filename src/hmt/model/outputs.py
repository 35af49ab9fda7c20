"""Results of a step and of a forward pass.

Shape legend: B rows, T tokens of a call, l new tokens of a segment, R memory embeddings per segment, N bank slots,
D embedding size, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from hmt.memory.passages import Passage
from hmt.memory.state import MemoryState


@dataclass(frozen=True, kw_only=True)
class Recollection:
    """Recall of one segment.

    Attributes:
        weights: Recall weights (B, R, N) over the bank before this segment, float32, 0 in a row that has nothing to
            recall; or None without recall.
        recall_logits: Logits of the weights, the lowest number at empty slots; or None.
        segments: Number of the segment behind each slot, (B, N) int64, -1 where it is empty.
        starts: (B,) int64, tokens of the text before this segment.
        distances: (B,) int64, segments between this one and the strongest recalled; 0 where nothing was recalled.
    """

    weights: Tensor | None
    recall_logits: Tensor | None
    segments: Tensor
    starts: Tensor
    distances: Tensor

    def alone(self) -> Recollection:
        """The recollection without the hidden states noted with it."""
        return Recollection(**{one.name: getattr(self, one.name) for one in fields(Recollection)})


@dataclass(frozen=True, kw_only=True)
class StepOutput(Recollection):
    """Result of a step besides the new state.

    Attributes:
        hidden: Last hidden states of the new tokens, (B, l, D); None if the step only remembered.
        logits: (B, l, V), or None if they were not asked for.
    """

    hidden: Tensor | None
    logits: Tensor | None

    @classmethod
    def empty(cls, state: MemoryState) -> StepOutput:
        """The output of a step that only keeps tokens for later."""
        return cls(
            hidden=None,
            logits=None,
            weights=None,
            recall_logits=None,
            segments=state.bank.numbers,
            starts=state.tokens_read - state.pending_counts,
            distances=torch.zeros_like(state.tokens_read),
        )


@dataclass(frozen=True)
class RecallTrace:
    """Recall of a call.

    Attributes:
        weights: Recall weights (B, R, N) of each segment that recalled embeddings, in order; N is the width then.
        segments: Number of the segment behind each of those slots, (B, N) int64 each, -1 where it is empty.
        by_segment: Recall distance (B,) of each segment in order; 0 where a row recalled nothing.
        starts: Tokens of the text before each of these segments, (B,) int64 each.
        passages: Passages of remembered text that were put into the window, in order of rows, then age.
    """

    weights: tuple[Tensor, ...] = ()
    segments: tuple[Tensor, ...] = ()
    by_segment: tuple[Tensor, ...] = ()
    starts: tuple[Tensor, ...] = ()
    passages: tuple[Passage, ...] = ()

    @classmethod
    def of(cls, recollections: Sequence[Recollection], passages: Sequence[Passage] = ()) -> RecallTrace:
        """The recall of these segments, in order, and of these passages."""
        return cls(
            weights=tuple(one.weights for one in recollections if one.weights is not None),
            segments=tuple(one.segments for one in recollections if one.weights is not None),
            by_segment=tuple(one.distances for one in recollections),
            starts=tuple(one.starts for one in recollections),
            passages=tuple(passages),
        )

    @property
    def distances(self) -> list[int]:
        """Recall distances (n_now - n_recalled of the strongest slot), in order of segments, then rows."""
        return [distance for row in self.by_segment for distance in row.tolist() if distance > 0]

    def of_row(self, row: int) -> list[Passage]:
        """The passages that a row recalled, oldest first."""
        return [passage for passage in self.passages if passage.row == row]

    def strongest(self, count: int | None = None, row: int = 0) -> list[tuple[int, float]]:
        """The segments whose embeddings a row recalled most, strongest first.

        Returns:
            At most `count` pairs (number of the segment, its share of all that was recalled).
        """
        mass: Counter[int] = Counter()
        for weights, segments in zip(self.weights, self.segments, strict=True):
            for number, weight in zip(segments[row].tolist(), weights[row].mean(dim=0).tolist(), strict=True):
                mass[number] += weight
        total = mass.total()
        return [(number, weight / total) for number, weight in mass.most_common(count) if weight > 0]

    def bounds(self, tokens: int, row: int = 0) -> list[int]:
        """Borders of the segments of a row's text of so many tokens, for a call that began with an empty memory."""
        return sorted({min(int(one[row]), tokens) for one in self.starts} | {tokens})  # a row that ended waits


@dataclass
class HMTOutput(ModelOutput):
    """Result of `HMTForCausalLM.forward`.

    Attributes:
        loss: Mean nats over the scored targets, and the weighted retrieval and retention losses where they were asked
            for; None without labels.
        logits: (B, T, V), 0 at padding, or None.
        nll: (B, T - 1) nats per target, 0 where a target is not scored, or None without labels.
        causal_mask: (B, T - 1) bool, targets that the memory prompt cannot have seen.
        scored_mask: (B, T - 1) bool, targets that count in the loss, or None without labels.
        memory: The state after the last token.
        recall: Recall of the call, or None if it was not asked for.
        retrieval_loss: Mean nats of recalling a supporting segment, or None if none was given or nothing recalls.
        retention_loss: Mean nats of keeping a supporting segment, or None likewise and where the policy learns nothing.
        last_hidden_state: (B, T, D), 0 at padding, with logits; for trainers that bring their own head (TRL).
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    nll: Tensor | None = None
    causal_mask: Tensor | None = None
    scored_mask: Tensor | None = None
    memory: MemoryState | None = None
    recall: RecallTrace | None = None
    retrieval_loss: Tensor | None = None
    retention_loss: Tensor | None = None
    last_hidden_state: Tensor | None = None
