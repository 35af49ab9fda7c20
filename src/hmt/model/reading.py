"""The step, and the loop that takes it through a text.

Shape legend: B rows, l new tokens of a segment (at most L), J query tokens, K sensory tokens, R memory embeddings per
segment, N bank slots, D embedding size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from hmt.memory.bank import Bank
from hmt.memory.rows import pack
from hmt.memory.state import MemoryState
from hmt.model.backbone import body, embed, head
from hmt.model.base import MemoryModel
from hmt.model.outputs import StepOutput
from hmt.model.splice import splice
from hmt.model.stream import Segment, Stream


class SegmentReader(MemoryModel):
    """Reads text a segment at a time. Everything that passes between segments is the `MemoryState`."""

    def step(
        self,
        segment_ids: Tensor,
        state: MemoryState | None = None,
        *,
        segment_mask: Tensor | None = None,
        summary: Tensor | None = None,
        return_logits: bool = True,
        remember_only: bool = False,
    ) -> tuple[StepOutput, MemoryState]:
        """Read the next tokens of a segment. Nothing but the arguments goes in, nothing but the result comes out.

        The tokens are added to those the state holds of an unfinished segment. A row whose segment is now complete
        leaves its memory embeddings in the bank; the others keep their tokens for the next call.

        Args:
            segment_ids: New tokens, (B, l); together with the unfinished segment at most L per row.
            state: What was read before; nothing where None.
            segment_mask: (B, l) bool, real tokens; all where None.
            summary: The segment's query (B, R, D), if it was computed before (see `summarise`).
            return_logits: Run the head.
            remember_only: Skip the reading of rows that complete no segment, since no output is wanted of them.

        Returns:
            The output and the new state.

        Raises:
            ValueError: If a row gets more tokens than its segment has room for.
        """
        state = self.initial_state(segment_ids.shape[0]) if state is None else state
        if segment_mask is None:
            segment_mask = torch.ones_like(segment_ids, dtype=torch.bool)
        new_counts = segment_mask.sum(dim=1)
        counts = state.pending_counts + new_counts
        if (room := int(counts.max())) > self.config.fresh_tokens:
            raise ValueError(f"a segment has {self.config.fresh_tokens} fresh tokens, step was given {room}")
        complete = (counts == self.config.fresh_tokens) & (new_counts > 0)
        fresh_ids, fresh_mask = pack(
            torch.cat([state.pending_ids, segment_ids], dim=1), torch.cat([state.pending_valid, segment_mask], dim=1)
        )
        if remember_only and not complete.any():
            none = StepOutput(None, None, None, torch.zeros_like(counts))
            return none, self._after(state, fresh_ids, fresh_mask, complete, new_counts, bank=state.bank)

        # Recall.
        recalled, weights, distances, filled = None, None, torch.zeros_like(counts), state.bank.filled
        bank = state.bank
        if self.memory.recall is not None and bank.embeddings.shape[1]:
            if summary is None:
                summary = self.summarise(*self._query_tokens(state, fresh_ids, fresh_mask))
            recalled, weights = self.memory.recall(summary, bank)
            reading = filled & (new_counts > 0)
            bank = bank.record_usage(weights, complete)  # once a segment, however many calls it took
            strongest = bank.segments.gather(1, weights.mean(dim=1).argmax(dim=1, keepdim=True))[:, 0]
            distances = torch.where(reading, state.segments_read - strongest, distances)
        elif self.memory.injection is not None and bank.embeddings.shape[1]:
            recalled = bank.last(self.config.prompt_tokens)

        # Read.
        hidden, left_behind = self._read(state, segment_ids, segment_mask, recalled, filled, complete)
        logits = head(self.backbone, hidden) if return_logits else None

        # Remember.
        if self.config.prompt_tokens:
            bank = bank.append(left_behind, complete, state.segments_read, self._retain, self.config.capacity)
        output = StepOutput(hidden, logits, weights, distances)
        return output, self._after(state, fresh_ids, fresh_mask, complete, new_counts, bank)

    def _read(
        self,
        state: MemoryState,
        segment_ids: Tensor,
        segment_mask: Tensor,
        recalled: Tensor | None,
        filled: Tensor,
        complete: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Body over [prompt | sensory | unfinished | new | trailing prompt]: hidden states of new and of trailing."""
        sensory = slice(state.tail_ids.shape[1] - min(self.config.max_sensory, state.tail_ids.shape[1]), None)
        ids = [state.tail_ids[:, sensory], state.pending_ids, segment_ids]
        valid = [state.tail_valid[:, sensory], state.pending_valid, segment_mask]
        tokens = embed(self.backbone, torch.cat(ids, dim=1))
        pieces = list(zip(tokens.split([part.shape[1] for part in ids], dim=1), valid, strict=True))
        if self.memory.injection is not None:
            leading, trailing = (prompt.to(tokens.dtype) for prompt in self.memory.injection(recalled, filled))
            always = torch.ones(leading.shape[:2], dtype=torch.bool, device=tokens.device)
            pieces = [(leading, always), *pieces, (trailing, complete[:, None].expand_as(always))]
        else:
            nothing = (tokens[:, :0], segment_mask[:, :0])
            pieces = [nothing, *pieces, nothing]
        window = splice(*pieces)
        *_, new, last = window.split(body(self.backbone, window.embeddings))
        return new, last

    def _after(
        self,
        state: MemoryState,
        fresh_ids: Tensor,
        fresh_mask: Tensor,
        complete: Tensor,
        new_counts: Tensor,
        bank: Bank,
    ) -> MemoryState:
        """The state after a segment's tokens (B, at most L) were read; complete rows start a new segment."""
        tail_ids, tail_valid = state.tail_ids, state.tail_valid
        if fresh_ids.shape[1] >= self.config.fresh_tokens and tail_ids.shape[1]:
            ending = fresh_ids[:, self.config.fresh_tokens - tail_ids.shape[1] : self.config.fresh_tokens]
            tail_ids = torch.where(complete[:, None], ending, tail_ids)
            tail_valid = tail_valid | complete[:, None]
        unfinished = fresh_mask & ~complete[:, None]
        width = int(unfinished.sum(dim=1).max())
        return replace(
            state,
            bank=bank,
            tail_ids=tail_ids,
            tail_valid=tail_valid,
            pending_ids=fresh_ids[:, :width] * unfinished[:, :width],
            pending_valid=unfinished[:, :width],
            segments_read=state.segments_read + complete,
            tokens_read=state.tokens_read + new_counts,
        )

    def summarise(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Body over [T | tokens | T]: the hidden states at the trailing summary prompt, (B, R, D).

        Args:
            ids: Query tokens, (B, J).
            mask: (B, J) bool.
        """
        assert self.memory.summary_prompt is not None
        tokens = embed(self.backbone, ids)
        prompt = self.memory.summary_prompt.to(tokens.dtype).expand(ids.shape[0], -1, -1)
        always = torch.ones(prompt.shape[:2], dtype=torch.bool, device=ids.device)
        window = splice((prompt, always), (tokens, mask), (prompt, always))
        return window.split(body(self.backbone, window.embeddings))[-1]

    def _query_tokens(self, state: MemoryState, fresh_ids: Tensor, fresh_mask: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens that a segment's query reads, and their mask."""
        count = self.config.summary_tokens
        if self.config.recall_query == "prefix":
            return fresh_ids[:, :count], fresh_mask[:, :count]
        return state.tail_ids[:, -count:], state.tail_valid[:, -count:]

    def _summaries(self, stream: Stream, state: MemoryState) -> Iterator[Tensor | None]:
        """The query of each segment of a call, (B, R, D), several segments in one call of the body.

        Queries depend on tokens alone, so they need not wait for the memory. The first one is left to the step, which
        knows whether there is anything to recall yet.
        """
        yield None
        length, count = self.config.fresh_tokens, self.config.summary_tokens
        shift = 0 if self.config.recall_query == "prefix" else -count
        rows = stream.ids.shape[0]
        at_once = max(self.config.summary_batch_tokens // ((count + 2 * self.config.prompt_tokens) * rows), 1)
        for start in range(1, stream.count, at_once):
            numbers = range(start, min(start + at_once, stream.count))
            spans = [stream.span(number * length + shift, count) for number in numbers]
            ids, mask = (torch.cat(parts) for parts in zip(*spans, strict=True))
            yield from self.summarise(ids, mask).split(rows)

    def _steps(
        self, stream: Stream, state: MemoryState, *, return_logits: bool, remember_only: bool = False
    ) -> Iterator[tuple[Segment, StepOutput, MemoryState]]:
        """Step through the segments of a call."""
        summaries = self._summaries(stream, state) if self.config.recalls else None
        for segment in stream:
            output, state = self.step(
                segment.ids,
                state,
                segment_mask=segment.mask,
                summary=next(summaries) if summaries else None,
                return_logits=return_logits,
                remember_only=remember_only,
            )
            yield segment, output, state

    @torch.no_grad()
    def remember(
        self, input_ids: Tensor, state: MemoryState | None = None, attention_mask: Tensor | None = None
    ) -> MemoryState:
        """Read texts of any length in constant memory, for what they leave behind.

        Args:
            input_ids: (B, T).
            state: Go on from here; start anew where None.
            attention_mask: (B, T), nonzero at real tokens.

        Returns:
            The state after the last token. Reading in two calls, split anywhere, gives the state of reading in one.
        """
        state = self.initial_state(input_ids.shape[0]) if state is None else state
        self.check_state(state, input_ids.shape[0])
        stream = Stream(input_ids, attention_mask, state, self.config.fresh_tokens)
        for _, _, after in self._steps(stream, state, return_logits=False, remember_only=True):
            state = after
        return state
