"""The floor under a time: the matrix products that are needed, over the rate at which this machine multiplies.

Shape legend: M positions of a window, L fresh tokens per segment, J query tokens, R memory embeddings per segment,
N bank slots, D embedding size, H recall width, V vocabulary.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hmt.config import MemoryConfig
from hmt.memory.recall import GatedInjection
from hmt.model.backbone import embedding_size
from hmt.model.modeling_hmt import HMTForCausalLM

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""How configs name experts, of which a token passes through some only."""


@dataclass(frozen=True)
class BackboneCost:
    """Floating-point operations of a backbone's matrix products; a multiplication and an addition are two.

    Attributes:
        position: Of the body's linear layers, for each position.
        pair: Of attention, for each pair of a query and a key, all layers together.
        head: Of the language-model head, for each position.
    """

    position: int
    pair: int
    head: int

    @classmethod
    def of(cls, backbone: PreTrainedModel) -> BackboneCost | None:
        """From the sizes of the layers; None where not every layer is passed (experts)."""
        config = backbone.config.get_text_config(decoder=True)
        if any(getattr(config, name, None) for name in EXPERTS):
            return None
        weights = [
            module.weight.numel()
            for module in backbone.base_model.modules()
            if isinstance(module, nn.Linear | Conv1D) and module.weight is not None
        ]
        heads = getattr(config, "num_attention_heads", None) or 0
        width = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
        table = backbone.get_output_embeddings().weight
        return cls(position=2 * sum(weights), pair=4 * heads * width * config.num_hidden_layers, head=2 * table.numel())

    def body(self, positions: int, before: int = 0) -> int:
        """Of so many positions after others that are cached; a position attends to those before it and to itself."""
        return self.position * positions + self.pair * (positions * before + positions * (positions + 1) // 2)


def reading_flops(model: HMTForCausalLM, length: int) -> int | None:
    """Operations that `remember` needs for a text of so many tokens: windows, summaries, recall, prompts; no head.

    With reread the unfinished segment at the end is left unread, the first segment asks nothing, and a mode without
    memory embeddings reads nothing: it keeps tokens.

    Args:
        model: Reads.
        length: Of the text.

    Returns:
        Floating-point operations, or None where they cannot be told.
    """
    cost, config = BackboneCost.of(model.backbone), model.config
    if cost is None:
        return None
    if config.rolling:
        held = config.sinks + config.sensory_tokens
        full = max(length - held, 0)
        total = cost.body(min(length, held)) + cost.position * full + cost.pair * full * (held + 1)
        segments = length // config.fresh_tokens if config.prompt_tokens else 0
        total += segments * 2 * config.prompt_tokens * (cost.position + cost.pair * (held + 1))
    else:
        segments = length // config.fresh_tokens if config.prompt_tokens else 0
        first = config.window - config.sensory_tokens
        total = sum(cost.body(config.window if number else first) for number in range(segments))
    for number in range(segments):
        total += _injection_flops(model, bool(number))
        if number and config.recalls:
            slots = min(number * config.segment_slots, config.capacity)
            total += cost.body(summary_positions(config)) + recall_flops(model, slots)
    return total


def summary_positions(config: MemoryConfig) -> int:
    """Positions of a whole segment's summary, J + 2R."""
    return config.summary_tokens + 2 * config.prompt_tokens


def recall_flops(model: HMTForCausalLM, slots: int) -> int:
    """Of asking a bank of so many slots: 4RDH for the two projections, 4RND for scores and mixture."""
    tokens, width = model.config.prompt_tokens, embedding_size(model.backbone.config)
    return 4 * tokens * width * (model.config.mem_recall_hidden_dim + slots)


def _injection_flops(model: HMTForCausalLM, recalled: bool) -> int:
    """Of making prompts from what was recalled: a projection, where it is gated."""
    if not recalled or not isinstance(model.memory.injection, GatedInjection):
        return 0
    return 2 * model.config.prompt_tokens * embedding_size(model.backbone.config) ** 2


def full_flops(backbone: PreTrainedModel, length: int) -> int | None:
    """Operations that reading a text with full attention needs; None where they cannot be told."""
    cost = BackboneCost.of(backbone)
    return None if cost is None else cost.body(length)


@torch.no_grad()
def matmul_rate(device: torch.device, dtype: torch.dtype, size: int | None = None, rounds: int = 5) -> float:
    """Floating-point operations a second of a square matrix product on this machine, the best of several rounds.

    Args:
        device: Where to multiply.
        dtype: Of the matrices.
        size: Rows and columns; by default 1,024, on accelerators 8,192.
        rounds: How often it is measured.
    """
    size = size or (1024 if device.type == "cpu" else 8192)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(rounds + 1):  # the first warms up
        started = time.perf_counter()
        product = left @ right
        product[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
