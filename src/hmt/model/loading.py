"""The model and tokenizer that a command's flags ask for."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from hmt.config import memory_fields
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.options import ModelOptions
from hmt.pretrained import first_line, has_tokenizer, load_tokenizer, unfit_errors
from hmt.text.special_tokens import end_token_ids


def load(options: ModelOptions, memory_seed: int = 0) -> tuple[HMTForCausalLM, PreTrainedTokenizerBase]:
    """Load a checkpoint, or wrap a backbone, and put it on its device in evaluation mode.

    The end tokens of the tokenizer are added to those of the model's generation config.

    Args:
        options: Which model.
        memory_seed: Of the parameters of a memory that has yet to learn. It is the same for every verb that reads a
            memory file, so that the seed of sampling does not make another model of it.

    Raises:
        OSError: If there is no such model or tokenizer.
        ValueError: If the settings do not fit it.
    """
    device = choose_device(options.device)
    torch.manual_seed(memory_seed)
    dtype = {} if options.dtype == "auto" else {"dtype": getattr(torch, options.dtype)}
    try:
        model = _build(options, dtype).to(device)  # type: ignore[arg-type]
    except unfit_errors(RuntimeError) as error:
        raise ValueError(f"the model cannot be built: {type(error).__name__}: {first_line(error)}") from error
    model.eval()
    tokenizer = _tokenizer(options, model)
    model.use_tokenizer(tokenizer)
    model.generation_config.eos_token_id = end_token_ids(tokenizer, model.generation_config) or None
    return model, tokenizer


def _build(options: ModelOptions, dtype: dict[str, Any]) -> HMTForCausalLM:
    """The model of a checkpoint, or a backbone with a new memory."""
    fields = memory_fields(options)
    if options.load_from_ckpt is not None:
        return HMTForCausalLM.from_pretrained(
            options.load_from_ckpt,
            verify=options.verify,
            trust_remote_code=options.trust_remote_code,
            **fields,
            **dtype,
        )
    return HMTForCausalLM.from_backbone(
        options.model_name,
        gguf_file=options.gguf_file,
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
        **dtype,
        **fields,
    )


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is an accelerator if there is one.

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


def _tokenizer(options: ModelOptions, model: HMTForCausalLM) -> PreTrainedTokenizerBase:
    """The checkpoint's own tokenizer, else that of its backbone."""
    trust: dict[str, Any] = {"trust_remote_code": options.trust_remote_code}
    if options.load_from_ckpt is None:
        return load_tokenizer(options.model_name, revision=options.revision, **trust)
    source = model.config.backbone_source
    if source and not has_tokenizer(options.load_from_ckpt):
        return load_tokenizer(source, revision=model.config.backbone_revision, **trust)
    return load_tokenizer(options.load_from_ckpt, **trust)
