"""What a step and a forward pass give back.

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

from hmt.memory.copying import Copied, Copies
from hmt.memory.episodes import Episode
from hmt.memory.state import MemoryState


@dataclass(frozen=True, kw_only=True)
class Recollection:
    """What one segment recalled.

    Attributes:
        weights: Recall weights (B, R, N) over the bank before this segment, float32, 0 in a row that has nothing to
            recall; or None without recall.
        recall_logits: What the weights are the softmax of, the lowest number at empty slots; or None.
        segments: Number of the segment behind each slot, (B, N) int64, -1 where it is empty.
        starts: (B,) int64, tokens of the text before this segment.
        distances: (B,) int64, segments between this one and the strongest recalled; 0 where nothing was recalled.
        episode: Tokens of earlier segments that were read again, or None.
    """

    weights: Tensor | None
    recall_logits: Tensor | None
    segments: Tensor
    starts: Tensor
    distances: Tensor
    episode: Episode | None = None

    def alone(self) -> Recollection:
        """This, without what else was noted with it: what was read, which is large."""
        return Recollection(**{one.name: getattr(self, one.name) for one in fields(Recollection)})


@dataclass(frozen=True, kw_only=True)
class StepOutput(Recollection):
    """What one step gives besides the new state.

    Attributes:
        hidden: Last hidden states of the new tokens, (B, l, D); None if the step only remembered.
        logits: (B, l, V), or None if they were not asked for.
        copies: What copying adds to the head's logits; it is in `logits` already. None without copying.
    """

    hidden: Tensor | None
    logits: Tensor | None
    copies: Copies | None = None


@dataclass(frozen=True)
class RecallTrace:
    """What was recalled in a call.

    Attributes:
        weights: Recall weights (B, R, N) of each segment that recalled, in order; N is the bank's width at that time.
        segments: Number of the segment behind each of those slots, (B, N) int64 each, -1 where it is empty.
        by_segment: Recall distance (B,) of each segment in order; 0 where a row recalled nothing.
        starts: Tokens of the text before each of these segments, (B,) int64 each.
        episodes: Tokens that were read again, of each segment that did, in order.
        copied: Of each new token, in order, where it followed the same words before; empty where nothing was written,
            and of a model that does not copy.
    """

    weights: tuple[Tensor, ...]
    segments: tuple[Tensor, ...]
    by_segment: tuple[Tensor, ...]
    starts: tuple[Tensor, ...]
    episodes: tuple[Episode, ...] = ()
    copied: tuple[Copied, ...] = ()

    @classmethod
    def of(cls, recollections: Sequence[Recollection], copied: Sequence[Copied] = ()) -> RecallTrace:
        """What these segments recalled, and where new tokens were copied from, in order."""
        return cls(
            weights=tuple(one.weights for one in recollections if one.weights is not None),
            segments=tuple(one.segments for one in recollections if one.weights is not None),
            by_segment=tuple(one.distances for one in recollections),
            starts=tuple(one.starts for one in recollections),
            episodes=tuple(one.episode for one in recollections if one.episode is not None),
            copied=tuple(copied),
        )

    @property
    def distances(self) -> list[int]:
        """Recall distances (n_now - n_recalled of the strongest slot), in order of segments, then rows."""
        return [distance for row in self.by_segment for distance in row.tolist() if distance > 0]

    def strongest(self, count: int | None = None, row: int = 0) -> list[tuple[int, float]]:
        """The segments that a row recalled most, strongest first; in mode backbone those that it read again most.

        Returns:
            At most `count` pairs (number of the segment, its share of all that was recalled).
        """
        mass: Counter[int] = Counter()
        if not self.weights:
            mass.update(number for number, _ in self.read_again(row))
        for weights, segments in zip(self.weights, self.segments, strict=True):
            for number, weight in zip(segments[row].tolist(), weights[row].mean(dim=0).tolist(), strict=True):
                mass[number] += weight
        total = mass.total()
        return [(number, weight / total) for number, weight in mass.most_common(count) if weight > 0]

    def bounds(self, tokens: int, row: int = 0) -> list[int]:
        """Where the segments of a row's text of so many tokens begin, and where the last one ends.

        For a call that began with an empty memory and was told of nothing else.
        """
        return sorted({min(int(one[row]), tokens) for one in self.starts} | {tokens})  # a row that ended waits

    def read_again(self, row: int = 0) -> list[tuple[int, Tensor]]:
        """What a row read again, in order: number of the segment, and the tokens (e,) int64 of it."""
        found = []
        for episode in self.episodes:
            numbers, sizes = episode.segments[row].unique_consecutive(return_counts=True)
            runs = episode.ids[row].split(sizes.tolist())
            found += [(number, run) for number, run in zip(numbers.tolist(), runs, strict=True) if number >= 0]
        return found

    def copied_runs(self, row: int = 0, context: int = 2) -> list[tuple[int, Tensor]]:
        """What a row wrote that had followed the same words before, in order.

        Args:
            row: Of the call.
            context: Tokens of the shortest context that counts.

        Returns:
            Number of a segment, and tokens (e,) int64 that were written one after another and stand in it behind such
            contexts: mostly, but not always, one after another there as well.
        """
        if not self.copied:
            return []
        tokens = torch.stack([one.tokens[row] for one in self.copied])
        matched = torch.stack([one.matched[row] for one in self.copied])
        segments = torch.stack([one.segments[row] for one in self.copied]).masked_fill(matched < context, -1)
        numbers, sizes = segments.unique_consecutive(return_counts=True)
        runs = zip(numbers.tolist(), tokens.split(sizes.tolist()), strict=True)
        return [(number, run) for number, run in runs if number >= 0]


@dataclass
class HMTOutput(ModelOutput):
    """Result of `HMTForCausalLM.forward`.

    Attributes:
        loss: Mean nats over the scored targets, and the weighted retrieval, retention and distillation losses where
            they were asked for; None without labels.
        logits: (B, T, V), 0 at padding, or None.
        nll: (B, T - 1) nats per target, 0 where a target is not scored, or None without labels.
        causal_mask: (B, T - 1) bool, targets that the memory prompt cannot have seen.
        scored_mask: (B, T - 1) bool, targets that count in the loss, or None without labels.
        memory: The state after the last token.
        recall: What was recalled, or None if it was not asked for.
        retrieval_loss: Mean nats of recalling a supporting segment, or None if none was given or nothing recalls.
        retention_loss: Mean nats of keeping a supporting segment, or None likewise and where the policy learns nothing.
        distillation_loss: Mean nats over the scored targets of the divergence from a teacher, or None without one.
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
    distillation_loss: Tensor | None = None
