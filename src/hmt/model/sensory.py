"""Sensory memory: how the window moves on from segment to segment.

    cache    the window rolls: [sinks | passages | last K tokens | P_n | X_n | P_n], nothing is computed twice
    reread   the window is built anew for each segment, [P_n | last K tokens, embedded again | X_n | P_n], as published

Shape legend: B rows, l new tokens of a step, K sensory tokens, R memory embeddings per segment, D embedding size.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hmt.memory.rows import pack, splice, take
from hmt.memory.state import MemoryState
from hmt.memory.validation import fitted_window
from hmt.memory.window import PROMPT, TOKEN, StateWindow, Window
from hmt.model.segment import Fresh, Recalled
from hmt.model.window_attention import Geometry, carry, extend, unsupported

if TYPE_CHECKING:
    from hmt.model.modeling_hmt import HMTForCausalLM

Piece = tuple[Tensor, Tensor, int]
"""A part of a window: embeddings (B, m, D), mask (B, m), kind of its slots."""

Read = tuple[Tensor, Tensor, Window | StateWindow | None]
"""Hidden states of the new tokens (B, l, D) and of the trailing prompt (B, R, D), and the window behind them."""


def read_rolling(
    model: HMTForCausalLM, state: MemoryState, fresh: Fresh, recalled: Recalled, ids: Tensor, mask: Tensor
) -> Read:
    """Read new tokens (B, l) through the rolling window."""
    window = rebuild_window(model, state) if state.window is None else state.window
    starts = (state.pending_counts == 0) & (fresh.new > 0)
    hidden, window = extend_pieces(
        model,
        window,
        (recalled.leading, _rows(starts, recalled.leading), PROMPT),
        (model.embed(ids), mask, TOKEN),
        (recalled.trailing, _rows(fresh.complete, recalled.trailing), PROMPT),
    )
    if model.config.prompt_tokens and isinstance(window, Window):
        window = window.without(PROMPT, fresh.complete)
    return hidden[1], hidden[2], window


def read_whole(
    model: HMTForCausalLM, state: MemoryState, fresh: Fresh, recalled: Recalled, ids: Tensor, mask: Tensor
) -> Read:
    """Read a window that is not needed again in one forward pass without a cache."""
    pieces = [(part, valid) for part, valid, _ in _reread_pieces(model, state, recalled)]
    spliced = splice(*pieces, (model.embed(ids), mask), (recalled.trailing, _rows(fresh.complete, recalled.trailing)))
    *_, hidden, left_behind = spliced.split(model.run_body(spliced.embeddings))
    return hidden, left_behind, None


def read_part(
    model: HMTForCausalLM, state: MemoryState, fresh: Fresh, recalled: Recalled, ids: Tensor, mask: Tensor
) -> Read:
    """Read on in the window of an unfinished segment, or build it anew if its prompt has changed."""
    window, pieces = state.window, [(model.embed(ids), mask, TOKEN)]
    if window is None or state.asked is None or not torch.equal(state.asked, recalled.asked):
        window = empty_window(model, state.batch_size)
        pieces = [*_reread_pieces(model, state, recalled), *pieces]
    hidden, window = extend_pieces(model, window, *pieces)
    left_behind = recalled.trailing
    if fresh.complete.any() and model.config.prompt_tokens:
        trailing = (recalled.trailing, _rows(fresh.complete, recalled.trailing), TOKEN)
        (left_behind,), window = extend_pieces(model, window, trailing)
    return hidden[-1], left_behind, None if fresh.complete.any() else window


def _reread_pieces(model: HMTForCausalLM, state: MemoryState, recalled: Recalled) -> list[Piece]:
    """The window before new tokens, [P_n | sensory | unfinished segment]."""
    wide = state.tail_ids.shape[1]
    sensory = slice(wide - min(model.config.sensory_tokens, wide), None)
    valid = state.tail_valid[:, sensory]
    if valid.shape[1]:
        newest = torch.arange(valid.shape[1] - 1, -1, -1)
        valid = valid & (newest < model.window_tokens(state)[1][:, None])
    always = torch.ones(recalled.leading.shape[:2], dtype=torch.bool)
    tokens = [(state.tail_ids[:, sensory], valid), (state.pending_ids, state.pending_valid)]
    return [(recalled.leading, always, TOKEN), *((model.embed(ids), mask, TOKEN) for ids, mask in tokens)]


def extend_pieces(
    model: HMTForCausalLM, window: Window | StateWindow, *pieces: Piece
) -> tuple[tuple[Tensor, ...], Window | StateWindow]:
    """Feed pieces in one forward pass: hidden states of each, and the window with them."""
    widths = [part.shape[1] for part, _, _ in pieces]
    embeddings = torch.cat([part for part, _, _ in pieces], dim=1)
    mask = torch.cat([valid for _, valid, _ in pieces], dim=1)
    kinds = torch.cat([torch.full((width,), kind) for width, (_, _, kind) in zip(widths, pieces, strict=True)])
    used = mask.any(dim=0)  # columns that some row has
    if not used.any():
        return embeddings.split(widths, dim=1), window
    places = None if used.all() else used.nonzero()[:, 0].to(embeddings.device)
    fed, valid = (embeddings, mask) if places is None else (embeddings[:, places], mask[:, used])
    if isinstance(window, StateWindow):
        with model.around_body():
            hidden, window = carry(model.backbone, window, fed, valid)
    else:
        hidden, window = extend(
            model.backbone, window, fed, model.geometry if model.config.rolling else Geometry(), mask=valid,
            kinds=kinds[used].to(torch.int8), recompute=model.checkpoint_segments and model.training,
            around=model.around_body,
        )  # fmt: skip
    if places is not None:
        hidden = hidden.new_zeros(embeddings.shape).index_copy(1, places, hidden)
    return hidden.split(widths, dim=1), window


def empty_window(model: HMTForCausalLM, batch_size: int) -> Window | StateWindow:
    """The window before the first token, of the kind that the backbone can extend."""
    if model.has_key_window is None:
        model.has_key_window = not unsupported(model.backbone)
    return Window.empty(batch_size) if model.has_key_window else StateWindow.empty(batch_size)


def restore_window(model: HMTForCausalLM, tensors: dict[str, Tensor]) -> Window | StateWindow:
    """The window of an exact memory file.

    Raises:
        ValueError: If the tensors are not those of this model's window; names one.
    """
    token, real = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)
    with torch.no_grad():
        _, own = extend_pieces(model, empty_window(model, 1), (model.embed(token), real, TOKEN))
    limit = model.geometry.limit if model.config.rolling and isinstance(own, Window) else None
    tensors = fitted_window(tensors, own.tensors(), len(tensors["next_position"]), limit)
    if isinstance(own, StateWindow):
        return StateWindow.of(tensors)
    return Window.of(tensors, model.config.get_text_config().num_hidden_layers)


def rebuild_window(model: HMTForCausalLM, state: MemoryState) -> Window | StateWindow:
    """The rolling window of a state that holds token ids alone: its sinks and last K tokens, read once more."""
    config, window = model.config, empty_window(model, state.batch_size)
    if not bool((state.tokens_read > 0).any()):
        return window
    ids, valid = pack(
        torch.cat([state.tail_ids, state.pending_ids], dim=1),
        torch.cat([state.tail_valid, state.pending_valid], dim=1),
    )
    counts, wanted = valid.sum(dim=1), config.sinks + config.sensory_tokens
    slots = (counts - wanted).clamp(min=0)[:, None] + torch.arange(min(wanted, ids.shape[1]))
    valid = slots < counts[:, None]
    ids = take(ids, slots.clamp(max=ids.shape[1] - 1))
    _, window = extend_pieces(model, window, (model.embed(ids[:, : config.sinks]), valid[:, : config.sinks], TOKEN))
    if isinstance(window, Window):  # room for passages, if there is text that the window does not hold
        more = state.tokens_read > valid.sum(dim=1)
        window = replace(window, next_position=window.next_position + config.recalled_tokens * more)
    for start in range(config.sinks, ids.shape[1], config.read_chunk_tokens):
        part = slice(start, start + config.read_chunk_tokens)
        _, window = extend_pieces(model, window, (model.embed(ids[:, part]), valid[:, part], TOKEN))
    return window


def _rows(rows: Tensor, prompt: Tensor) -> Tensor:
    """Mask (B, R) of a prompt (B, R, D) that only some rows (B,) have."""
    return rows[:, None].expand(prompt.shape[:2])
