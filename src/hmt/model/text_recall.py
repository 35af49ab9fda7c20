"""Text recall: put passages of remembered text into the window before a prompt is read.

Shape legend: B rows, T prompt tokens, J query tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from hmt.memory.passages import QUERY_TAIL, WHOLE_QUERY, Passage, choose_passages, note_use, query_of
from hmt.memory.rows import pack, take
from hmt.memory.state import MemoryState
from hmt.memory.window import RECALLED, StateWindow
from hmt.model.sensory import rebuild_window
from hmt.model.window_attention import insert_passages

if TYPE_CHECKING:
    from hmt.model.modeling_hmt import HMTForCausalLM

SEGMENT_QUERY = 64
"""Tokens before a segment that ask for its passages with `recall_on="segment"`."""


@dataclass(frozen=True)
class Prompt:
    """Rest of a prompt to read after its passages were recalled.

    Attributes:
        found: The passages.
        rest: Token ids, (B, T), on the CPU or the device they came from.
        mask: (B, T) bool, or None for all.
    """

    found: tuple[Passage, ...]
    rest: Tensor
    mask: Tensor | None


def recall_text(
    model: HMTForCausalLM, query_ids: Tensor, state: MemoryState, attention_mask: Tensor | None = None
) -> tuple[MemoryState, tuple[Passage, ...]]:
    """Recall passages for queries (B, J); see `HMTForCausalLM.recall`."""
    if not model.config.recalled_tokens or not state.batch_size:
        return state, ()
    real = torch.ones_like(query_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    queries = [query_of(ids[mask].cpu()) for ids, mask in zip(query_ids, real, strict=True)]
    found = [search(model, state, row, query) for row, query in enumerate(queries)]
    passages = [passage for row in found for passage in row]
    return insert(model, note_use(state, passages), found), tuple(passages)


def search(model: HMTForCausalLM, state: MemoryState, row: int, query: Tensor) -> list[Passage]:
    """Passages of a row outside its window that answer a query (J,)."""
    config = model.config
    reach = config.sensory_tokens if config.rolling else config.sensory_tokens + int(state.pending_counts[row])
    return choose_passages(
        state, row, query, config.recalled_tokens, reach=reach, sinks=config.sinks, tables=model.token_tables
    )


def insert(model: HMTForCausalLM, state: MemoryState, found: Sequence[Sequence[Passage]]) -> MemoryState:
    """The state whose window holds these passages of each row, and no others.

    With a rolling cache of keys they stand between sinks and window; otherwise they are read as ordinary tokens.
    """
    rows = [torch.cat([passage.ids for passage in row]) if row else torch.zeros(0).long() for row in found]
    width = max(len(row) for row in rows)
    ids = torch.stack([F.pad(row, (0, width - len(row))) for row in rows])
    mask = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
    if not model.config.rolling or isinstance(state.window, StateWindow):
        return model.remember(ids, state, mask) if width else state
    window = rebuild_window(model, state) if state.window is None else state.window
    if isinstance(window, StateWindow):
        return model.remember(ids, replace(state, window=window), mask) if width else state
    if not width:
        return replace(state, window=window.without(RECALLED))
    window = insert_passages(model.backbone, window, model.embed(ids), model.geometry, mask, model.around_body)
    return replace(state, window=window)


def recall_for_segment(model: HMTForCausalLM, state: MemoryState) -> MemoryState:
    """With `recall_on="segment"`, recall passages for a segment that begins, with the tokens before it as query."""
    config = model.config
    if config.recall_on != "segment" or not config.recalled_tokens or not config.rolling:
        return state
    if bool((state.pending_counts > 0).any()) or not bool(state.bank.filled.any()):
        return state
    last = slice(-SEGMENT_QUERY, None)
    return model.recall(state.tail_ids[:, last], state, state.tail_valid[:, last])[0]


def recall_for_prompt(
    model: HMTForCausalLM,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    state: MemoryState,
    query_ids: Tensor | None = None,
) -> tuple[MemoryState, Prompt]:
    """Recall passages for prompts. The beginning of a prompt longer than a query is remembered first.

    Args:
        model: Reads.
        input_ids: Prompts, (B, T).
        attention_mask: (B, T), nonzero at real tokens, or None.
        state: What was read before.
        query_ids: Tokens to recall for; the prompt where None.
    """
    if not model.config.recalled_tokens or model.config.recall_on != "prompt":
        return state, Prompt((), input_ids, attention_mask)
    real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    ids, real = pack(input_ids.cpu().long(), real.cpu())
    lengths = real.sum(dim=1)
    if int(lengths.max()) > max(WHOLE_QUERY, model.config.sensory_tokens):
        # Passages stand in front of the question, so what comes before the question is read first.
        first = torch.where(lengths > WHOLE_QUERY, lengths - QUERY_TAIL, 0)
        state = model.remember(ids, state, torch.arange(ids.shape[1]) < first[:, None])
        rest = first[:, None] + torch.arange(int((lengths - first).max()))
        real = rest < lengths[:, None]
        ids = take(ids, rest.clamp(max=ids.shape[1] - 1))
    query, mask = (ids, real) if query_ids is None else (query_ids.cpu(), torch.ones_like(query_ids.cpu()).bool())
    state, found = model.recall(query, state, mask)
    return state, Prompt(found, ids, real)
