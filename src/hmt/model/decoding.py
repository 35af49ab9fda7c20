"""From transformers' generation settings to the parts of a decoding loop: logits processors and stopping criteria.

Shape legend: B rows, T tokens of the text so far, V vocabulary.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

DEFAULT_NEW_TOKENS = 20
"""New tokens where nothing says how many, as in transformers."""

DEFAULT_TOP_K = 50
"""Candidates of sampling where nothing says how many, as in transformers; 0 is all of them."""


@dataclass(frozen=True)
class Context:
    """What a processor may need to know besides its own setting.

    Attributes:
        prompt_tokens: Columns of the prompts.
        padding: (B,) int64, columns of padding on the left of each row, or None where no row has any.
        config: All settings.
        vocabulary: Size V.
        device: Where the scores are.
    """

    prompt_tokens: int
    padding: Tensor | None
    config: GenerationConfig
    vocabulary: int
    device: str

    @property
    def eos(self) -> list[int]:
        """The tokens that end a text."""
        return end_tokens(self.config)


class CancelCriteria(StoppingCriteria):
    """Ends all texts once `cancelled` is set, from another thread or a signal's handler."""

    def __init__(self) -> None:
        self.cancelled = False

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:  # type: ignore[override]
        """(B,) bool, True for the rows that end here."""
        return torch.full((len(input_ids),), self.cancelled, device=input_ids.device)


def end_tokens(config: GenerationConfig) -> list[int]:
    """The tokens that end a text."""
    eos = config.eos_token_id
    return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)


Build = Callable[[Any, Context], Any]

PROCESSORS: dict[str, Build] = {
    "sequence_bias": lambda value, _: hf.SequenceBiasLogitsProcessor(value),
    "repetition_penalty": lambda value, c: hf.RepetitionPenaltyLogitsProcessor(value, prompt_ignore_length=c.padding),
    "no_repeat_ngram_size": lambda value, _: hf.NoRepeatNGramLogitsProcessor(value),
    "bad_words_ids": lambda value, c: hf.NoBadWordsLogitsProcessor(value, c.eos or None),
    "min_length": lambda value, c: hf.MinLengthLogitsProcessor(value, c.eos, device=c.device),
    "min_new_tokens": lambda value, c: hf.MinNewTokensLengthLogitsProcessor(
        c.prompt_tokens, value, c.eos, device=c.device
    ),
    "forced_bos_token_id": lambda value, _: hf.ForcedBOSTokenLogitsProcessor(value),
    "forced_eos_token_id": lambda value, c: hf.ForcedEOSTokenLogitsProcessor(
        c.prompt_tokens + c.config.max_new_tokens, value, device=c.device
    ),
    "remove_invalid_values": lambda _, __: hf.InfNanRemoveLogitsProcessor(),
    "exponential_decay_length_penalty": lambda value, c: hf.ExponentialDecayLengthPenalty(
        tuple(value), c.eos, c.prompt_tokens
    ),
    "suppress_tokens": lambda value, c: hf.SuppressTokensLogitsProcessor(value, device=c.device),
    "begin_suppress_tokens": lambda value, c: hf.SuppressTokensAtBeginLogitsProcessor(
        value, c.prompt_tokens, device=c.device
    ),
}
"""Settings that change the scores whether or not the text is sampled, in transformers' order."""

WARPERS: dict[str, Build] = {
    "temperature": lambda value, _: hf.TemperatureLogitsWarper(value),
    "top_h": lambda value, _: hf.TopHLogitsWarper(value),
    "top_k": lambda value, _: hf.TopKLogitsWarper(value),
    "top_p": lambda value, _: hf.TopPLogitsWarper(value),
    "min_p": lambda value, _: hf.MinPLogitsWarper(value),
    "typical_p": lambda value, _: hf.TypicalLogitsWarper(value),
    "epsilon_cutoff": lambda value, _: hf.EpsilonLogitsWarper(value),
    "eta_cutoff": lambda value, c: hf.EtaLogitsWarper(value, device=c.device),
}
"""Settings of sampling, in transformers' order."""

LAST: dict[str, Build] = {
    "watermarking_config": lambda value, c: value.construct_processor(c.vocabulary, c.device),
    "renormalize_logits": lambda _, __: hf.LogitNormalization(),
}
"""Settings that come after all others."""

NEUTRAL: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "temperature"), lambda value: value == 1),
    **dict.fromkeys(("guidance_scale", "num_beams", "num_beam_groups"), lambda value: value == 1),
    **dict.fromkeys(("top_p", "typical_p"), lambda value: value >= 1),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff"), lambda value: not 0 < value < 1),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "min_p", "top_h"), lambda value: False),
}
"""Which values of a setting change nothing, as transformers has it; where it is not listed, False, 0 and empty ones."""

NEEDS_EOS = ("min_length", "min_new_tokens", "exponential_decay_length_penalty")

UNSERVED = (
    "assistant_early_exit", "constraints", "diversity_penalty", "dola_layers", "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty", "force_words_ids", "guidance_scale", "num_beams", "num_beam_groups",
    "output_attentions", "output_hidden_states", "penalty_alpha", "prompt_lookup_num_tokens", "token_healing",
    "use_mtp",
)  # fmt: skip
"""Settings that would change the text or the result and are not implemented: one continuation is followed per row."""


@dataclass(frozen=True)
class Decoding:
    """How a text is continued.

    Attributes:
        config: Settings, every default filled in.
        processors: Applied to the scores (B, V) of each new token.
        criteria: Reasons to stop.
    """

    config: GenerationConfig
    processors: LogitsProcessorList
    criteria: StoppingCriteriaList


def settle(given: GenerationConfig | None, own: GenerationConfig, overrides: dict[str, Any]) -> GenerationConfig:
    """The settings of a call: what the caller says over what the model says, every default filled in.

    Raises:
        ValueError: On settings that do not exist, or that a memory cannot serve; names them.
    """
    config = copy.deepcopy(given or own)
    for name, value in vars(own).items():  # what a caller leaves open is as the model has it
        if not name.startswith("_") and getattr(config, name, None) is None:
            setattr(config, name, copy.deepcopy(value))
    if unknown := config.update(**overrides):
        raise ValueError(f"generate does not take {', '.join(sorted(unknown))}")
    if unserved := [name for name in UNSERVED if _changes(config, name)]:
        raise ValueError(f"generate follows one continuation per row and does not serve {', '.join(unserved)}")
    if config.do_sample and config.top_k is None:
        config.top_k = DEFAULT_TOP_K
    if config.pad_token_id is None:
        config.pad_token_id = next(iter(end_tokens(config)), None)
    return config


def limit_length(config: GenerationConfig, prompt_tokens: int) -> None:
    """Settle `max_new_tokens`, which wins over `max_length`.

    Raises:
        ValueError: If a limit leaves no room for a new token; names both sides.
    """
    if config.max_new_tokens is None:
        room = DEFAULT_NEW_TOKENS if config.max_length is None else config.max_length - prompt_tokens
        if room <= 0:
            raise ValueError(
                f"max_length must exceed the {prompt_tokens} tokens of the prompt, got {config.max_length}"
            )
        config.max_new_tokens = room


def plan(
    context: Context,
    processors: LogitsProcessorList | None,
    criteria: StoppingCriteriaList | None,
    tokenizer: PreTrainedTokenizerBase | None,
    prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]] | None = None,
) -> Decoding:
    """Transformers' own processors and criteria for these settings, and the caller's, in its order.

    Raises:
        ValueError: If there are stop strings and no tokenizer.
    """
    config = context.config
    warpers = WARPERS if config.do_sample else {}
    allowed = [hf.PrefixConstrainedLogitsProcessor(prefix_allowed_tokens_fn, 1)] if prefix_allowed_tokens_fn else []
    chosen = [
        *allowed,
        *_build(PROCESSORS, context),
        *(processors or []),
        *_build(warpers, context),
        *_build(LAST, context),
    ]
    reasons = StoppingCriteriaList(criteria or [])
    if context.eos:
        reasons.append(hf.EosTokenCriteria(eos_token_id=context.eos))
    if config.max_time is not None:
        reasons.append(hf.MaxTimeCriteria(max_time=config.max_time))
    if config.stop_strings:
        if tokenizer is None:
            raise ValueError("stop_strings needs the model's tokenizer: generate(..., tokenizer=tokenizer)")
        reasons.append(hf.StopStringCriteria(tokenizer=tokenizer, stop_strings=config.stop_strings))
    return Decoding(config, LogitsProcessorList(chosen), reasons)


def _build(table: dict[str, Build], context: Context) -> list[Any]:
    names = [name for name in table if _changes(context.config, name) and (context.eos or name not in NEEDS_EOS)]
    return [table[name](getattr(context.config, name), context) for name in names]


def _changes(config: GenerationConfig, name: str) -> bool:
    """Whether a setting asks for something."""
    value = getattr(config, name, None)
    return value is not None and not NEUTRAL.get(name, operator.not_)(value)
