"""Generate text of any length through the step.

Shape legend: B rows, T prompt tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxTimeCriteria,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation import BaseStreamer
from transformers.utils import ModelOutput

from hmt.memory.state import MemoryState
from hmt.model.backbone import head
from hmt.model.reading import SegmentReader
from hmt.model.stream import Stream
from hmt.model.writing import SegmentWriter

DEFAULT_NEW_TOKENS = 20
"""New tokens where nothing says how many, as in transformers."""


DEFAULT_TOP_K = 50
"""Candidates of sampling where nothing says how many, as in transformers; 0 is all of them."""

UNSERVED = (
    "bad_words_ids", "constraints", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id",
    "force_words_ids", "guidance_scale", "min_length", "output_attentions", "output_hidden_states", "output_logits",
    "output_scores", "penalty_alpha", "sequence_bias", "stop_strings", "suppress_tokens", "watermarking_config",
)  # fmt: skip
"""Settings of transformers that would change the text or the result and are not implemented."""


@dataclass
class GenerateOutput(ModelOutput):
    """Result of `generate` with `return_dict_in_generate=True`.

    Attributes:
        sequences: Prompt and new tokens, (B, T + new); rows that ended early are filled with the padding token.
        memory: The state after all tokens but the last, whose successor was never asked for.
    """

    sequences: Tensor | None = None
    memory: MemoryState | None = None


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
        **kwargs: Any,
    ) -> Tensor | GenerateOutput:
        """Continue texts.

        Args:
            input_ids: Prompts, (B, T), of any length.
            memory: What was read before the prompts; nothing where None.
            attention_mask: (B, T), nonzero at real tokens; padding may stand on either side.
            generation_config: Settings of transformers; the model's own where None.
            logits_processor: Further processors, applied first.
            stopping_criteria: Further reasons to stop.
            streamer: Receives the prompt, then each new token.
            kwargs: Fields of `GenerationConfig` to override, such as `max_new_tokens` or `temperature`.

        Returns:
            Prompt and new tokens, (B, T + new), or a `GenerateOutput`.

        Raises:
            ValueError: On settings that a memory cannot serve (beams, several sequences per prompt).
        """
        if input_ids.dim() != 2:
            raise ValueError(f"input_ids must be (batch, tokens), got {tuple(input_ids.shape)}")
        config, processors, criteria = _settings(self, input_ids, generation_config, kwargs)
        processors = LogitsProcessorList([*(logits_processor or []), *processors])
        criteria.extend(stopping_criteria or [])
        state = self.start_state(memory, input_ids.shape[0])
        if streamer is not None:
            streamer.put(input_ids.cpu())
        writer, hidden = self._read_prompt(input_ids, attention_mask, state)
        sequences, running = input_ids, torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for count in range(config.max_new_tokens):
            if count:
                hidden = writer.feed(sequences[:, -1], running)
            logits = head(self.backbone, hidden)
            scores = processors(sequences, logits.float())  # type: ignore[arg-type]
            tokens = _choose(scores, config.do_sample)
            tokens = torch.where(running, tokens, config.pad_token_id)
            sequences = torch.cat([sequences, tokens[:, None]], dim=1)
            if streamer is not None:
                streamer.put(tokens.cpu())
            running = running & ~criteria(sequences, logits)
            if not running.any():
                break
        if streamer is not None:
            streamer.end()
        return GenerateOutput(sequences, writer.state) if config.return_dict_in_generate else sequences

    def _read_prompt(
        self, input_ids: Tensor, attention_mask: Tensor | None, state: MemoryState
    ) -> tuple[SegmentWriter, Tensor]:
        """Read whole segments by steps and open the unfinished one: the writer, and hidden states (B, D) at the end."""
        stream = Stream(input_ids, attention_mask, state, self.config.fresh_tokens)
        rows = torch.arange(len(input_ids), device=input_ids.device)
        last = self.embedding_table.new_zeros(len(input_ids), self.embedding_table.shape[1])
        for segment, output, after in self._steps(stream, state, return_logits=False, remember_only=True):
            state = after
            if output.hidden is not None:
                ending = output.hidden[rows, (segment.mask.sum(dim=1) - 1).clamp(min=0)]
                last = torch.where(segment.mask.any(dim=1, keepdim=True), ending, last)
        writer = SegmentWriter(self, state)
        unfinished = state.pending_counts > 0
        if unfinished.any():
            last = torch.where(unfinished[:, None], writer.open(), last)
        return writer, last


def _choose(scores: Tensor, sample: bool) -> Tensor:
    if sample:
        return torch.multinomial(scores.softmax(dim=-1), num_samples=1)[:, 0]
    return scores.argmax(dim=-1)


def _settings(
    model: Any, input_ids: Tensor, given: GenerationConfig | None, overrides: dict[str, Any]
) -> tuple[GenerationConfig, LogitsProcessorList, StoppingCriteriaList]:
    """Settings with every default filled in, and the processors and criteria that they ask for."""
    own = model.generation_config
    config = copy.deepcopy(given or own)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):  # what the model ends with, unless said otherwise
        if getattr(config, name) is None:
            setattr(config, name, getattr(own, name))
    if unknown := config.update(**overrides):
        raise ValueError(f"generate does not take {', '.join(sorted(unknown))}")
    if (config.num_beams or 1) > 1 or (config.num_return_sequences or 1) > 1:
        raise ValueError("generate follows one continuation per prompt: num_beams and num_return_sequences must be 1")
    if unserved := [name for name in UNSERVED if getattr(config, name, None)]:
        raise ValueError(f"generate does not serve {', '.join(unserved)}")
    prompt_tokens = input_ids.shape[1]
    if config.max_new_tokens is None:
        room = DEFAULT_NEW_TOKENS if config.max_length is None else config.max_length - prompt_tokens
        config.max_new_tokens = room if room > 0 else DEFAULT_NEW_TOKENS
    eos = config.eos_token_id
    if config.pad_token_id is None:
        config.pad_token_id = 0 if eos is None else (eos[0] if isinstance(eos, list) else eos)
    criteria = StoppingCriteriaList()
    if eos is not None:
        criteria.append(EosTokenCriteria(eos_token_id=eos))
    if config.max_time is not None:
        criteria.append(MaxTimeCriteria(max_time=config.max_time))
    return config, _processors(config, prompt_tokens, str(input_ids.device)), criteria


def _processors(config: GenerationConfig, prompt_tokens: int, device: str) -> LogitsProcessorList:
    """Transformers' own logits processors for these settings, in its order."""
    processors = LogitsProcessorList()
    if (config.repetition_penalty or 1.0) != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if config.no_repeat_ngram_size:
        processors.append(NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size))
    if config.min_new_tokens and config.eos_token_id is not None:
        processors.append(
            MinNewTokensLengthLogitsProcessor(prompt_tokens, config.min_new_tokens, config.eos_token_id, device=device)
        )
    if config.do_sample:
        if config.temperature is not None and config.temperature != 1.0:
            processors.append(TemperatureLogitsWarper(config.temperature))
        top_k = DEFAULT_TOP_K if config.top_k is None else config.top_k
        if top_k:
            processors.append(TopKLogitsWarper(top_k))
        if config.top_p is not None and config.top_p < 1.0:
            processors.append(TopPLogitsWarper(config.top_p))
        if config.min_p is not None:
            processors.append(MinPLogitsWarper(config.min_p))
    return processors
