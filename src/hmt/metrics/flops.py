"""Matrix products that reading needs, counted from sizes, and the rate at which this machine multiplies.

Shape legend: M positions of a window, L fresh tokens per segment, J query tokens, R memory embeddings per segment,
N bank slots, D embedding size, H recall width.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hmt.memory.recall import GatedInjection
from hmt.model.backbone import embedding_size
from hmt.model.modeling_hmt import HMTForCausalLM

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""Names that configs give to the number of experts, of which a token passes through some only."""


@dataclass(frozen=True)
class BackboneCost:
    """Floating-point operations of a backbone's matrix products; a multiplication and an addition are two.

    Attributes:
        position: Linear layers of the body, for each position.
        pair: Attention, for each pair of a query and a key, all layers together.
        head: Language-model head, for each position.
        cache_bytes: Bytes of keys and values of one position, all layers together.
    """

    position: int
    pair: int
    head: int
    cache_bytes: int

    @classmethod
    def of(cls, backbone: PreTrainedModel) -> BackboneCost | None:
        """Count from the sizes of the layers; None where a token does not pass through every layer (experts)."""
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
        key_heads = getattr(config, "num_key_value_heads", None) or heads
        table = backbone.get_output_embeddings().weight
        return cls(
            position=2 * sum(weights),
            pair=4 * heads * width * config.num_hidden_layers,
            head=2 * table.numel(),
            cache_bytes=2 * key_heads * width * config.num_hidden_layers * table.element_size(),
        )

    def body(self, positions: int) -> int:
        """Return the operations of a window of so many positions; each attends to those before it and to itself."""
        return self.position * positions + self.pair * (positions * (positions + 1) // 2)


def reading_flops(model: HMTForCausalLM, length: int, scored: bool = False) -> int | None:
    """Count the operations of the body for a text of so many tokens: windows, summaries, recall, prompts.

    Without memory embeddings, and in the unfinished segment at the end, a model with re-encoded sensory tokens
    remembers token ids alone: it reads them only to score them.

    Args:
        model: The memory and its backbone.
        length: Tokens of the text.
        scored: The text is scored, and not just remembered.

    Returns:
        Floating-point operations, or None where they cannot be counted.
    """
    cost, config = BackboneCost.of(model.backbone), model.config
    if cost is None:
        return None
    segments, rest = divmod(length, config.fresh_tokens)
    if config.rolling:
        segments = segments if config.prompt_tokens else 0
        held = config.sinks + config.sensory_tokens
        full = max(length - held, 0)
        total = cost.body(min(length, held)) + full * (cost.position + cost.pair * (held + 1))
        total += segments * 2 * config.prompt_tokens * (cost.position + cost.pair * (held + 1))
    else:
        segments = segments if config.prompt_tokens or scored else 0
        first = config.window - config.sensory_tokens
        total = sum(cost.body(config.window if number else first) for number in range(segments))
        if scored and rest:
            total += cost.body((config.window if segments else first) - config.fresh_tokens + rest)
    return total + sum(_prompt_flops(model, cost, number) for number in range(1, segments))


def scoring_flops(model: HMTForCausalLM, length: int) -> float | None:
    """Return the operations per token of a text of so many tokens when each is predicted: body and head."""
    cost, total = BackboneCost.of(model.backbone), reading_flops(model, length, scored=True)
    return None if cost is None or total is None else total / length + cost.head


def _prompt_flops(model: HMTForCausalLM, cost: BackboneCost, segment: int) -> int:
    """Operations of the memory prompt of a segment: its summary, recall from the bank, and injection."""
    config, width = model.config, embedding_size(model.backbone.config)
    total = 0
    if config.prompt_tokens and isinstance(model.memory.injection, GatedInjection):
        total += 2 * config.prompt_tokens * width**2
    if config.recalls:
        slots = min(segment * config.segment_slots, config.capacity)
        # Two projections to width H for each of the R queries, then scores and mixture over N slots.
        total += 4 * config.prompt_tokens * width * (config.mem_recall_hidden_dim + slots)
        total += cost.body(config.summary_tokens + 2 * config.prompt_tokens)
    return total


def full_flops(backbone: PreTrainedModel, length: int) -> int | None:
    """Return the operations of reading a text with full attention; None where they cannot be counted."""
    cost = BackboneCost.of(backbone)
    return None if cost is None else cost.body(length)


@torch.no_grad()
def matmul_rate(device: torch.device, dtype: torch.dtype, size: int | None = None, rounds: int = 5) -> float:
    """Return the floating-point operations per second of a square matrix product here, the best of several rounds.

    Args:
        device: Device that multiplies.
        dtype: Number format of the matrices.
        size: Rows and columns; by default 1,024, on accelerators 8,192.
        rounds: Number of products that are timed.
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
