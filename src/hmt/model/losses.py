"""Losses: targets that count and their nats, retrieval of supporting segments, and how they combine.

Shape legend: B rows, T columns, V vocabulary, D embedding size. Targets are counted like columns: target t is token
t + 1, predicted at position t, so per-target results are (B, T - 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from hmt.config import MemoryConfig
from hmt.memory.bank import Bank
from hmt.memory.retention import RetentionPolicy
from hmt.memory.rows import take
from hmt.memory.state import MemoryState
from hmt.model.backbone import head
from hmt.model.outputs import HMTOutput, StepOutput
from hmt.model.stream import Segment, Stream
from hmt.text.batches import IGNORED

CHUNK_POSITIONS = 1024
"""Positions whose logits exist at one time."""


def next_token_targets(stream: Stream, labels: Tensor, loss_tokens: int | None) -> Tensor:
    """For each packed token of the call, the label of its successor, (B, T); IGNORED where nothing is scored.

    Args:
        stream: The tokens of the call.
        labels: (B, T), IGNORED where a token is not to be scored.
        loss_tokens: Score only the last so many tokens of each row; all where None.
    """
    packed = stream.pack(labels, IGNORED)
    if loss_tokens is not None:
        place = torch.arange(packed.shape[1], device=packed.device)
        packed = packed.masked_fill(place < (stream.lengths - loss_tokens)[:, None], IGNORED)
    return F.pad(packed[:, 1:], (0, 1), value=IGNORED)


def per_target(stream: Stream, values: Tensor) -> Tensor:
    """Values of packed tokens (B, T) as values of the targets they predict, (B, T - 1); 0 where there is no target."""
    before = F.pad(values[:, :-1], (1, 0))
    return stream.unpack(before)[:, 1:]


def causal_tokens(segment: Segment, state: MemoryState, config: MemoryConfig, query_tokens: Tensor) -> Tensor:
    """Mark the tokens of a segment that the memory cannot have seen when it predicted them, (B, l) bool.

    With a "prefix" query what is recalled for a segment depends on that segment's first J tokens. The first of them is
    still predicted from the segment before, and a row's very first segment has nothing to recall.

    Args:
        segment: The tokens.
        state: What was read before them.
        config: The memory's settings.
        query_tokens: Tokens J that the segment's query reads, (B,).
    """
    if config.query != "prefix":
        return segment.mask
    place = state.pending_counts[:, None] + torch.arange(segment.ids.shape[1], device=segment.ids.device)
    first = state.segments_read[:, None] == 0
    return segment.mask & (first | (place == 0) | (place >= query_tokens[:, None]))


def causal_targets(stream: Stream, parts: list[Tensor]) -> Tensor:
    """Join `causal_tokens` of each part of a call into targets of the call, (B, T - 1) bool."""
    return (stream.unpack(stream.join(parts)) & (stream.index > 0))[:, 1:]


class Scores:
    """Nats of the targets of a call, collected segment by segment.

    Args:
        backbone: Gives the head.
        stream: The tokens of the call.
        labels: (B, T), IGNORED where a token is not to be scored.
        loss_tokens: Score only the last so many tokens of each row; all where None.

    Raises:
        ValueError: If labels or states are not of the call's tokens.

    Attributes:
        targets: For each packed token of the call, the label of its successor, (B, T); IGNORED where nothing is scored.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        stream: Stream,
        labels: Tensor,
        loss_tokens: int | None = None,
    ) -> None:
        if labels.shape != stream.real.shape:
            raise ValueError(
                f"labels must have the shape of input_ids {tuple(stream.real.shape)}, got {tuple(labels.shape)}"
            )
        self.targets = next_token_targets(stream, labels, loss_tokens)
        self._backbone = backbone
        self._stream = stream
        self._nats: list[Tensor] = []

    def add(self, segment: Segment, output: StepOutput) -> None:
        """Score a segment."""
        device = self._backbone.get_output_embeddings().weight.device  # type: ignore[union-attr]
        wanted = segment.of(self.targets, IGNORED).to(device)
        if output.logits is not None:
            nats = logits_nll(output.logits, wanted)
        elif output.hidden is None or not bool((segment.of(self.targets, IGNORED) != IGNORED).any()):
            nats = torch.zeros(wanted.shape, dtype=torch.float32, device=device)  # nothing of it is scored
        else:
            nats = nll(self._backbone, output.hidden, wanted)
        self._nats.append(nats)

    def nll(self) -> Tensor:
        """Nats per target of the call, (B, T - 1), 0 where a target is not scored."""
        return per_target(self._stream, self._stream.join(self._nats))

    @property
    def scored_mask(self) -> Tensor:
        """Targets that count, (B, T - 1) bool."""
        scored = per_target(self._stream, self.targets != IGNORED)
        return scored.to(self._backbone.get_output_embeddings().weight.device)  # type: ignore[union-attr]


def nll(backbone: PreTrainedModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """Nats per target, (B, l) float32, 0 where a target is IGNORED.

    The head runs on the scored positions only, a chunk at a time; no logits are kept for the backward pass.

    Args:
        backbone: Gives the head.
        hidden: (B, l, D).
        targets: (B, l) int64.
    """
    scored = targets != IGNORED
    parts = zip(hidden[scored].split(CHUNK_POSITIONS), targets[scored].split(CHUNK_POSITIONS), strict=True)
    found = torch.cat([_chunk_nats(backbone, states, wanted) for states, wanted in parts])
    return found.new_zeros(targets.shape).masked_scatter(scored, found)


def _chunk_nats(backbone: PreTrainedModel, states: Tensor, targets: Tensor) -> Tensor:
    learns = list(backbone.get_output_embeddings().parameters())
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in (states, *learns)):
        return _plain_nats(backbone, states, targets)
    if any(parameter.requires_grad for parameter in learns):
        nats: Tensor = checkpoint(_plain_nats, backbone, states, targets, use_reentrant=False)
        return nats
    return _FrozenHeadNats.apply(backbone, states, targets)  # type: ignore[no-any-return, no-untyped-call]


def _plain_nats(backbone: PreTrainedModel, states: Tensor, targets: Tensor) -> Tensor:
    """Nats (n,) of targets (n,) after hidden states (n, D)."""
    return F.cross_entropy(head(backbone, states).float(), targets, reduction="none")


class _FrozenHeadNats(torch.autograd.Function):
    """`_plain_nats` of a head that is not trained: the gradients are taken while the logits are there.

    A target's nats depend on its own state alone, so the gradient of their sum has each target's own in its row, to be
    scaled by whatever comes back.
    """

    @staticmethod
    def forward(ctx: Any, backbone: PreTrainedModel, states: Tensor, targets: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = states.detach().requires_grad_()
            nats = _plain_nats(backbone, leaf, targets)
            ctx.save_for_backward(torch.autograd.grad(nats.sum(), leaf)[0])
        return nats.detach()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return None, (gradient * upstream[0][:, None]).to(gradient.dtype), None


def logits_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats per target from logits (B, l, V) that exist anyway; 0 where a target is IGNORED."""
    flat = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return flat.view(targets.shape)


def combine(
    result: HMTOutput,
    scores: Scores | None,
    retrieval: RetrievalLoss | None,
    policy: RetentionPolicy,
    retrieval_loss_weight: float,
    num_items: Tensor | int | None,
    unused: Tensor | float,
) -> None:
    """Put the losses of a call into its result, and their sum.

    Args:
        result: Has the memory after the call.
        scores: Nats of the targets, or None without labels.
        retrieval: Retrieval of supporting segments, or None if none is known.
        policy: Retention policy, which may learn from the supporting segments.
        retrieval_loss_weight: Weight of the retrieval and retention loss.
        num_items: Divide the sum of nats by this; by the number of scored targets where None.
        unused: Zero that parameters without a part in the call take part in.
    """
    if scores is not None:
        result.nll, result.scored_mask = scores.nll() + unused, scores.scored_mask
        count = result.scored_mask.sum() if num_items is None else num_items
        result.loss = result.nll.sum() / (count.to(result.nll.device) if isinstance(count, Tensor) else count)
    if retrieval is not None:
        known = result.retrieval_loss = retrieval.mean()
        if policy.learns and result.memory is not None:
            result.retention_loss = retrieval.retention(policy, result.memory.bank)
            known = known + result.retention_loss
        if result.loss is not None:
            result.loss = result.loss + retrieval_loss_weight * known


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
        rows = len(stream.ids)
        if not isinstance(supporting, Tensor):
            supporting = _mask(supporting)
        square = supporting.dim() == 3 and supporting.shape[1] == supporting.shape[2]
        if supporting.shape[:1] != (rows,) or not (supporting.dim() == 2 or square):
            raise ValueError(
                f"supporting must be (rows, segments) or (rows, segments, segments) with {rows} row(s), "
                f"got {tuple(supporting.shape)}"
            )
        self._supporting = supporting.cpu().bool()
        self._last = stream.lengths - 1  # of each row, the packed token that the call ends with
        self._nats: Tensor | float = 0.0
        self._count = 0

    def add(self, segment: Segment, output: StepOutput, before: MemoryState) -> None:
        """Note what a segment recalled from the memory before it."""
        if output.recall_logits is None:
            return
        wanted = self._wanted(segment, before) & before.bank.valid
        known = wanted.any(dim=1)
        logits = output.recall_logits.float()
        hits = logits.masked_fill(~wanted.to(logits.device)[:, None], torch.finfo(logits.dtype).min)
        nats = (logits.logsumexp(dim=-1) - hits.logsumexp(dim=-1)).mean(dim=1)
        self._nats = self._nats + torch.where(known.to(nats.device), nats, torch.zeros_like(nats)).sum()
        self._count += int(known.sum())

    def mean(self) -> Tensor:
        """Mean nats, a scalar; 0 where nothing was known."""
        return torch.as_tensor(self._nats / max(self._count, 1))

    def retention(self, policy: RetentionPolicy, bank: Bank) -> Tensor:
        """Loss of a retention policy that learns: mean nats of keeping a supporting segment, a scalar.

        Minus the log of a slot's share in the scores of its bank, over the slots of all segments that support one of
        this call. Dropping a slot has no gradient, and the bias of recall has little where recall needs no help.

        Args:
            policy: Whose scores are positive and have a gradient.
            bank: After the text.
        """
        supporting = self._supporting.any(dim=1) if self._supporting.dim() == 3 else self._supporting
        last = supporting.shape[-1] - 1
        wanted = take(supporting, bank.segments.clamp(max=last)) & (bank.segments <= last) & bank.valid
        scores = policy.scores(bank).float()
        worth, wanted = scores * bank.valid.to(scores.device), wanted.to(scores.device)
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
            supporting = supporting[torch.arange(len(number)), number.clamp(max=last)]
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
