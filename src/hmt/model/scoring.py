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
from hmt.memory.state import MemoryState
from hmt.model.backbone import head
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


def nll(backbone: PreTrainedModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """Nats per target, (B, l) float32, 0 where a target is IGNORED.

    The head runs on the scored positions only, a chunk at a time; no logits are kept for the backward pass.

    Args:
        backbone: Gives the head.
        hidden: (B, l, D).
        targets: (B, l) int64.
    """
    scored = targets != IGNORED
    states, wanted = hidden[scored], targets[scored]
    parts = zip(states.split(CHUNK_POSITIONS), wanted.split(CHUNK_POSITIONS), strict=True)
    result = torch.zeros(targets.shape, dtype=torch.float32, device=hidden.device)
    return result.masked_scatter(scored, torch.cat([_chunk_nll(backbone, *part) for part in parts]))


def _chunk_nll(backbone: PreTrainedModel, states: Tensor, targets: Tensor) -> Tensor:
    if not (torch.is_grad_enabled() and states.requires_grad):
        return _plain_nll(backbone, states, targets)
    if any(parameter.requires_grad for parameter in backbone.get_output_embeddings().parameters()):
        return checkpoint(_plain_nll, backbone, states, targets, use_reentrant=False)  # type: ignore[no-any-return]
    return _FrozenHeadNLL.apply(states, targets, backbone)  # type: ignore[no-any-return, no-untyped-call]


def _plain_nll(backbone: PreTrainedModel, states: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(head(backbone, states).float(), targets, reduction="none")


class _FrozenHeadNLL(torch.autograd.Function):
    """`_plain_nll` of a head that is not trained: the gradient is taken while the logits are there.

    A target's nats depend on its own state alone, so the gradient of their sum has each target's own in its row, to be
    scaled by whatever comes back.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, targets: Tensor, backbone: PreTrainedModel) -> Tensor:
        with torch.enable_grad():
            leaf = states.detach().requires_grad_()
            nats = _plain_nll(backbone, leaf, targets)
            ctx.save_for_backward(*torch.autograd.grad(nats.sum(), leaf))
        return nats.detach()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream[0][:, None]).to(gradient.dtype), None, None


def logits_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats per target from logits (B, l, V) that exist anyway; 0 where a target is IGNORED."""
    flat = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return flat.view(targets.shape)
