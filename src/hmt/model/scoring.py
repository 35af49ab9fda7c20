"""Which targets count, and what they cost.

Shape legend: B rows, T columns, V vocabulary, D embedding size. Targets are counted like columns: target t is token
t + 1, predicted at position t, so per-target results are (B, T - 1).
"""

from __future__ import annotations

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

    The head runs on the scored positions only, a chunk at a time, and again in the backward pass instead of keeping
    the logits.

    Args:
        backbone: Gives the head.
        hidden: (B, l, D).
        targets: (B, l) int64.
    """
    scored = targets != IGNORED
    states, wanted = hidden[scored], targets[scored]
    chunks = []
    for start in range(0, len(wanted), CHUNK_POSITIONS):
        part = slice(start, start + CHUNK_POSITIONS)
        if torch.is_grad_enabled() and states.requires_grad:
            chunks.append(checkpoint(_chunk_nll, backbone, states[part], wanted[part], use_reentrant=False))
        else:
            chunks.append(_chunk_nll(backbone, states[part], wanted[part]))
    result = torch.zeros(targets.shape, dtype=torch.float32, device=hidden.device)
    return result.masked_scatter(scored, torch.cat(chunks)) if chunks else result


def _chunk_nll(backbone: PreTrainedModel, states: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(head(backbone, states).float(), targets, reduction="none")


def logits_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats per target from logits (B, l, V) that exist anyway; 0 where a target is IGNORED."""
    return F.cross_entropy(logits.float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
