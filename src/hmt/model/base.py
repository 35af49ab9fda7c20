"""A backbone with a memory beside it: construction, sharing, identity."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from hmt.config import MEMORY_FIELDS
from hmt.memory.recall import Memory
from hmt.memory.state import MemoryState, ModelIdentity
from hmt.model.autoencoder import Autoencoder, mlps
from hmt.model.backbone import body, check_window, embed, embedding_size, head, judging, vocabulary_size
from hmt.model.compiled import CompiledBody
from hmt.model.configuration import HMTConfig
from hmt.model.identity import weights_digest

Self = TypeVar("Self", bound="MemoryModel")

FREE_FIELDS = {
    "memory_gain", "summary_batch_tokens", "mem_recall_context", "memory_policy", "retention_protected",
    "retention_heads", "recall_selection", "copy_context",
}  # fmt: skip
"""Settings that may change between writing a memory and reading it."""

CHANGEABLE = ("memory.retention.", "memory.copying.")
"""Beginnings of the names of weights that may differ between writing a memory and reading it."""

AUTOENCODER_FIELDS = {"inject_autoencoder", "autoencoder_low", "autoencoder_high"}

SWITCHES = {
    "num_recalled_tokens": "recalled_tokens",
    "dynamic_reading": "dynamic_reading",
    "recall_recency": "recall_recency",
    **dict.fromkeys(AUTOENCODER_FIELDS, "inject_autoencoder"),
}
"""Settings that a memory notes only where the other one is on: there are memories older than they are."""


class MemoryModel(PreTrainedModel):
    """A causal LM and the learned parts of its memory.

    Attributes:
        backbone: The wrapped causal LM.
        memory: Prompts and recall projections.
        autoencoder: Acts before the backbone's MLPs, or None.
        checkpoint_segments: While training, keep only each segment's window and run its body again in the backward
            pass.
        compiled: The body for whole windows and groups of summaries; None to run it as it is.
    """

    checkpoint_segments = False
    compiled: CompiledBody | None = None

    config_class = HMTConfig
    config: HMTConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ["memory"]  # noqa: RUF012  (transformers' own convention)

    def __init__(self, config: HMTConfig, backbone: PreTrainedModel | None = None, backbone_code: bool = False) -> None:
        config.check()
        super().__init__(config)
        if backbone is None:
            backbone = AutoModelForCausalLM.from_config(config.backbone_config, trust_remote_code=backbone_code)
        else:
            for module in backbone.modules():  # what was put into it since it was loaded, an adapter, has weights too
                module._is_hf_initialized = True  # type: ignore[assignment]
        check_window(backbone, config.segment_length)
        self.backbone: PreTrainedModel = backbone
        self.memory = Memory(config, embedding_size(backbone.config), vocabulary_size(backbone))
        self.autoencoder = Autoencoder(config) if config.inject_autoencoder else None
        if self.autoencoder is not None:
            mlps(backbone)  # complains where there are none
        self.post_init()
        if backbone.generation_config is not None:
            self.generation_config = copy.deepcopy(backbone.generation_config)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Memory):
            scale = torch.tensor(getattr(self.config.get_text_config(), "initializer_range", None) or 0.02)
            with torch.no_grad():
                module.initialise(torch.zeros(embedding_size(self.backbone.config)), scale)

    def initialise_memory(self) -> None:
        """Fit a new memory to the backbone's embeddings (needed after wrapping, not after loading)."""
        weight = self.embedding_table
        if weight.is_meta:
            return
        with torch.no_grad():
            table = embed(self.backbone, torch.arange(len(weight), device=weight.device)[None])[0].float()
            bos = None if self.config.bos_marks_turns else self.config.bos_token_id
            neutral = table[bos] if isinstance(bos, int) and bos < len(table) else table.mean(dim=0)
            self.memory.to(weight.device).initialise(neutral, table.pow(2).mean().sqrt())
            if self.memory.copying is not None:
                self.memory.copying.prior.copy_(self._prior(neutral.to(weight.dtype)))

    def _prior(self, neutral: Tensor) -> Tensor:
        """What the backbone, without adapters, predicts after an embedding (D,) that tells it nothing: (V,) nats."""
        with judging(self.backbone, adapted=False):
            hidden = body(self.backbone, neutral[None, None], autoencoder=self.autoencoder)
            return head(self.backbone, hidden)[0, 0].float().log_softmax(dim=-1)

    def variant(self: Self, **config_fields: Any) -> Self:
        """The same weights read another way: other settings over the same backbone and memory parameters.

        Memory parameters are shared wherever the variant has one of the same name and shape; the others are new.

        Args:
            config_fields: Fields of `HMTConfig` to change, such as `mode="rmt"`.
        """
        config = HMTConfig.from_dict(self.config.to_dict() | config_fields)
        config.backbone_config = self.config.backbone_config
        variant = type(self)(config, backbone=self.backbone)
        shared = dict(self.memory.named_parameters()) | dict(self.memory.named_buffers())
        own = [*variant.memory.named_parameters(), *variant.memory.named_buffers()]
        usable = [name for name, tensor in own if name in shared and shared[name].shape == tensor.shape]
        if len(usable) < len(own):
            variant.initialise_memory()
        for name in usable:
            owner, _, leaf = name.rpartition(".")
            setattr(variant.memory.get_submodule(owner), leaf, shared[name])
        if all(getattr(config, name) == getattr(self.config, name) for name in AUTOENCODER_FIELDS):
            variant.autoencoder = self.autoencoder  # one error, whichever of them reads
        variant.checkpoint_segments = self.checkpoint_segments
        variant.compiled = self.compiled
        return variant.train(self.training)

    def compile_reading(self) -> None:
        """Compile the body for whole segments, with the weights it has now; the first segments take long.

        Reading then gives what it gives without, to the rounding of other kernels. Training and writing stay as they
        are.
        """
        self.compiled = CompiledBody(self.backbone)

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's token embeddings."""
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the backbone's token embeddings."""
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The backbone's language-model head."""
        return self.backbone.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the backbone's language-model head."""
        self.backbone.set_output_embeddings(new_embeddings)

    @property
    def embedding_table(self) -> Tensor:
        """Weights of the token embeddings, (V, D)."""
        table = self.get_input_embeddings().weight
        assert isinstance(table, Tensor)
        return table

    def identity(self, with_weights: bool = True) -> ModelIdentity:
        """Which model this is, as a memory notes it; the weights' digest is always left out while training."""
        on = {name for name in MEMORY_FIELDS if name not in SWITCHES or getattr(self.config, SWITCHES[name])}
        shaping = sorted(on - FREE_FIELDS)
        settings = ", ".join(f"{name}={getattr(self.config, name)}" for name in shaping)
        # Policy and copying may change from call to call, so what they learnt is not a part of the identity.
        weights = (p for name, p in self.named_parameters() if not name.startswith(CHANGEABLE))
        return ModelIdentity(
            name=self.config.backbone_source or type(self.backbone).__name__,
            width=embedding_size(self.backbone.config),
            settings=settings,
            weights=weights_digest(weights) if with_weights and not self.training else "",
        )

    def initial_state(self, batch_size: int = 1) -> MemoryState:
        """The state before the first token of `batch_size` texts."""
        weight = self.embedding_table
        return MemoryState.initial(
            batch_size,
            bank_width=weight.shape[1] if self.config.prompt_tokens else 0,
            longest_segment=self.config.longest_segment,
            tail_tokens=self.config.tail_tokens,
            model=self.identity(),
            device=weight.device,
            dtype=weight.dtype,
        )

    def segment_tokens(self, state: MemoryState) -> Tensor:
        """Fresh tokens of the segment at hand in each row, (B,) int64: more where it is read fast."""
        return self.config.fresh_tokens + self.config.speed_tokens * state.fast.long()

    def query_tokens(self, state: MemoryState) -> Tensor:
        """Fresh tokens that the query of the segment at hand reads in each row, (B,) int64."""
        more = self.config.longest_summary - self.config.summary_tokens
        return self.config.summary_tokens + more * state.fast.long()

    def start_state(self, memory: MemoryState | None, batch_size: int) -> MemoryState:
        """Where a call starts: a memory that was given, on this model's device, or the state before the first token.

        Raises:
            ValueError: If the memory is another model's or of another batch; names both sides.
        """
        if memory is None:
            return self.initial_state(batch_size)
        self._check_state(memory, batch_size, self.identity())
        device = self.embedding_table.device
        return memory if memory.tokens_read.device == device else memory.to(device)

    def _check_state(self, state: MemoryState, batch_size: int, own: ModelIdentity) -> None:
        if not own.accepts(state.model):
            raise ValueError(f"this memory was written by {state.model}, but the model reading it is {own}")
        if state.batch_size != batch_size:
            raise ValueError(f"memory holds {state.batch_size} row(s), input_ids has {batch_size}")
