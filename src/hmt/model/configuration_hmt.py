"""Configuration of a wrapped model: settings of the memory beside the configuration of the backbone."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from hmt.config import MEMORY_FIELDS, MemoryConfig, as_first_written


class HMTConfig(PreTrainedConfig, MemoryConfig):
    """Settings of an `HMTForCausalLM`.

    `HMTConfig()` is a memory on the backbone's cache that needs no training; `HMTConfig.published()` is HMT as
    published.

    Args:
        backbone_config: Configuration of the wrapped causal LM (or its dictionary).
        backbone_source: Directory, hub id or built-in name that the backbone was loaded from; "" if it was given as an
            object. A checkpoint without the backbone's weights is completed from there.
        backbone_gguf: GGUF file in that place, if it was one.
        backbone_revision: Revision of a hub id.
        backbone_digest: Digest of the backbone's weights at its source; "" if it was given as an object.
        bos_marks_turns: True if the chat template writes the BOS token between turns: a new memory prompt then starts
            at the mean embedding, since BOS would look like one more turn.
        kwargs: Fields of `MemoryConfig` and arguments of `PreTrainedConfig`.

    Raises:
        ValueError: If a memory field is out of range; names it.
    """

    model_type = "hmt"
    keys_to_ignore_at_inference = [  # noqa: RUF012
        "nll", "causal_mask", "scored_mask", "memory", "recall", "retrieval_loss", "retention_loss",
        "last_hidden_state",
    ]  # fmt: skip
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012  (transformers' own convention)

    def __init__(
        self,
        backbone_config: PreTrainedConfig | dict[str, Any] | None = None,
        backbone_source: str = "",
        backbone_gguf: str | None = None,
        backbone_revision: str | None = None,
        backbone_digest: str = "",
        bos_marks_turns: bool = False,
        **kwargs: Any,
    ) -> None:
        memory = MemoryConfig(**{name: kwargs.pop(name) for name in MEMORY_FIELDS if name in kwargs})
        memory.sensory = memory.sensory or "cache"
        memory.check()
        for name in MEMORY_FIELDS:
            setattr(self, name, getattr(memory, name))
        if isinstance(backbone_config, dict):
            backbone_config = AutoConfig.for_model(**backbone_config)
        self.backbone_config = backbone_config
        self.backbone_source = backbone_source
        self.backbone_gguf = backbone_gguf
        self.backbone_revision = backbone_revision
        self.backbone_digest = backbone_digest
        self.bos_marks_turns = bos_marks_turns
        for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"):
            kwargs.setdefault(name, getattr(backbone_config, name, None))
        # The base class sets the attention of sub-configurations to its own.
        kwargs.setdefault("attn_implementation", getattr(backbone_config, "_attn_implementation", None))
        kwargs.setdefault("tie_word_embeddings", False)  # the backbone ties its own
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a configuration; one written before `sensory` existed means reread."""
        if config_dict.get("model_type") == cls.model_type:
            config_dict = as_first_written(config_dict)
        return super().from_dict(config_dict, **kwargs)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The backbone's text configuration."""
        if self.backbone_config is None:
            return self
        return self.backbone_config.get_text_config(decoder=decoder, encoder=encoder)
