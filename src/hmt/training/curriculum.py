"""What is trained, in which stages, at which learning rates.

Stage 1 reads two segments with the last memory embedding only, stage 2 longer samples with recall, as in HMT
(arXiv:2405.06067, section 4). Both train the same parameters, so a run is one model read in two ways. Each stage has an
optimizer and a schedule of its own, as if it were a command of its own.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.training.options import TrainOptions

logger = logging.getLogger(__name__)

STAGE_1_SEGMENTS = 2


@dataclass(frozen=True)
class Stage:
    """One part of the curriculum: how the model reads, how many segments a sample has, and for how many steps."""

    name: str
    mode: str
    segments: int
    steps: int

    def reader(self, model: HMTForCausalLM) -> HMTForCausalLM:
        """The model as this stage reads it; the weights are shared."""
        return model if self.mode == model.config.mode else model.variant(mode=self.mode)


def curriculum(options: TrainOptions) -> list[Stage]:
    """The stages that the options ask for. A model that recalls no embeddings has only one way of reading."""
    stage_1 = Stage("1", "short_term", STAGE_1_SEGMENTS, options.stage_1_step)
    stage_2 = Stage("2", options.mode, options.bptt_depth, options.training_step)
    if options.hmt_stage_1:
        return [Stage("1", "short_term", STAGE_1_SEGMENTS, options.training_step)]
    recalls_only = options.hmt_stage_2 or options.train_memory_map
    if recalls_only or not options.recalls or not options.stage_1_step:
        return [stage_2]
    return [stage_1, stage_2]


def choose_trained_parts(model: HMTForCausalLM, options: TrainOptions) -> None:
    """Freeze the backbone, adapt it, or train it whole; or train the map between two reading speeds alone."""
    if options.train_memory_map:
        model.requires_grad_(False)
        model.extensions["dynamic_reading"].requires_grad_(True)
        return
    if options.train_backbone:
        model.requires_grad_(True)
        return
    if options.use_lora and model.has_adapter:
        logger.info("the checkpoint's own adapter is trained on: every --lora_ setting is its")
    elif options.use_lora:
        model.add_lora(options.lora_rank, options.lora_alpha, options.lora_dropout, options.adapted_layers)
    for name, parameter in model.backbone.named_parameters():
        parameter.requires_grad_(options.use_lora and "lora_" in name)


def parameter_groups(model: HMTForCausalLM, options: TrainOptions) -> list[dict[str, Any]]:
    """The memory's parameters and the backbone's, each with its learning rate.

    Raises:
        ValueError: If there is nothing to train.
    """
    learned = (*model.memory.parameters(), *model.extensions.parameters())
    memory = [parameter for parameter in learned if parameter.requires_grad]
    backbone = [parameter for parameter in model.backbone.parameters() if parameter.requires_grad]
    groups = [
        {"name": "memory", "params": memory, "lr": options.memory_learning_rate},
        {"name": "backbone", "params": backbone, "lr": options.learning_rate},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError(
            "nothing to train: this memory has no parameters; give --num_memory_tokens 1 or more, --use_lora or "
            "--train_backbone"
        )
    return groups


def learning_rate_schedule(optimizer: torch.optim.Optimizer, options: TrainOptions, steps: int) -> LambdaLR:
    """The learning rates of a stage of so many optimizer steps: a rise, then a fall."""
    kind = options.lr_schedule if options.lr_decay else "constant"

    def factor(step: int) -> float:
        rise = min((step + 1) / (options.warmup_step + 1), 1.0)
        if kind == "step":
            return rise * options.lr_decay_gamma ** (step // options.lr_decay_step)
        if kind == "cosine":
            return rise * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))
        return rise

    return LambdaLR(optimizer, factor)


@dataclass(frozen=True)
class PartSizes:
    """How many parameters each part of a model has."""

    backbone: int
    adapter: int
    memory: int

    @classmethod
    def of(cls, model: HMTForCausalLM) -> PartSizes:
        """The sizes of a model's parts."""
        backbone = [(name, parameter.numel()) for name, parameter in model.backbone.named_parameters()]
        adapter = sum(count for name, count in backbone if "lora_" in name)
        memory = sum(p.numel() for p in (*model.memory.parameters(), *model.extensions.parameters()))
        return cls(sum(count for _, count in backbone) - adapter, adapter, memory)

    @property
    def memory_percent(self) -> float:
        """What the memory adds, in percent of the backbone."""
        return 100 * self.memory / self.backbone


def describe_parts(model: HMTForCausalLM) -> str:
    """One line: what is trained, and what the memory adds to the backbone."""
    sizes = PartSizes.of(model)
    trained = sum(p.numel() for p in model.backbone.parameters() if p.requires_grad)
    parts = [f"memory {sizes.memory:,} ({sizes.memory_percent:.2f}% of the backbone)"]
    if sizes.adapter:
        parts.append(f"adapter {sizes.adapter:,} ({100 * sizes.adapter / sizes.backbone:.2f}%)")
    parts.append(f"backbone {sizes.backbone:,}{'' if trained > sizes.adapter else ', frozen'}")
    return f"parameters: {', '.join(parts)}"
