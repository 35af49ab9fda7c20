"""Which targets count, and what they cost.

Shape legend: B rows, T columns, V vocabulary, D embedding size. Targets are counted like columns: target t is token
t + 1, predicted at position t, so per-target results are (B, T - 1).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from hmt.config import MemoryConfig
from hmt.memory.copying import Copies
from hmt.memory.rows import packing_order, take
from hmt.memory.state import MemoryState
from hmt.model.backbone import head
from hmt.model.outputs import StepOutput
from hmt.model.prediction import predict
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
    """What the packed token before each target holds, (B, T) -> (B, T - 1); 0 where a column is no target."""
    before = F.pad(values[:, :-1], (1, 0))
    return stream.unpack(before)[:, 1:]


def causal_tokens(segment: Segment, state: MemoryState, config: MemoryConfig, query_tokens: Tensor) -> Tensor:
    """Which tokens of a segment the memory cannot have seen when it predicted them, (B, l) bool.

    With a "prefix" query what is recalled for a segment depends on that segment's first J tokens. The first of them is
    still predicted from the segment before, and a row's very first segment has nothing to recall.

    Args:
        segment: The tokens.
        state: What was read before them.
        config: The memory's settings.
        query_tokens: Tokens J that the segment's query reads, (B,).
    """
    if not config.queries or config.recall_query == "previous":
        return segment.mask
    place = state.pending_counts[:, None] + torch.arange(segment.ids.shape[1], device=segment.ids.device)
    first = state.segments_read[:, None] == 0
    return segment.mask & (first | (place == 0) | (place >= query_tokens[:, None]))


def causal_targets(stream: Stream, parts: list[Tensor]) -> Tensor:
    """What `causal_tokens` says of each part of a call, as targets of the call, (B, T - 1) bool."""
    return (stream.unpack(stream.join(parts)) & (stream.index > 0))[:, 1:]


class Scores:
    """What the targets of a call cost, taken down segment by segment.

    Args:
        backbone: Gives the head.
        stream: The tokens of the call.
        labels: (B, T), IGNORED where a token is not to be scored.
        loss_tokens: Score only the last so many tokens of each row; all where None.
        teacher_states: Last hidden states (B, T, D) of a teacher with the same head, or None.

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
        teacher_states: Tensor | None = None,
    ) -> None:
        for name, given in (("labels", labels), ("teacher_states", teacher_states)):
            if given is not None and given.shape[:2] != stream.real.shape:
                raise ValueError(
                    f"{name} must have the shape of input_ids {tuple(stream.real.shape)}, got {tuple(given.shape[:2])}"
                )
        self.targets = next_token_targets(stream, labels, loss_tokens)
        self._backbone = backbone
        self._stream = stream
        self._teacher = None if teacher_states is None else take(teacher_states, packing_order(stream.real))
        self._nats: list[Tensor] = []
        self._divergence: Tensor = torch.zeros((), device=labels.device)

    def add(self, segment: Segment, output: StepOutput) -> None:
        """Score a segment."""
        wanted = segment.of(self.targets, IGNORED)
        if output.hidden is None:  # it was only remembered: nothing of it is scored
            nats = torch.zeros(wanted.shape, dtype=torch.float32, device=wanted.device)
        elif self._teacher is not None:
            states = take(self._teacher, segment.slots)
            nats, divergence = nll_and_divergence(self._backbone, output.hidden, wanted, states, output.copies)
            self._divergence = self._divergence + divergence.sum()
        elif output.logits is not None:
            nats = logits_nll(output.logits, wanted)
        else:
            nats = nll(self._backbone, output.hidden, wanted, output.copies)
        self._nats.append(nats)

    def nll(self) -> Tensor:
        """Nats per target of the call, (B, T - 1), 0 where a target is not scored."""
        return per_target(self._stream, self._stream.join(self._nats))

    @property
    def scored_mask(self) -> Tensor:
        """Targets that count, (B, T - 1) bool."""
        return per_target(self._stream, self.targets != IGNORED)

    def divergence(self) -> Tensor:
        """Mean nats of the divergence from the teacher over the targets that count, a scalar."""
        return self._divergence / self.scored_mask.sum()


def nll(backbone: PreTrainedModel, hidden: Tensor, targets: Tensor, copies: Copies | None = None) -> Tensor:
    """Nats per target, (B, l) float32, 0 where a target is IGNORED.

    The head runs on the scored positions only, a chunk at a time; no logits are kept for the backward pass.

    Args:
        backbone: Gives the head.
        hidden: (B, l, D).
        targets: (B, l) int64.
        copies: What copying adds to the logits of these tokens.
    """
    return _scored_nats(backbone, hidden, targets, None, copies)[..., 0]


def nll_and_divergence(
    backbone: PreTrainedModel, hidden: Tensor, targets: Tensor, teacher_states: Tensor, copies: Copies | None = None
) -> tuple[Tensor, Tensor]:
    """Nats per target, and the divergence from a teacher's prediction, (B, l) float32 each, 0 where IGNORED.

    The divergence is KL(teacher || own) in nats over the whole vocabulary; the teacher has no gradient.

    Args:
        backbone: Gives the head, the teacher's too.
        hidden: (B, l, D).
        targets: (B, l) int64.
        teacher_states: The teacher's last hidden states, (B, l, D).
        copies: What copying adds to the logits of these tokens; the teacher copies nothing.
    """
    nats, divergence = _scored_nats(backbone, hidden, targets, teacher_states, copies).unbind(-1)
    return nats, divergence


def _scored_nats(
    backbone: PreTrainedModel, hidden: Tensor, targets: Tensor, teacher_states: Tensor | None, copies: Copies | None
) -> Tensor:
    """(B, l, 1), or (B, l, 2) with a teacher."""
    scored = targets != IGNORED
    places = scored.flatten().nonzero()[:, 0]
    inputs = [hidden[scored], places, targets[scored]] + ([] if teacher_states is None else [teacher_states[scored]])
    parts = zip(*(values.split(CHUNK_POSITIONS) for values in inputs), strict=True)
    found = torch.cat([_chunk_nats(backbone, copies, *part) for part in parts])
    result = found.new_zeros(*targets.shape, found.shape[-1])
    return result.masked_scatter(scored[..., None], found)


def _chunk_nats(backbone: PreTrainedModel, copies: Copies | None, states: Tensor, *known: Tensor) -> Tensor:
    learns = [*backbone.get_output_embeddings().parameters(), *(copies.source.copying.parameters() if copies else ())]
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in (states, *learns)):
        return _plain_nats(backbone, copies, states, *known)
    if any(parameter.requires_grad for parameter in learns):
        nats: Tensor = checkpoint(_plain_nats, backbone, copies, states, *known, use_reentrant=False)
        return nats
    return _FrozenHeadNats.apply(backbone, copies, states, *known)  # type: ignore[no-any-return, no-untyped-call]


def _plain_nats(
    backbone: PreTrainedModel,
    copies: Copies | None,
    states: Tensor,
    places: Tensor,
    targets: Tensor,
    teacher_states: Tensor | None = None,
) -> Tensor:
    """Of n states (n, D) at n places of their step: (n, 1), or (n, 2) with a teacher."""
    logits = predict(backbone, states, copies, places)
    nats = F.cross_entropy(logits, targets, reduction="none")
    if teacher_states is None:
        return nats[:, None]
    with torch.no_grad():
        theirs = head(backbone, teacher_states).float().log_softmax(dim=-1)
    divergence = F.kl_div(logits.log_softmax(dim=-1), theirs, reduction="none", log_target=True).sum(dim=-1)
    return torch.stack([nats, divergence], dim=-1)


class _FrozenHeadNats(torch.autograd.Function):
    """`_plain_nats` of a head that is not trained: the gradients are taken while the logits are there.

    A target's nats depend on its own state alone, so the gradient of their sum has each target's own in its row, to be
    scaled by whatever comes back.
    """

    @staticmethod
    def forward(ctx: Any, backbone: PreTrainedModel, copies: Copies | None, states: Tensor, *known: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = states.detach().requires_grad_()
            nats = _plain_nats(backbone, copies, leaf, *known)
            sums = nats.sum(dim=0).unbind()
            ctx.save_for_backward(*(torch.autograd.grad(one, leaf, retain_graph=True)[0] for one in sums))
        return nats.detach()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        factors = upstream[0].split(1, dim=-1)
        parts = [gradient * factor for gradient, factor in zip(ctx.saved_tensors, factors, strict=True)]
        states = sum(parts[1:], parts[0]).to(ctx.saved_tensors[0].dtype)
        return None, None, states, *(None for _ in ctx.needs_input_grad[3:])


def logits_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats per target from logits (B, l, V) that exist anyway; 0 where a target is IGNORED."""
    flat = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return flat.view(targets.shape)
