"""Generate text of any length through the step.

Shape legend: B rows, T prompt tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation import BaseStreamer
from transformers.utils import ModelOutput

from hmt.memory.rows import packing_order, take
from hmt.memory.state import MemoryState
from hmt.memory.window import RECALLED, Window
from hmt.model.backbone import head, vocabulary_size
from hmt.model.outputs import RecallTrace, Recollection
from hmt.model.stream import Stream
from hmt.model.text_recall import recall_for_prompt
from hmt.options import GREEDY_TEMPERATURE

if TYPE_CHECKING:
    from hmt.model.modeling_hmt import HMTForCausalLM

DEFAULT_NEW_TOKENS = 20
"""New tokens if nothing says how many, as in transformers."""

DEFAULT_TOP_K = 50
"""Candidates of sampling if nothing says how many, as in transformers; 0 is all of them."""

UNSERVED = {
    **dict.fromkeys(("num_beams", "num_beam_groups", "guidance_scale"), 1),
    **dict.fromkeys(("diversity_penalty", "penalty_alpha"), 0),
    **dict.fromkeys(("output_attentions", "output_hidden_states", "token_healing", "use_mtp"), False),
    **dict.fromkeys(
        ("assistant_early_exit", "constraints", "dola_layers", "force_words_ids", "prompt_lookup_num_tokens"), None
    ),
}
"""Settings of transformers that are not implemented, since one continuation is followed per row, and the value besides
None that asks for nothing."""


@dataclass
class GenerateOutput(ModelOutput):
    """Result of `generate` with `return_dict_in_generate=True`.

    Attributes:
        sequences: Prompt and new tokens, (B, T + new); rows that ended early are filled with the padding token.
        scores: With `output_scores`, the scores (B, V) that each new token was chosen by, processed.
        logits: With `output_logits`, the logits (B, V) before that.
        memory: The state after all tokens but the last, whose successor was never asked for.
        recall: With `output_recall`, the passages and embeddings that were recalled.
    """

    sequences: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    memory: MemoryState | None = None
    recall: RecallTrace | None = None


@torch.no_grad()
def generate(
    model: HMTForCausalLM,
    input_ids: Tensor | None,
    *,
    memory: MemoryState | None,
    attention_mask: Tensor | None,
    generation_config: GenerationConfig | None,
    logits_processor: LogitsProcessorList | None,
    stopping_criteria: StoppingCriteriaList | None,
    prefix_allowed_tokens_fn: Any,
    streamer: BaseStreamer | None,
    tokenizer: PreTrainedTokenizerBase | None,
    earlier_ids: Tensor | None,
    query_ids: Tensor | None,
    output_recall: bool,
    **kwargs: Any,
) -> Tensor | GenerateOutput:
    """Continue texts; see `HMTForCausalLM.generate`."""
    if input_ids is None or input_ids.dim() != 2 or not input_ids.numel():
        got = None if input_ids is None else tuple(input_ids.shape)
        raise ValueError(f"input_ids must be (batch, tokens) with at least one token, got {got}")
    config = _complete(generation_config, model.generation_config, kwargs, input_ids.shape[1])
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must have the shape of input_ids {tuple(input_ids.shape)}, "
            f"got {tuple(attention_mask.shape)}"
        )
    if attention_mask is None:
        attention_mask = _without_padding(input_ids, config)
    if attention_mask is not None and not attention_mask.bool().any(dim=1).all():
        raise ValueError("attention_mask leaves a row without a token; every row needs one to go on from")
    state = model.start_state(memory, input_ids.shape[0])
    if (copies := config.num_return_sequences or 1) > 1:
        input_ids, attention_mask, earlier_ids, query_ids = (
            rows if rows is None else rows.repeat_interleave(copies, dim=0)
            for rows in (input_ids, attention_mask, earlier_ids, query_ids)
        )
        state = state.map(lambda tensor: tensor.repeat_interleave(copies, dim=0))
    assert input_ids is not None
    history, mask = _history(input_ids, attention_mask, earlier_ids)
    decoding = _decoding(
        model, config, history, mask, logits_processor, stopping_criteria, prefix_allowed_tokens_fn, tokenizer
    )
    if streamer is not None:
        streamer.put(input_ids.cpu())
    state, prompt = recall_for_prompt(model, input_ids, attention_mask, state, query_ids)
    recollections: list[Recollection] | None = [] if output_recall else None
    logits, state = read_prompt(model, prompt.rest, prompt.mask, state, recollections)
    result = _write(model, state, logits, history, decoding, streamer, recollections)
    assert result.sequences is not None
    result.sequences = torch.cat([input_ids, result.sequences[:, history.shape[1] :]], dim=1)
    if recollections is not None:
        result.recall = RecallTrace.of(recollections, prompt.found)
    return result if config.return_dict_in_generate else result.sequences


class CancelCriteria(StoppingCriteria):
    """End all texts once `cancelled` is set, from another thread or the handler of a signal."""

    def __init__(self) -> None:
        self.cancelled = False

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:  # type: ignore[override]
        """(B,) bool, True for the rows that end here."""
        return torch.full((len(input_ids),), self.cancelled, device=input_ids.device)


@dataclass(frozen=True)
class Decoding:
    """Settings of a call, and transformers' processors and criteria for them."""

    config: GenerationConfig
    processors: LogitsProcessorList
    criteria: StoppingCriteriaList


def end_tokens(config: GenerationConfig) -> list[int]:
    """Tokens that end a text."""
    eos = config.eos_token_id
    return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)


def _complete(
    given: GenerationConfig | None, own: GenerationConfig, overrides: dict[str, Any], prompt_tokens: int
) -> GenerationConfig:
    """Settings of a call with every default filled in: the caller's over the model's.

    Raises:
        ValueError: If a setting does not exist, cannot be served, or leaves no room for a new token; names it.
    """
    config = copy.deepcopy(given or own)
    for name, value in vars(own).items():
        if not name.startswith("_") and getattr(config, name, None) is None:
            setattr(config, name, copy.deepcopy(value))
    if unknown := config.update(**overrides):
        raise ValueError(f"generate does not take {', '.join(sorted(unknown))}")
    if unserved := [name for name, off in UNSERVED.items() if getattr(config, name, None) not in (None, off)]:
        raise ValueError(f"generate follows one continuation per row and does not serve {', '.join(unserved)}")
    if config.do_sample and config.temperature is not None and 0 < config.temperature < GREEDY_TEMPERATURE:
        config.do_sample = False
    if config.do_sample and config.top_k is None:
        config.top_k = DEFAULT_TOP_K
    if config.pad_token_id is None:
        config.pad_token_id = next(iter(end_tokens(config)), None)
    if config.max_new_tokens is None:
        room = DEFAULT_NEW_TOKENS if config.max_length is None else config.max_length - prompt_tokens
        if room <= 0:
            raise ValueError(
                f"max_length must exceed the {prompt_tokens} tokens of the prompt, got {config.max_length}"
            )
        config.max_new_tokens = room
    return config


def _decoding(
    model: HMTForCausalLM,
    config: GenerationConfig,
    history: Tensor,
    mask: Tensor,
    processors: LogitsProcessorList | None,
    criteria: StoppingCriteriaList | None,
    prefix_allowed_tokens_fn: Any,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Decoding:
    """Transformers' own processors and criteria for these settings, joined with the caller's."""
    if config.stop_strings and tokenizer is None:
        raise ValueError("stop_strings needs the model's tokenizer: generate(..., tokenizer=tokenizer)")
    config.num_beams, config.max_length = 1, history.shape[1] + config.max_new_tokens
    mixin: Any = model
    mixin._prepare_special_tokens(config, kwargs_has_attention_mask=True, device=history.device)
    chosen = mixin._get_logits_processor(
        config,
        input_ids_seq_length=history.shape[1],
        encoder_input_ids=history,
        prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
        logits_processor=processors,
        device=str(history.device),
        model_kwargs={"attention_mask": mask},
    )
    config.max_length = None  # the loop counts; transformers would warn of the backbone's own limit
    reasons = mixin._get_stopping_criteria(config, criteria or StoppingCriteriaList(), tokenizer)
    return Decoding(config, chosen, reasons)


def read_prompt(
    model: HMTForCausalLM,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    state: MemoryState,
    recollections: list[Recollection] | None = None,
) -> tuple[Tensor, MemoryState]:
    """Read prompts (B, T): logits (B, V) float32 after the last token of each row, and the state there."""
    stream = Stream(input_ids, attention_mask, state)
    logits: Tensor | None = None
    for segment, output, after in model.steps(stream, state, causal=True):
        state = after
        if recollections is not None:
            recollections.append(output.alone())
        assert output.hidden is not None
        rows, columns = (segment.mask & (segment.slots == stream.lengths[:, None] - 1)).nonzero(as_tuple=True)
        if logits is None:
            logits = output.hidden.new_zeros(len(input_ids), vocabulary_size(model.backbone), dtype=torch.float32)
        if len(rows):
            rows, columns = rows.to(logits.device), columns.to(logits.device)
            at = output.hidden[rows, columns]
            logits[rows] = head(model.backbone, at).float() if output.logits is None else output.logits[rows, columns]
    assert logits is not None
    return logits, state


def _write(
    model: HMTForCausalLM,
    state: MemoryState,
    logits: Tensor,
    sequences: Tensor,
    decoding: Decoding,
    streamer: BaseStreamer | None,
    recollections: list[Recollection] | None,
) -> GenerateOutput:
    """The decoding loop, from the logits (B, V) at the end of the prompts (B, T), padded on the left."""
    config = decoding.config
    running = torch.ones(len(sequences), dtype=torch.bool, device=sequences.device)
    filler = config.pad_token_id or 0
    all_scores, all_logits = [], []
    for count in range(config.max_new_tokens):
        if count:
            output, state = model.step(sequences[:, -1:], state, segment_mask=running[:, None], causal=True)
            assert output.logits is not None
            logits = output.logits[:, -1].float()
            if recollections is not None and (output.weights is not None or not recollections):
                recollections.append(output.alone())
        scores = decoding.processors(sequences, logits.to(sequences.device))  # type: ignore[arg-type]
        _check_scores(logits, scores, running, count)
        tokens = torch.where(running, _choose(scores, config.do_sample), filler)
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
    if isinstance(state.window, Window):
        state = replace(state, window=state.window.without(RECALLED))
    return GenerateOutput(
        sequences=sequences,
        scores=tuple(all_scores) if config.output_scores else None,
        logits=tuple(all_logits) if config.output_logits else None,
        memory=state,
    )


def _check_scores(logits: Tensor, scores: Tensor, running: Tensor, count: int) -> None:
    """Refuse logits (B, V) that are not finite, and scores (B, V) that leave no token to choose."""
    finite = torch.isfinite(logits).all(dim=-1).to(scores.device)
    bad = (~finite | ~(scores.amax(dim=-1) > -torch.inf)) & running
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        if not finite[row]:
            raise FloatingPointError(
                f"logits of row {row} are not finite after {count} new token(s); check the weights"
            )
        raise ValueError(f"the generation settings leave no token to choose in row {row} after {count} new token(s)")


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


def _history(input_ids: Tensor, attention_mask: Tensor | None, earlier_ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """Tokens before the new ones and their mask, (B, earlier + T), padding moved to the left."""
    real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    if earlier_ids is not None:
        input_ids = torch.cat([earlier_ids, input_ids], dim=1)
        real = torch.cat([torch.ones_like(earlier_ids, dtype=torch.bool), real], dim=1)
    order = packing_order(~real)
    return take(input_ids, order), take(real, order)
