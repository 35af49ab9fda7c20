"""What a step and a forward pass give back.

Shape legend: B rows, T tokens of a call, l new tokens of a segment, R memory embeddings per segment, N bank slots,
D embedding size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput

from hmt.memory.state import MemoryState


@dataclass(frozen=True)
class StepOutput:
    """What one step gives besides the new state.

    Attributes:
        hidden: Last hidden states of the new tokens, (B, l, D); None if the step only remembered.
        logits: (B, l, V), or None if they were not asked for.
        weights: Recall weights (B, R, N) over the bank before this segment, float32, or None without recall.
        distances: (B,) int64, segments between this one and the strongest recalled; 0 where nothing was recalled.
    """

    hidden: Tensor | None
    logits: Tensor | None
    weights: Tensor | None
    distances: Tensor


@dataclass(frozen=True)
class RecallTrace:
    """What was recalled in a call.

    Attributes:
        weights: Recall weights (B, R, N) of each segment that recalled, in order.
        by_segment: Recall distance (B,) of each segment in order; 0 where a row recalled nothing.
    """

    weights: tuple[Tensor, ...]
    by_segment: tuple[Tensor, ...]

    @property
    def distances(self) -> list[int]:
        """Recall distances (n_now - n_recalled of the strongest slot), in order of segments, then rows."""
        return [distance for row in self.by_segment for distance in row.tolist() if distance > 0]


@dataclass
class HMTOutput(ModelOutput):
    """Result of `HMTForCausalLM.forward`.

    Attributes:
        loss: Mean nats over the scored targets, or None without labels.
        logits: (B, T, V), 0 at padding, or None.
        nll: (B, T - 1) nats per target, 0 where a target is not scored, or None without labels.
        causal_mask: (B, T - 1) bool, targets that the memory prompt cannot have seen.
        scored_mask: (B, T - 1) bool, targets that count in the loss, or None without labels.
        memory: The state after the last token.
        recall: What was recalled, or None if it was not asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    nll: Tensor | None = None
    causal_mask: Tensor | None = None
    scored_mask: Tensor | None = None
    memory: MemoryState | None = None
    recall: RecallTrace | None = None
