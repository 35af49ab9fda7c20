"""The curriculum: which parameters are trained, in which stages, at which learning rates.

Stage 1 reads two segments with the last memory embedding only, stage 2 longer samples with recall, as in HMT
(arXiv:2405.06067, section 4). Both train the same parameters; each has its own optimizer and schedule.
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

DECAY_STEPS = 100
"""Optimizer steps between two decays of the step schedule."""


@dataclass(frozen=True)
class Stage:
    """One stage: the memory's mode, the segments of a sample, and the number of optimizer steps."""

    name: str
    mode: str
    segments: int
    steps: int

    def variant(self, model: HMTForCausalLM) -> HMTForCausalLM:
        """Return the model in the mode of this stage, sharing its weights."""
        return model if self.mode == model.config.mode else model.variant(mode=self.mode)

    def sample_tokens(self, model: HMTForCausalLM) -> int:
        """Return the number of tokens in a sample of this stage."""
        return self.segments * self.variant(model).config.fresh_tokens


def curriculum(options: TrainOptions) -> list[Stage]:
    """Choose the stages; a model without embedding recall has one."""
    stage_1 = Stage("1", "short_term", STAGE_1_SEGMENTS, options.stage_1_step)
    stage_2 = Stage("2", options.mode, options.bptt_depth, options.training_step)
    if options.hmt_stage_1:
        return [Stage("1", "short_term", STAGE_1_SEGMENTS, options.training_step)]
    recalls_only = options.hmt_stage_2 or options.train_memory_map
    if recalls_only or not options.recalls or not options.stage_1_step:
        return [stage_2]
    return [stage_1, stage_2]


def choose_trained_parts(model: HMTForCausalLM, options: TrainOptions) -> None:
    """Freeze the backbone, adapt it, or train all of it; or train only the map between two reading speeds."""
    if options.train_memory_map:
        model.requires_grad_(False)
        model.extensions["dynamic_reading"].requires_grad_(True)
        return
    if options.train_backbone:
        model.requires_grad_(True)
        return
    if options.use_lora and model.has_adapter:
        logger.info("continuing with the checkpoint's LoRA adapter and its settings")
    elif options.use_lora:
        model.add_lora(options.lora_rank, options.lora_alpha, options.lora_dropout, options.adapted_layers)
    for name, parameter in model.backbone.named_parameters():
        parameter.requires_grad_(options.use_lora and "lora_" in name)


def parameter_groups(model: HMTForCausalLM, options: TrainOptions) -> list[dict[str, Any]]:
    """Group the trained parameters of the memory and of the backbone, each with its learning rate.

    Raises:
        ValueError: If there is nothing to train.
    """
    memory = (*model.memory.parameters(), *model.extensions.parameters())
    groups: list[dict[str, Any]] = [
        {"name": "memory", "params": memory, "lr": options.memory_learning_rate},
        {"name": "backbone", "params": model.backbone.parameters(), "lr": options.learning_rate},
    ]
    for group in groups:
        group["params"] = [parameter for parameter in group["params"] if parameter.requires_grad]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError(
            "nothing to train: this memory has no parameters; give --num_memory_tokens 1 or more, --use_lora or "
            "--train_backbone"
        )
    return groups


def learning_rate_schedule(optimizer: torch.optim.Optimizer, options: TrainOptions, steps: int) -> LambdaLR:
    """Build the schedule of a stage from its number of optimizer steps: linear warmup, then decay."""

    def factor(step: int) -> float:
        warmup = min((step + 1) / (options.warmup_step + 1), 1.0)
        if not options.lr_decay:
            return warmup
        if options.lr_schedule == "step":
            return warmup * options.lr_decay_gamma ** (step // DECAY_STEPS)
        return warmup * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))

    return LambdaLR(optimizer, factor)


@dataclass(frozen=True)
class PartSizes:
    """Numbers of parameters."""

    backbone: int
    adapter: int
    memory: int

    @classmethod
    def of(cls, model: HMTForCausalLM) -> PartSizes:
        """Count the parameters of a model."""
        total = sum(parameter.numel() for parameter in model.backbone.parameters())
        adapter = sum(p.numel() for name, p in model.backbone.named_parameters() if "lora_" in name)
        memory = sum(p.numel() for p in (*model.memory.parameters(), *model.extensions.parameters()))
        return cls(total - adapter, adapter, memory)

    @property
    def memory_percent(self) -> float:
        """Parameters of the memory in percent of the backbone's."""
        return 100 * self.memory / self.backbone

    def __str__(self) -> str:
        parts = [f"memory {self.memory:,} ({self.memory_percent:.2f}% of the backbone)"]
        if self.adapter:
            parts.append(f"adapter {self.adapter:,} ({100 * self.adapter / self.backbone:.2f}%)")
        return ", ".join([*parts, f"backbone {self.backbone:,}"])
