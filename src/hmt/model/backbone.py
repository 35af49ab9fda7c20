"""The wrapped causal LM, taken apart into a body (embeddings to last hidden state) and a head (to logits)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.profiler import record_function
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from hmt.config import CACHE_WINDOW, REREAD_WINDOW, MemoryConfig
from hmt.model.rotary import rotations
from hmt.model.window_attention import Around, carries_state, unsupported


def embedding_size(config: PreTrainedConfig) -> int:
    """Size D of a backbone's input embeddings, which is also that of its last hidden state."""
    text = config.get_text_config(decoder=True)
    # OPT projects its embeddings in and its last hidden state out again.
    return getattr(text, "word_embed_proj_dim", None) or text.hidden_size


def vocabulary_size(backbone: PreTrainedModel) -> int:
    """Logits V that a backbone's head gives."""
    weight = backbone.get_output_embeddings().weight
    assert isinstance(weight, Tensor)
    return len(weight)


def max_positions(config: PreTrainedConfig) -> int | None:
    """Longest window a backbone was made for, or None where it has no limit."""
    return getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)


def embed(backbone: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """Token embeddings (B, M, D)."""
    return backbone.get_input_embeddings()(input_ids)


def body(
    backbone: PreTrainedModel, embeddings: Tensor, recompute: bool = False, around: Around = nullcontext
) -> Tensor:
    """Last hidden states (B, M, D), after the final norm, without logits, cache or the states of other layers.

    Args:
        backbone: Gives the body.
        embeddings: Window, (B, M, D).
        recompute: Keep nothing but the window for the backward pass, and run the body again there.
        around: Makes the context in which the body runs, both times.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(body, backbone, embeddings, around=around, use_reentrant=False)
    with around():
        return backbone.base_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state


def head(backbone: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits (..., V) of hidden states (..., D), with the scaling that some families apply to them."""
    with record_function("hmt.head"):
        logits = backbone.get_output_embeddings()(hidden)
    config = backbone.config.get_text_config(decoder=True)
    if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere
        logits = logits * scale
    if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite
        logits = logits / divisor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma
        logits = torch.tanh(logits / cap) * cap
    return logits


def compile_layers(backbone: PreTrainedModel) -> None:
    """Compile a backbone's layers in place, for windows of any length: for training.

    Raises:
        ValueError: If transformers does not tell what the layers of this family are.
    """
    layers = [module for module in backbone.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(f"the layers of {type(backbone).__name__} cannot be compiled one by one; leave out --compile")
    for layer in layers:
        layer.compile()


def has_adapter(backbone: PreTrainedModel) -> bool:
    """True if a backbone carries a PEFT adapter."""
    return bool(getattr(backbone, "_hf_peft_config_loaded", False))


@contextmanager
def eval_mode(backbone: PreTrainedModel, adapted: bool) -> Iterator[None]:
    """The backbone in evaluation mode, and unless it is to be `adapted` without its adapters; afterwards as it was."""
    training = backbone.training
    learns = [(parameter, parameter.requires_grad) for parameter in backbone.parameters()]
    without = not adapted and has_adapter(backbone)
    backbone.eval()
    if without:
        backbone.disable_adapters()
    try:
        yield
    finally:
        if without:
            backbone.enable_adapters()  # which lets them learn, whether they did or not
            for parameter, before in learns:
                parameter.requires_grad_(before)
        backbone.train(training)


def check_window(backbone: PreTrainedModel, window: int) -> None:
    """Make sure that a window fits the positions a backbone was made for.

    Raises:
        ValueError: If it does not; names both.
    """
    limit = max_positions(backbone.config)
    if limit is not None and window > limit:
        name = type(backbone).__name__
        raise ValueError(f"segment_length {window} exceeds the {limit} positions of {name}; lower --segment_length")


@torch.no_grad()
def check_backbone(backbone: nn.Module) -> None:
    """Make sure that body and head, fed with embeddings, do what the model itself does with tokens.

    Raises:
        ValueError: If the model cannot be wrapped; says why.
    """
    name = type(backbone).__name__
    if not isinstance(backbone, PreTrainedModel) or backbone.get_output_embeddings() is None:
        raise ValueError(f"{name} is not a causal language model of transformers: it has no language-model head")
    if next(backbone.parameters()).is_meta:
        return
    training = backbone.training
    backbone.eval()
    try:
        ids = torch.tensor([[1, 2, 0, 1, 2]], device=backbone.device)
        expected = backbone(input_ids=ids, use_cache=False).logits
        embeddings = embed(backbone, ids)
        hidden = body(backbone, embeddings)
        if hidden.shape != embeddings.shape:
            raise ValueError(
                f"its hidden states {tuple(hidden.shape)} do not fit its embeddings {tuple(embeddings.shape)}"
            )
        got = head(backbone, hidden)
        if _differ(got, expected):
            raise ValueError("body and head give other logits than the model itself")
        if _differ(body(backbone, embeddings[:, :3]), hidden[:, :3]):
            raise ValueError("it is not causal: later tokens change earlier hidden states")
    except (TypeError, AttributeError, NotImplementedError, ValueError) as error:
        raise ValueError(f"{name} cannot be given a memory: {error}") from error
    finally:
        backbone.train(training)


def _differ(got: Tensor, expected: Tensor) -> bool:
    # Wrong scalings or ignored embeddings differ by far more than kernels and bfloat16 do.
    difference = (got.float() - expected.float()).abs().max()
    return bool(difference > 0.05 * expected.float().abs().max())


def cannot_roll(backbone: PreTrainedModel) -> str:
    """The reason for which a backbone cannot read through a rolling cache; "" if it can."""
    if carries_state(backbone):
        return ""
    if reason := unsupported(backbone):
        return reason
    try:
        rotations(backbone)
    except ValueError as error:
        return str(error)
    return ""


def fitting_settings(backbone: PreTrainedModel, settings: MemoryConfig) -> dict[str, Any]:
    """Settings that are left open, as they suit a backbone: the form of sensory memory, and the default window.

    Raises:
        ValueError: If a rolling cache is asked for that the backbone cannot have; names the flag.
    """
    found: dict[str, Any] = {"sensory": settings.sensory}
    if settings.sensory != "reread":
        reason = cannot_roll(backbone)
        if reason and settings.sensory == "cache":
            raise ValueError(f"sensory cache is not possible: {reason}; give --sensory reread")
        found["sensory"] = "reread" if reason else "cache"
    limit = max_positions(backbone.config)
    if settings.segment_length is None and settings.num_sensory is None and limit is not None:
        wide = REREAD_WINDOW if found["sensory"] == "reread" else min(CACHE_WINDOW, limit // 2)
        found["segment_length"] = min(wide, limit)
    return found
