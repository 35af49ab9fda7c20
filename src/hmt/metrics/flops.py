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
from hmt.model.base import MemoryModel

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


def reading_flops(model: MemoryModel, length: int) -> int | None:
    """What `remember` needs for a text of so many tokens: windows and summaries, recall and prompts; no head.

    The unfinished segment at the end is left unread, as `remember` leaves it; the first segment asks nothing. A mode
    without memory embeddings reads nothing: it keeps tokens.

    Args:
        model: Reads.
        length: Of the text.

    Returns:
        Floating-point operations, or None where they cannot be told.
    """
    cost, config = BackboneCost.of(model.backbone), model.config
    if cost is None:
        return None
    segments = length // config.fresh_tokens if config.prompt_tokens else 0
    first = config.segment_length - config.max_sensory - config.recalled_tokens
    total = 0
    for number in range(segments):
        total += cost.body(config.segment_length if number else first) + _injection_flops(model, bool(number))
        if number and config.recalls:
            slots = min(number * config.segment_slots, config.capacity)
            total += cost.body(summary_positions(config)) + recall_flops(model, slots)
    return total


def summary_positions(config: MemoryConfig) -> int:
    """Positions of a whole segment's summary, J + 2R."""
    return config.summary_tokens + 2 * config.prompt_tokens


def recall_flops(model: MemoryModel, slots: int) -> int:
    """Of asking a bank of so many slots: 4RDH for the two projections, 4RND for scores and mixture."""
    tokens, width = model.config.prompt_tokens, embedding_size(model.backbone.config)
    return 4 * tokens * width * (model.config.mem_recall_hidden_dim + slots)


def _injection_flops(model: MemoryModel, recalled: bool) -> int:
    """Of making prompts from what was recalled: a projection, where it is gated."""
    if not recalled or not isinstance(model.memory.injection, GatedInjection):
        return 0
    return 2 * model.config.prompt_tokens * embedding_size(model.backbone.config) ** 2


def cached_flops(backbone: PreTrainedModel, length: int, window: int | None, part_tokens: int) -> int | None:
    """What reading a text onto a cache needs, with each token seeing what `CachedText` lets it see.

    Args:
        backbone: Reads.
        length: Of the text.
        window: Tokens that the cache holds, or None for all.
        part_tokens: Tokens read at one time.

    Returns:
        Floating-point operations, or None where they cannot be told.
    """
    cost = BackboneCost.of(backbone)
    if cost is None:
        return None
    total = held = 0
    for start in range(0, length, part_tokens):
        new = min(part_tokens, length - start)
        before = held if window is None else min(held, window - new)
        total += cost.body(new, before)
        held = before + new
    return total


@torch.no_grad()
def matmul_rate(device: torch.device, dtype: torch.dtype, size: int | None = None, rounds: int = 5) -> float:
    """Floating-point operations a second of a square matrix product on this machine, the best of several rounds.

    Args:
        device: Where to multiply.
        dtype: Of the matrices.
        size: Rows and columns; by default 2,048, on accelerators 8,192.
        rounds: How often it is measured.
    """
    size = size or (2048 if device.type == "cpu" else 8192)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(rounds + 1):  # the first warms up
        started = time.perf_counter()
        product = left @ right
        product[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
