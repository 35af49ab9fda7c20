"""Generate text of any length through the step.

Shape legend: B rows, T prompt tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedTokenizerBase, StoppingCriteriaList
from transformers.generation import BaseStreamer
from transformers.utils import ModelOutput

from hmt.memory.rows import packing_order, take
from hmt.memory.state import MemoryState
from hmt.model.backbone import vocabulary_size
from hmt.model.decoding import Context, Decoding, end_tokens, limit_length, plan, settle
from hmt.model.outputs import RecallTrace
from hmt.model.reading import SegmentReader
from hmt.model.stream import Stream
from hmt.model.writing import SegmentWriter


@dataclass
class GenerateOutput(ModelOutput):
    """Result of `generate` with `return_dict_in_generate=True`.

    Attributes:
        sequences: Prompt and new tokens, (B, T + new); rows that ended early are filled with the padding token.
        scores: With `output_scores`, the scores (B, V) that each new token was chosen by, processed.
        logits: With `output_logits`, the logits (B, V) before that.
        memory: The state after all tokens but the last, whose successor was never asked for.
        recall: With `output_recall`, what was recalled while writing, the beginning of the unfinished segment included,
            and where the new tokens were copied from.
    """

    sequences: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    memory: MemoryState | None = None
    recall: RecallTrace | None = None


class SegmentGenerator(SegmentReader):
    """Writes text through the step."""

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        *,
        memory: MemoryState | None = None,
        attention_mask: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        streamer: BaseStreamer | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        earlier_ids: Tensor | None = None,
        output_recall: bool = False,
        **kwargs: Any,
    ) -> Tensor | GenerateOutput:
        """Continue texts.

        Args:
            input_ids: Prompts, (B, T), of any length.
            memory: What was read before the prompts; nothing where None. It is left as it is, so that it can be
                asked again.
            attention_mask: (B, T), nonzero at real tokens; padding may stand on either side. Where None, padding
                tokens at the ends of rows are taken for padding, as in transformers: only if no text ends with them.
            generation_config: Settings of transformers; the model's own where None.
            logits_processor: Further processors, applied where transformers does, before those of sampling.
            stopping_criteria: Further reasons to stop.
            streamer: Receives the prompt, then each new token.
            tokenizer: Needed with `stop_strings`.
            earlier_ids: Tokens (B, earlier) that the memory has read already and that settings which look back
                (`repetition_penalty`, `no_repeat_ngram_size`) are to see as a part of the prompt.
            output_recall: Return what was recalled and copied (with `return_dict_in_generate`).
            kwargs: Fields of `GenerationConfig` to override, such as `max_new_tokens` or `temperature`.

        Returns:
            Prompt and new tokens, (B, T + new), or a `GenerateOutput`; with `num_return_sequences` n, B * n rows, those
            of a prompt side by side.

        Raises:
            ValueError: On settings that a memory cannot serve (beams, assisted decoding), inputs that do not fit, and a
                row without a token.
        """
        if input_ids.dim() != 2:
            raise ValueError(f"input_ids must be (batch, tokens), got {tuple(input_ids.shape)}")
        config = settle(generation_config, self.generation_config, kwargs)
        limit_length(config, input_ids.shape[1])
        if attention_mask is None:
            attention_mask = _without_padding(input_ids, config)
        if attention_mask is not None and not attention_mask.bool().any(dim=1).all():
            raise ValueError("every row needs a token to go on from")
        state = self.start_state(memory, input_ids.shape[0])
        if (copies := config.num_return_sequences or 1) > 1:
            input_ids = input_ids.repeat_interleave(copies, dim=0)
            attention_mask, earlier_ids = (
                rows if rows is None else rows.repeat_interleave(copies, dim=0)
                for rows in (attention_mask, earlier_ids)
            )
            state = state.map(lambda tensor: tensor.repeat_interleave(copies, dim=0))
        history, padding = _history(input_ids, attention_mask, earlier_ids)
        context = Context(history.shape[1], padding, config, len(self.embedding_table), str(input_ids.device))
        decoding = plan(context, logits_processor, stopping_criteria, tokenizer)
        if streamer is not None:
            streamer.put(input_ids.cpu())
        writer = SegmentWriter(self, state, keep_recollections=output_recall)
        logits = self._read_prompt(input_ids, attention_mask, writer)
        result = self._write(writer, logits, history, decoding, streamer)
        assert result.sequences is not None
        result.sequences = torch.cat([input_ids, result.sequences[:, history.shape[1] :]], dim=1)
        if writer.recollections is not None:
            result.recall = RecallTrace.of(writer.recollections, writer.copied)
        return result if config.return_dict_in_generate else result.sequences

    def _write(
        self,
        writer: SegmentWriter,
        logits: Tensor,
        sequences: Tensor,
        decoding: Decoding,
        streamer: BaseStreamer | None,
    ) -> GenerateOutput:
        """The decoding loop, from the logits (B, V) at the end of the prompts (B, T), padded on the left."""
        config = decoding.config
        running = torch.ones(len(sequences), dtype=torch.bool, device=sequences.device)
        filler = config.pad_token_id or 0
        all_scores, all_logits = [], []
        for count in range(config.max_new_tokens):
            if count:
                logits = writer.feed(sequences[:, -1], running)
            scores = decoding.processors(sequences, logits)  # type: ignore[arg-type]
            tokens = torch.where(running, _choose(scores, config.do_sample), filler)
            writer.note_choice(tokens, running)
            sequences = torch.cat([sequences, tokens[:, None]], dim=1)
            if config.output_scores:
                all_scores.append(scores)
            if config.output_logits:
                all_logits.append(logits)
            if streamer is not None:
                streamer.put(tokens.cpu())
            running = running & ~decoding.criteria(sequences, scores)
            if not running.any():
                break
        if streamer is not None:
            streamer.end()
        return GenerateOutput(
            sequences=sequences,
            scores=tuple(all_scores) if config.output_scores else None,
            logits=tuple(all_logits) if config.output_logits else None,
            memory=writer.state,
        )

    def _read_prompt(self, input_ids: Tensor, attention_mask: Tensor | None, writer: SegmentWriter) -> Tensor:
        """Read whole segments by steps and open the unfinished one: logits (B, V) float32 at the end."""
        stream = Stream(input_ids, attention_mask, writer.state)
        logits = torch.zeros(len(input_ids), vocabulary_size(self.backbone), device=input_ids.device)
        for segment, output, state in self._steps(stream, writer.state, return_logits=False, outputs="complete"):
            writer.state = state
            if output.hidden is not None:
                rows, columns = (segment.mask & (segment.slots == stream.lengths[:, None] - 1)).nonzero(as_tuple=True)
                places = rows * segment.ids.shape[1] + columns
                if len(rows):
                    logits[rows] = writer.predict(output.hidden[rows, columns], output.copies, places, rows)
        unfinished = writer.state.pending_counts > 0
        if unfinished.any():
            logits = torch.where(unfinished[:, None], writer.open(), logits)
        return logits


def _choose(scores: Tensor, sample: bool | None) -> Tensor:
    if sample:
        return torch.multinomial(scores.softmax(dim=-1), num_samples=1)[:, 0]
    return scores.argmax(dim=-1)


def _without_padding(input_ids: Tensor, config: GenerationConfig) -> Tensor | None:
    """Mask (B, T) of what is no padding at the ends of a row; None where padding cannot be told from text."""
    if config.pad_token_id is None or config.pad_token_id in end_tokens(config):
        return None
    text = input_ids != config.pad_token_id
    from_left, from_right = text.cumsum(dim=1), text.flip(1).cumsum(dim=1).flip(1)
    return None if text.all() else (from_left > 0) & (from_right > 0)


def _history(
    input_ids: Tensor, attention_mask: Tensor | None, earlier_ids: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """What stands before the new tokens, padding moved to the left, so that what is written follows what was read.

    Returns:
        Tokens (B, earlier + T), and the padding of each row (B,), or None where there is none.
    """
    real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    if earlier_ids is not None:
        input_ids = torch.cat([earlier_ids, input_ids], dim=1)
        real = torch.cat([torch.ones_like(earlier_ids, dtype=torch.bool), real], dim=1)
    if real.all():
        return input_ids, None
    return take(input_ids, packing_order(~real)), (~real).sum(dim=1)
