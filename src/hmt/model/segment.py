"""Segments: the tokens of the unfinished one, the query of its recall, its memory prompt, and how it ends.

Shape legend: B rows, l new tokens of a segment, L fresh tokens, J query tokens, R memory embeddings per segment, N bank
slots, D embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from hmt.memory.bank import NO_TOKEN
from hmt.memory.rows import pack, take
from hmt.memory.state import MemoryState
from hmt.model.outputs import Recollection
from hmt.model.stream import Stream, groups

if TYPE_CHECKING:
    from hmt.model.modeling_hmt import HMTForCausalLM


@dataclass(frozen=True)
class Fresh:
    """Fresh tokens of each row's unfinished segment, new ones included.

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
    """Tokens that the summary of a segment reads.

    Attributes:
        ids: (B, at most J) int64.
        mask: Likewise, bool.
        asked: (B,) int64, how many of them are tokens of the segment itself.
        summary: Summary of them, (B, R, D), if it is computed already.
    """

    ids: Tensor
    mask: Tensor
    asked: Tensor
    summary: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Recalled(Recollection):
    """Memory prompt of a segment, and where it comes from.

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


def append_tokens(model: HMTForCausalLM, state: MemoryState, ids: Tensor, mask: Tensor) -> Fresh:
    """Add new tokens (B, l) to those of the unfinished segment.

    Raises:
        ValueError: If a row gets more than its segment has room for, and the mode cannot read over its end.
    """
    new = mask.sum(dim=1)
    counts, length = state.pending_counts + new, model.segment_tokens(state)
    if (not model.config.rolling or model.config.prompt_tokens) and bool((counts > length).any()):
        row = int((counts - length).argmax())
        raise ValueError(f"a segment has {int(length[row])} fresh tokens, step was given {int(counts[row])}")
    ids, mask = torch.cat([state.pending_ids, ids], dim=1), torch.cat([state.pending_valid, mask], dim=1)
    if not mask.all():
        ids, mask = pack(ids, mask)
    return Fresh(ids, mask, new, complete=(counts >= length) & (new > 0))


def advance_state(model: HMTForCausalLM, state: MemoryState, fresh: Fresh, left_behind: Tensor | None) -> MemoryState:
    """Move whole segments to the bank, with their memory embeddings (B, R, D); other tokens stay pending."""
    counts = fresh.mask.sum(dim=1)
    if not fresh.complete.any():
        ids, valid = (part[:, : int(counts.max())] for part in (fresh.ids * fresh.mask, fresh.mask))
        return replace(state, pending_ids=ids, pending_valid=valid, tokens_read=state.tokens_read + fresh.new)
    length = model.segment_tokens(state)
    spans = torch.where(fresh.complete, counts.div(length, rounding_mode="floor"), 0)
    bank, most = state.bank, int(spans.max())
    if most and model.config.segment_slots and left_behind is not None:
        if not model.config.prompt_tokens:
            left_behind = bank.embeddings.new_zeros(len(counts), 1, 0)
        for number in range(most):
            place = number * length[:, None] + torch.arange(bank.tokens.shape[2])
            inside = (place < (number + 1) * length[:, None]) & (place < fresh.ids.shape[1])
            tokens = take(fresh.ids, place.clamp(max=fresh.ids.shape[1] - 1)).masked_fill(~inside, NO_TOKEN)
            bank = bank.append(left_behind, spans > number, state.segments_read + number, tokens)
        if bank.valid.shape[1] > model.config.capacity:
            bank = model.memory.retention.make_room(bank, model.config.capacity)
    done = spans * length
    tail = done[:, None] + torch.arange(state.tail_ids.shape[1])
    pending = counts - done
    width = int(pending.max())
    rest = (done[:, None] + torch.arange(width)).clamp(max=max(fresh.ids.shape[1] - 1, 0))
    valid = torch.arange(width) < pending[:, None]
    return replace(
        state,
        bank=bank,
        tail_ids=take(torch.cat([state.tail_ids, fresh.ids], dim=1), tail),
        tail_valid=take(torch.cat([state.tail_valid, fresh.mask], dim=1), tail),
        pending_ids=take(fresh.ids, rest) * valid,
        pending_valid=valid,
        segments_read=state.segments_read + spans,
        tokens_read=state.tokens_read + fresh.new,
    )


def segment_query(model: HMTForCausalLM, state: MemoryState, fresh: Fresh, causal: bool) -> Query:
    """Tokens that the summary of the segment at hand reads.

    Args:
        model: Its settings say which.
        state: What was read before.
        fresh: Tokens of the segment so far.
        causal: Ask with the tokens before the segment until its own J tokens are there, so that the prompt depends on
            earlier tokens alone, whatever part of them stands in another call or row.
    """
    before = _query_before(model, state)
    if model.config.query == "previous":
        return before
    own = _query_of(model, state, fresh)
    if not causal:
        return own
    missing = before.ids.shape[1] - own.ids.shape[1]
    ids, mask = (F.pad(part, (0, missing)) for part in (own.ids, own.mask))
    ready = mask.sum(dim=1) == model.query_tokens(state)
    rows = ready[:, None]
    return Query(torch.where(rows, ids, before.ids), torch.where(rows, mask, before.mask), own.asked * ready)


def _query_of(model: HMTForCausalLM, state: MemoryState, fresh: Fresh) -> Query:
    """The first J tokens of the segment."""
    width = min(model.config.longest_summary, fresh.ids.shape[1])
    mask = fresh.mask[:, :width] & (torch.arange(width) < model.query_tokens(state)[:, None])
    return Query(fresh.ids[:, :width], mask, asked=mask.sum(dim=1))


def _query_before(model: HMTForCausalLM, state: MemoryState) -> Query:
    """The last J tokens before the segment."""
    count = model.config.longest_summary
    wanted = torch.arange(count - 1, -1, -1) < model.query_tokens(state)[:, None]
    mask = state.tail_valid[:, -count:] & wanted
    return Query(state.tail_ids[:, -count:], mask, asked=torch.zeros(state.batch_size, dtype=torch.long))


def batched_queries(model: HMTForCausalLM, stream: Stream, segments: int) -> Iterator[Query | None]:
    """Queries of a call's first segments, several of them summarized in one call of the body.

    Queries depend on tokens alone, so they need not wait for the memory. The first one is left to the step, which knows
    if there is anything to recall yet.
    """
    yield None
    config, rows = model.config, stream.ids.shape[0]
    length, count, own = config.fresh_tokens, config.summary_tokens, config.query == "prefix"
    # What is computed again in the backward pass should be no larger than a window.
    recomputed = model.checkpoint_segments and model.training
    positions = config.window * rows if recomputed else config.summary_batch_tokens
    at_once = max(positions // ((count + 2 * config.prompt_tokens) * rows), 1)
    for numbers in groups(1, segments, at_once, few_sizes=not torch.is_grad_enabled()):
        spans = [stream.span(number * length - (0 if own else count), count) for number in numbers]
        summaries = model.summarize(*(torch.cat(parts) for parts in zip(*spans, strict=True))).split(rows)
        for (ids, mask), summary in zip(spans, summaries, strict=True):
            yield Query(ids, mask, mask.sum(dim=1) * own, summary)
