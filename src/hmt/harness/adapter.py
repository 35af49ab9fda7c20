"""The model `hmt` of lm-evaluation-harness: texts of any length, nothing truncated.

Everything around the model (tokens, BOS, chat templates, stop texts) is that of the harness's own model `hf`, whose
class this one derives from, so that figures of the two can be compared.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils_hf import stop_sequences_criteria
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from hmt.config import MEMORY_FIELDS, memory_fields
from hmt.model.configuration_hmt import HMTConfig
from hmt.model.continuations import answers
from hmt.model.loading import load
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.options import ModelOptions
from hmt.pretrained import locate, read_checkpoint_config
from hmt.text.chat import ChatTemplate

UNLIMITED = 1 << 30
"""Maximum tokens of a text, for the harness: more than any has, and yet a size that torch can slice by."""

Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""Request of the harness: context and continuation as text (or None), then as token ids."""


@register_model("hmt")
class HMTLM(HFLM):  # type: ignore[misc]  # the harness has no types
    """A model with a memory, evaluated by lm-evaluation-harness.

    Importing this module registers it as `hmt`.

    Args:
        pretrained: Checkpoint (directory or hub id), or backbone (directory, hub id or built-in name) that gets a new
            memory; or a model.
        tokenizer: Tokenizer, for a model that is given itself.
        batch_size: Maximum rows read side by side.
        device: Where a model that is loaded runs; "auto" takes an accelerator if there is one. Without CUDA, "cuda:0",
            which the harness asks for by default, means "auto".
        add_bos_token: Begin texts with the BOS token, or do not; by default as the tokenizer does.
        prefix_token_id: Token before texts without a context; by default BOS, or EOS if there is none.
        think_end_token: As in the harness's `hf`: answers begin after it.
        enable_thinking: Likewise, an argument of the chat template.
        chat_template_args: Further arguments of the chat template.
        settings: Fields of `ModelOptions`, such as `mode`, `segment_length` or `dtype`; else as in the checkpoint.

    Raises:
        ValueError: On a setting that does not exist or makes no sense.
        OSError: If there is no such model.
    """

    def __init__(
        self,
        pretrained: str | HMTForCausalLM,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        batch_size: int | str = 1,
        device: str = "auto",
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        think_end_token: str | int | None = None,
        enable_thinking: bool | None = None,
        chat_template_args: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size must be a number of rows above 0, got {batch_size!r}")
        if isinstance(pretrained, str):
            absent = device.startswith("cuda") and not torch.cuda.is_available()
            options = model_options(pretrained, settings | {"device": "auto" if absent else device})
            model, tokenizer = load(options, memory_seed=options.seed)
        else:
            model = pretrained
        if tokenizer is None:
            raise ValueError("give the tokenizer of the model: HMTLM(model, tokenizer)")
        with _unwarned():
            super().__init__(
                pretrained=model,
                backend="causal",
                # by its name it is loaded again, with that setting
                tokenizer=tokenizer if add_bos_token is None else tokenizer.name_or_path,
                batch_size=int(batch_size),
                add_bos_token=add_bos_token,
                prefix_token_id=prefix_token_id,
                think_end_token=think_end_token,
                enable_thinking=enable_thinking,
                chat_template_args=chat_template_args,
                trust_remote_code=bool(settings.get("trust_remote_code", False)),
            )

    @property
    def max_length(self) -> int:
        """Maximum tokens of a text: so many that the harness truncates nothing and cuts no windows."""
        return UNLIMITED

    def get_model_info(self) -> dict[str, Any]:
        """Return the description of the model for the harness's results."""
        return {
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": str(self.model.dtype),
            "model_source": self.model.config.backbone_source,
            "model_memory": memory_fields(self.model.config),
        }

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as text.

        Raises:
            ValueError: If the tokenizer has no chat template.
        """
        ChatTemplate(self.tokenizer)
        return str(super().apply_chat_template(chat_history, add_generation_prompt))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole documents, segment after segment, after the prefix token."""
        texts = [request.args[0] for request in requests]
        tokens = [self.tok_encode(text) for text in texts]
        filled = [(None, [self.prefix_token_id], ids) for ids in tokens if ids]
        found = iter(self._loglikelihood_tokens(filled, disable_tqdm=disable_tqdm))
        totals = [next(found)[0] if ids else 0.0 for ids in tokens]
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        for texts, context, continuation in requests:
            if not context or not continuation:
                raise ValueError(f"a context and its continuation need a token each, got {texts}")
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        pairs = [(context, continuation) for _, context, continuation in requests]
        with tqdm(total=len(requests), desc="loglikelihood", disable=disable_tqdm or None) as bar:
            for answer in answers(self.model, pairs, override_bs or self.batch_size):
                results[answer.number] = answer.loglikelihood, answer.greedy
                if (texts := requests[answer.number][0]) is not None:
                    self.cache_hook.add_partial("loglikelihood", texts, results[answer.number])
                bar.update()
        return results

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **settings: Any
    ) -> torch.Tensor | Any:
        """Continue prompts (B, T), padded on the left, of any length."""
        if not settings.get("do_sample"):
            settings = {
                name: value for name, value in settings.items() if name not in ("temperature", "top_k", "top_p")
            }
            settings["do_sample"] = False
        return self.model.generate(
            context,
            max_new_tokens=max_length - context.shape[1],
            stopping_criteria=stop_sequences_criteria(self.tokenizer, stop, context.shape[1], context.shape[0]),
            pad_token_id=self.tokenizer.pad_token_id,
            **settings,
        )


def model_options(pretrained: str, settings: dict[str, Any]) -> ModelOptions:
    """Return the options of the model that the harness's `model_args` ask for.

    Args:
        pretrained: Checkpoint or backbone.
        settings: Fields of `ModelOptions`; what a checkpoint says holds where they say nothing.

    Raises:
        ValueError: On a setting that does not exist or makes no sense; names it.
        OSError: If there is no such model.
    """
    known = {field.name: field.default for field in fields(ModelOptions)}
    source: dict[str, Any] = {"model_name": pretrained}
    location = locate(pretrained, "model")
    if location.gguf is None:
        stored = read_checkpoint_config(pretrained)
        if stored.get("model_type") == HMTConfig.model_type:
            source = {"load_from_ckpt": pretrained}
            settings = {name: stored[name] for name in MEMORY_FIELDS if name in stored} | settings
    hints = get_type_hints(ModelOptions)
    for name, value in settings.items():
        if name not in known or name in ("model_name", "load_from_ckpt"):
            raise ValueError(f"the model hmt takes no {name!r}; it takes pretrained, batch_size, {', '.join(known)}")
        choices = get_args(hints[name]) if get_origin(hints[name]) is Literal else ()
        kinds = (int, float) if isinstance(known[name], float) else type(known[name])
        if choices and value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        if known[name] is not None and not isinstance(value, kinds):
            raise ValueError(f"{name} must be like {known[name]!r}, got {value!r}")
    options = ModelOptions(**source, **settings)
    options.check()
    return options


@contextmanager
def _unwarned() -> Iterator[None]:
    """Silence the harness's warning that settings of loading have no effect on a loaded model."""
    logger = logging.getLogger(HFLM.__module__)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
