"""Model and tokenizer of a command, from its flags."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from hmt.config import memory_fields
from hmt.model.backbone import body, embed
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.options import ModelOptions
from hmt.pretrained import first_line, has_tokenizer, load_tokenizer, unfit_errors
from hmt.text.encoding import end_token_ids

NUMBERS = ("temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "max_length", "max_new_tokens")
"""Numbers of a generation config."""


def load(options: ModelOptions, memory_seed: int = 0) -> tuple[HMTForCausalLM, PreTrainedTokenizerBase]:
    """Load a checkpoint, or wrap a backbone, and put it on its device in evaluation mode.

    The end tokens of the tokenizer are added to those of the model's generation config.

    Args:
        options: Model flags.
        memory_seed: Seed of a new memory's parameters: the same for every command that reads a memory file, so that the
            seed of sampling does not change the model.

    Raises:
        OSError: If there is no such model or tokenizer.
        ValueError: If the settings do not fit it.
    """
    device = choose_device(options.device)
    torch.manual_seed(memory_seed)
    dtype = {} if options.dtype == "auto" else {"dtype": getattr(torch, options.dtype)}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            model = _build(options, dtype).to(device)  # type: ignore[arg-type]
            # Some wrong values in a configuration show only in a forward pass.
            body(model.backbone, embed(model.backbone, torch.zeros(1, 1, dtype=torch.long, device=device)))
    except unfit_errors(RuntimeError) as error:
        raise ValueError(f"the model cannot be built: {type(error).__name__}: {first_line(error)}") from error
    _check_generation_config(model.generation_config)
    model.eval()
    tokenizer = _tokenizer(options, model)
    model.use_tokenizer(tokenizer)
    model.generation_config.eos_token_id = end_token_ids(tokenizer, model.generation_config) or None
    return model, tokenizer


def choose_device(name: str) -> torch.device:
    """Device of that name; "auto" is an accelerator if there is one.

    Raises:
        ValueError: If there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {first_line(error)}") from error
    return device


def _build(options: ModelOptions, dtype: dict[str, Any]) -> HMTForCausalLM:
    """The model of a checkpoint, or a backbone with a new memory."""
    loading: dict[str, Any] = {"trust_remote_code": options.trust_remote_code} | dtype | memory_fields(options)
    if options.load_from_ckpt is not None:
        return HMTForCausalLM.from_pretrained(options.load_from_ckpt, verify=options.verify, **loading)
    return HMTForCausalLM.from_backbone(
        options.model_name, gguf_file=options.gguf_file, revision=options.revision, **loading
    )


def _check_generation_config(config: GenerationConfig) -> None:
    """Refuse values of a wrong type, which transformers reads as they are."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(config, name)
        if not all(type(one) is int for one in (value if isinstance(value, list) else [value] * (value is not None))):
            raise ValueError(f"{name} in generation_config.json must be a token id, got {value!r:.80}")
    for name in NUMBERS:
        value = getattr(config, name, None)
        if value is not None and type(value) not in (int, float):
            raise ValueError(f"{name} in generation_config.json must be a number, got {value!r:.80}")


def _tokenizer(options: ModelOptions, model: HMTForCausalLM) -> PreTrainedTokenizerBase:
    """The checkpoint's own tokenizer, else that of its backbone."""
    name, revision = options.load_from_ckpt, None
    if name is None:
        name, revision = options.model_name, options.revision
    elif model.config.backbone_source and not has_tokenizer(name):
        name, revision = model.config.backbone_source, model.config.backbone_revision
    return load_tokenizer(name, revision=revision, trust_remote_code=options.trust_remote_code)
