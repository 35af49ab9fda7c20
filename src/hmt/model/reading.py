"""The step, and the loop that takes it through a text.

Shape legend: B rows, l new tokens of a segment (at most L), J query tokens, K sensory tokens, R memory embeddings per
segment, N bank slots, D embedding size, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.profiler import record_function

from hmt.memory.bank import NO_TOKEN, Bank
from hmt.memory.episodes import Episode, candidate_slots, choose_episode
from hmt.memory.rows import pack, take
from hmt.memory.state import MemoryState
from hmt.model.backbone import body, embed
from hmt.model.base import MemoryModel
from hmt.model.compiled import SUMMARIES
from hmt.model.outputs import StepOutput
from hmt.model.prediction import predict_all
from hmt.model.segment import Fresh, Query, Recalled
from hmt.model.splice import Window, splice
from hmt.model.stream import Segment, Stream, groups
from hmt.text.batches import IGNORED

Outputs = Literal["all", "complete", "none"]
"""Of which tokens output is wanted."""

NEAR_SEGMENTS = 3
"""Recall distances below this are near, as published."""


class SegmentReader(MemoryModel):
    """Reads text a segment at a time. Everything that passes between segments is the `MemoryState`."""

    def step(
        self,
        segment_ids: Tensor,
        state: MemoryState | None = None,
        *,
        segment_mask: Tensor | None = None,
        query: Query | None = None,
        return_logits: bool = True,
        outputs: Outputs = "all",
    ) -> tuple[StepOutput, MemoryState]:
        """Read the next tokens of a segment. Nothing but the arguments goes in, nothing but the result comes out.

        The tokens are added to those the state holds of an unfinished segment. A row whose segment is now complete
        leaves its memory embeddings in the bank; the others keep their tokens for the next call.

        Args:
            segment_ids: New tokens, (B, l); together with the unfinished segment at most L per row, K // 2 more where
                it is read fast (`segment_tokens`).
            state: What was read before; nothing where None.
            segment_mask: (B, l) bool, real tokens; all where None.
            query: What the segment asks the bank with; that of its tokens where None.
            return_logits: Run the head.
            outputs: Of which tokens output is wanted: of "all", of those of "complete" segments, or of "none". What
                needs no reading is not read: where no row's segment is complete and output is not wanted of all, and
                where none is wanted and the mode leaves no embeddings behind.

        Returns:
            The output and the new state.

        Raises:
            ValueError: If a row gets more tokens than its segment has room for, or the state is that of a model with
                other settings (weights are compared once a call, by `forward`, `remember` and `generate`).
        """
        state = self.initial_state(segment_ids.shape[0]) if state is None else state
        self._check_state(state, segment_ids.shape[0], self.identity(with_weights=False))
        if segment_mask is None:
            segment_mask = torch.ones_like(segment_ids, dtype=torch.bool)
        segment_ids, segment_mask = segment_ids.long(), segment_mask.bool()
        fresh = self._add(state, segment_ids, segment_mask)
        if outputs != "all" and not fresh.complete.any():
            nothing = StepOutput(
                hidden=None,
                logits=None,
                weights=None,
                recall_logits=None,
                segments=state.bank.numbers,
                starts=state.tokens_read - state.pending_counts,
                distances=torch.zeros_like(fresh.new),
            )
            return nothing, self._after(state, fresh, state.bank)
        recalled = self._recall(state, fresh, query)
        if outputs == "none" and not self.config.prompt_tokens:
            hidden, left_behind = None, self.embedding_table.new_zeros(len(fresh.new), 0, 0)
        else:
            parts = self._pieces(state, recalled, segment_ids, segment_mask)
            window = splice(*parts, recalled.trailing_prompt(fresh.complete))
            whole = window.embeddings.shape[1] == self.config.segment_length
            with record_function("hmt.read"):
                *_, hidden, left_behind = window.split(self._body(window, comes_again=whole))
        logits, copies = None, None
        if hidden is not None and outputs != "none":
            copies = recalled.copies(state, segment_ids, segment_mask)
            if return_logits:
                logits = predict_all(self.backbone, hidden, copies)
        output = StepOutput(
            hidden=hidden,
            logits=logits,
            copies=copies,
            weights=recalled.weights,
            recall_logits=recalled.recall_logits,
            segments=recalled.segments,
            starts=recalled.starts,
            distances=recalled.distances,
            episode=recalled.episode,
        )
        return output, self._remember(state, fresh, recalled, left_behind)

    def _add(self, state: MemoryState, segment_ids: Tensor, segment_mask: Tensor) -> Fresh:
        """The fresh tokens of the unfinished segment, with new ones added."""
        new = segment_mask.sum(dim=1)
        counts, length = state.pending_counts + new, self.segment_tokens(state)
        if (counts > length).any():
            row = int((counts - length).argmax())
            raise ValueError(f"a segment has {int(length[row])} fresh tokens, step was given {int(counts[row])}")
        ids, mask = pack(
            torch.cat([state.pending_ids, segment_ids], dim=1), torch.cat([state.pending_valid, segment_mask], dim=1)
        )
        return Fresh(ids, mask, new, complete=(counts == length) & (new > 0))

    def _recall(self, state: MemoryState, fresh: Fresh, query: Query | None = None) -> Recalled:
        """What the segment gets to see of the past, as prompts and as tokens."""
        bank, filled = state.bank, state.bank.filled
        mixed, logits, weights, distances = None, None, None, torch.zeros_like(fresh.new)
        near = torch.zeros_like(filled)
        summary = None
        if self.config.queries and bank.valid.shape[1]:
            query = self._query(state, fresh) if query is None else query
            summary = query.summary
        if self.memory.recall is not None and bank.valid.shape[1]:
            assert query is not None
            if summary is None:
                summary = self.summarise(query.ids, query.mask)
            with record_function("hmt.recall"):
                mixed, logits = self.memory.recall(summary, bank, self.memory.retention.recall_bias(bank))
            weights = logits.softmax(dim=-1) * filled[:, None, None]
            strongest = bank.segments.gather(1, weights.mean(dim=1).argmax(dim=1, keepdim=True))[:, 0]
            distances = torch.where(filled & (fresh.new > 0), state.segments_read - strongest, distances)
            near = filled & (state.segments_read - strongest < NEAR_SEGMENTS)
            if self.memory.memory_map is not None and state.fast.any():
                mixed = torch.where(state.fast[:, None, None], self.memory.memory_map(mixed), mixed)
        elif self.memory.injection is not None and bank.valid.shape[1]:
            mixed = bank.last(self.config.prompt_tokens)
        if self.memory.injection is None:
            leading = trailing = self.embedding_table.new_zeros(len(filled), 0, self.embedding_table.shape[1])
        else:
            prompts = self.memory.injection(mixed, filled)
            leading, trailing = (prompt.to(self.embedding_table.dtype) for prompt in prompts)
        episode = None
        if self.config.recalled_tokens and query is not None and bank.valid.shape[1]:
            episode = self._read_again(state, query, summary, weights)
            if weights is None:
                found = (episode.strongest >= 0) & (fresh.new > 0)
                distances = torch.where(found, state.segments_read - episode.strongest, distances)
        return Recalled(
            near=near,
            leading=leading,
            trailing=trailing,
            source=None if self.memory.copying is None else self.memory.copying.source(state, self.config),
            weights=weights,
            recall_logits=logits,
            segments=bank.numbers,
            starts=state.tokens_read - state.pending_counts,
            distances=distances,
            episode=episode,
        )

    @torch.no_grad()
    def _read_again(self, state: MemoryState, query: Query, summary: Tensor | None, weights: Tensor | None) -> Episode:
        """The tokens of earlier segments that this one reads again."""
        bank, candidates = state.bank, candidate_slots(state.bank, state.segments_read - self.config.near_segments)
        worth = None
        if self.config.recall_selection == "attention":
            assert weights is not None
            worth = bank.per_segment(weights.mean(dim=1))
        elif self.config.recall_selection == "similarity":
            assert summary is not None
            asked = summary.float().mean(dim=1, keepdim=True)
            worth = bank.per_segment(F.cosine_similarity(asked, bank.embeddings.float(), dim=-1))
        return choose_episode(bank, candidates, query.ids, query.mask, self.config.recalled_tokens, worth)

    def _pieces(
        self, state: MemoryState, recalled: Recalled, segment_ids: Tensor, segment_mask: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """The window up to its newest token, [prompt | recalled | sensory | unfinished | new], embeddings and masks."""
        sensory = slice(state.tail_ids.shape[1] - min(self.config.max_sensory, state.tail_ids.shape[1]), None)
        ids = [state.tail_ids[:, sensory], state.pending_ids, segment_ids]
        valid = [state.tail_valid[:, sensory], state.pending_valid, segment_mask]
        if self.config.speed_tokens:
            older = torch.arange(valid[0].shape[1], device=segment_ids.device) < self.config.speed_tokens
            valid[0] = valid[0] & ~(state.fast[:, None] & older)
        if recalled.episode is not None:
            ids, valid = [recalled.episode.ids, *ids], [recalled.episode.valid, *valid]
        tokens = embed(self.backbone, torch.cat(ids, dim=1)).split([part.shape[1] for part in ids], dim=1)
        return [recalled.leading_prompt(), *zip(tokens, valid, strict=True)]

    def _remember(self, state: MemoryState, fresh: Fresh, recalled: Recalled, left_behind: Tensor) -> MemoryState:
        """The state after a segment was read that leaves embeddings (B, R, D) behind where it is complete."""
        bank = state.bank
        if recalled.weights is not None:
            bank = bank.record_usage(recalled.weights, fresh.complete)  # once a segment, however many calls it took
        elif recalled.episode is not None:
            bank = bank.record_usage(recalled.episode.chosen[:, None].float(), fresh.complete)
        if self.config.segment_slots:
            if not self.config.prompt_tokens:
                left_behind = left_behind.new_zeros(len(left_behind), 1, 0)
            if self.memory.memory_map is not None and state.fast.any():
                carried = self.memory.memory_map.inverse(left_behind)
                left_behind = torch.where(state.fast[:, None, None], carried, left_behind)
            tokens = fresh.ids.masked_fill(~fresh.mask, NO_TOKEN)
            bank = bank.append(left_behind, fresh.complete, state.segments_read, tokens)
            if bank.valid.shape[1] > self.config.capacity:
                bank = self.memory.retention.make_room(bank, self.config.capacity)
        after = self._after(state, fresh, bank)
        if self.config.speed_tokens:
            after = replace(after, fast=torch.where(fresh.complete, recalled.near, state.fast))
        return after

    def _after(self, state: MemoryState, fresh: Fresh, bank: Bank) -> MemoryState:
        """The state with this bank after these fresh tokens; complete rows start a new segment."""
        tail = state.tail_ids.shape[1]
        tail_ids, tail_valid = state.tail_ids, state.tail_valid
        complete = fresh.complete[:, None]
        if fresh.ids.shape[1] >= self.config.fresh_tokens and tail:
            newest = fresh.mask.sum(dim=1, keepdim=True) + torch.arange(tail, device=complete.device)
            tail_ids = torch.where(complete, take(torch.cat([tail_ids, fresh.ids], dim=1), newest), tail_ids)
            tail_valid = torch.where(complete, take(torch.cat([tail_valid, fresh.mask], dim=1), newest), tail_valid)
        unfinished = fresh.mask & ~complete
        width = int(unfinished.sum(dim=1).max())
        return replace(
            state,
            bank=bank,
            tail_ids=tail_ids,
            tail_valid=tail_valid,
            pending_ids=fresh.ids[:, :width] * unfinished[:, :width],
            pending_valid=unfinished[:, :width],
            segments_read=state.segments_read + fresh.complete,
            tokens_read=state.tokens_read + fresh.new,
        )

    def summarise(self, ids: Tensor, mask: Tensor, comes_again: bool = False) -> Tensor:
        """Body over [T | tokens | T]: the hidden states at the trailing summary prompt, (B, R, D).

        Args:
            ids: Query tokens, (B, J).
            mask: (B, J) bool.
            comes_again: Whether there will be more of this shape, so that a compiled body is worth its compilation.
        """
        assert self.memory.summary_prompt is not None
        tokens = embed(self.backbone, ids)
        prompt = self.memory.summary_prompt.to(tokens.dtype).expand(ids.shape[0], -1, -1)
        always = torch.ones(prompt.shape[:2], dtype=torch.bool, device=ids.device)
        window = splice((prompt, always), (tokens, mask), (prompt, always))
        with record_function("hmt.summary"):
            return window.split(self._body(window, comes_again))[-1]

    def _body(self, window: Window, comes_again: bool) -> Tensor:
        if comes_again and self.compiled is not None and self.compiled.serves(self):
            return self.compiled(window.embeddings)
        recompute = self.checkpoint_segments and self.training
        return body(self.backbone, window.embeddings, recompute, self.autoencoder)

    def _query(self, state: MemoryState, fresh: Fresh) -> Query:
        """The tokens that a segment's query reads."""
        if self.config.recall_query == "previous":
            return self._query_before(state)
        count = self.config.longest_summary
        wanted = torch.arange(count, device=fresh.new.device) < self.query_tokens(state)[:, None]
        width = min(count, fresh.ids.shape[1])
        return Query(fresh.ids[:, :width], fresh.mask[:, :width] & wanted[:, :width])

    def _query_before(self, state: MemoryState) -> Query:
        """A query of the last tokens before the segment: what "previous" asks with."""
        count = self.config.longest_summary
        wanted = torch.arange(count - 1, -1, -1, device=state.fast.device) < self.query_tokens(state)[:, None]
        return Query(state.tail_ids[:, -count:], state.tail_valid[:, -count:] & wanted)

    def _causal_query(self, state: MemoryState, fresh: Fresh) -> Query | None:
        """The query of each row: that of a whole segment once its tokens are there, before that the "previous" one.

        So the prompt depends on earlier tokens alone, whatever part of them was the user's, was written in an earlier
        call, or stands in another row. None where there is nothing to ask.
        """
        if not self.config.queries or not state.bank.valid.shape[1]:
            return None
        before = self._query_before(state)
        if self.config.recall_query == "previous":
            return before
        own = self._query(state, fresh)
        missing = before.ids.shape[1] - own.ids.shape[1]
        ids, mask = (F.pad(part, (0, missing)) for part in (own.ids, own.mask))
        ready = (mask.sum(dim=1) == self.query_tokens(state))[:, None]
        return Query(torch.where(ready, ids, before.ids), torch.where(ready, mask, before.mask))

    def _queries(self, stream: Stream, segments: int) -> Iterator[Query | None]:
        """The queries of a call's first segments, those of several segments summarised in one call of the body.

        Queries depend on tokens alone, so they need not wait for the memory. The first one is left to the step, which
        knows whether there is anything to recall yet. Not for two reading speeds: where a segment begins is known only
        when the one before it was read.
        """
        yield None
        length, count = self.config.fresh_tokens, self.config.summary_tokens
        shift = 0 if self.config.recall_query == "prefix" else -count
        rows = stream.ids.shape[0]
        # What is computed again in the backward pass should be no larger than a window.
        recomputed = self.checkpoint_segments and self.training
        positions = self.config.segment_length * rows if recomputed else self.config.summary_batch_tokens
        at_once = max(positions // ((count + 2 * self.config.prompt_tokens) * rows), 1)
        if self.compiled is not None and self.compiled.serves(self):
            at_once = min(at_once, SUMMARIES)
        for numbers in groups(1, segments, at_once, few_sizes=not torch.is_grad_enabled()):
            spans = [stream.span(number * length + shift, count) for number in numbers]
            summaries: Sequence[Tensor | None] = [None] * len(spans)
            if self.config.recalls:
                ids, mask = (torch.cat(parts) for parts in zip(*spans, strict=True))
                summaries = self.summarise(ids, mask, comes_again=len(spans) == at_once).split(rows)
            yield from (Query(*span, summary) for span, summary in zip(spans, summaries, strict=True))

    def _steps(
        self,
        stream: Stream,
        state: MemoryState,
        *,
        return_logits: bool,
        outputs: Outputs = "all",
        truncate_every: int | None = None,
        targets: Tensor | None = None,
    ) -> Iterator[tuple[Segment, StepOutput, MemoryState]]:
        """Step through the segments of a call; after every `truncate_every` of them the state leaves its graph.

        Where `targets` (B, T) of the packed tokens are given, nothing is wanted of segments without one.
        """
        # A segment that is not read asks nothing.
        segments = stream.count(self.config.fresh_tokens, whole=outputs != "all")
        queries = self._queries(stream, segments) if self.config.queries and not self.config.speed_tokens else None
        for number in itertools.count():
            segment = stream.cut(self.segment_tokens(state) - state.pending_counts)
            if segment is None:
                return
            if truncate_every and number and number % truncate_every == 0:
                state = state.detach()
            unscored = targets is not None and bool((segment.of(targets, IGNORED) == IGNORED).all())
            output, state = self.step(
                segment.ids,
                state,
                segment_mask=segment.mask,
                query=next(queries, None) if queries else None,
                return_logits=return_logits,
                outputs="none" if unscored else outputs,
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
        state = self.start_state(state, input_ids.shape[0])
        stream = Stream(input_ids, attention_mask, state)
        for _, _, after in self._steps(stream, state, return_logits=False, outputs="none"):
            state = after
        return state
