"""Engines that a run can be launched on, through Accelerate: one process, DDP, FSDP2, DeepSpeed.

The launcher decides (`accelerate launch --config_file ...`, `torchrun`); configs/accelerate has a file for each.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from hmt.training.curriculum import Stage
from hmt.training.options import TrainOptions
from hmt.training.progress import FOLDER
from hmt.training.record import check_trackers

logger = logging.getLogger(__name__)

ENGINE_FOLDER = "engine"


def make_accelerator(options: TrainOptions, device: torch.device) -> Accelerator:
    """Build the accelerator of a run.

    Args:
        options: Options of the run.
        device: Device of the model.

    Raises:
        ImportError: If DeepSpeed or a tracker is not installed; names the extra or package.
        ValueError: If the launched processes do not see each other.
    """
    check_trackers(options)
    precision: str | None = None if options.mixed_precision == "auto" else options.mixed_precision
    on_cpu = device.type == "cpu"
    if precision == "fp16" and on_cpu:
        logger.warning("mixed precision in float16 needs an accelerator: using bfloat16")
        precision = "bf16"
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    # What a launcher has put there goes over the argument, and DeepSpeed divides by it.
    os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = str(options.gradient_accumulation_steps)
    accelerator = Accelerator(
        mixed_precision=precision,
        cpu=on_cpu and not deepspeed,  # Accelerate would switch DeepSpeed off
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        kwargs_handlers=[_deepspeed_on_cpu()] if deepspeed and on_cpu else [],
        log_with=options.trackers or None,
        project_dir=options.record if options.trackers else None,
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise ValueError(
            f"{launched} processes were launched, but each sees {accelerator.num_processes}: they would train apart; "
            "on a CPU launch with ACCELERATE_USE_CPU=true and --multi_gpu, or with torchrun"
        )
    if uses_deepspeed(accelerator):
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config["train_micro_batch_size_per_gpu"] = options.batch_size
        config["gradient_accumulation_steps"] = options.gradient_accumulation_steps
        config["gradient_clipping"] = options.max_grad_norm
    return accelerator


def _deepspeed_on_cpu() -> InitProcessGroupKwargs:
    """Make DeepSpeed communicate through gloo, without compiling an extension for it."""
    try:
        import deepspeed.ops
    except ImportError as error:
        raise ImportError("DeepSpeed is not installed, the extra deepspeed: pip install deepspeed") from error
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return InitProcessGroupKwargs(backend="gloo")


def uses_deepspeed(accelerator: Accelerator) -> bool:
    """True if DeepSpeed takes the optimizer steps."""
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def is_sharded(model: nn.Module) -> bool:
    """True if each process holds only a part of every parameter."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def check_stages(accelerator: Accelerator, options: TrainOptions, stages: list[Stage], mode: str) -> None:
    """Refuse stages that the engine cannot train.

    Args:
        accelerator: Accelerator of the run.
        options: Options of the run.
        stages: Stages of the run.
        mode: Mode of the model.

    Raises:
        ValueError: If the engine needs other flags; names them.
    """
    if uses_deepspeed(accelerator) and len(stages) > 1:
        raise ValueError(
            "DeepSpeed trains one stage per command: give --hmt_stage_1, then --hmt_stage_2 with --load_from_ckpt"
        )
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    if len(stages) > 1 or stages[0].mode != mode:
        raise ValueError("FSDP trains one mode per command: give --mode short_term for stage 1, then --hmt_stage_2")
    if options.save_every or options.resume:
        raise ValueError("FSDP saves a run at its end only: give neither --save_every nor --resume")


def gathered(accelerator: Accelerator, model: nn.Module) -> dict[str, Tensor] | None:
    """Gather the whole weights of a sharded model; None if it is not sharded. All processes must call it together."""
    if not is_sharded(model):
        return None
    weights: Any = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    accelerator.wait_for_everyone()
    return weights


def save_engine(accelerator: Accelerator, prepared: nn.Module, checkpoint: Path) -> Path | None:
    """Let every process write its part of DeepSpeed's state into a directory beside the checkpoint.

    Returns:
        The directory, to be moved into the checkpoint; None with another engine.
    """
    if not uses_deepspeed(accelerator):
        return None
    engine: Any = prepared
    aside = checkpoint.with_name(f".{checkpoint.name}.{ENGINE_FOLDER}")
    if accelerator.is_main_process:
        shutil.rmtree(aside, ignore_errors=True)
    accelerator.wait_for_everyone()
    engine.save_checkpoint(str(aside), tag=ENGINE_FOLDER)
    accelerator.wait_for_everyone()
    return aside


def load_engine(accelerator: Accelerator, prepared: nn.Module, checkpoint: Path) -> bool:
    """Restore the state that `save_engine` wrote; False if there is none."""
    parts = checkpoint / FOLDER / ENGINE_FOLDER
    if not uses_deepspeed(accelerator) or not parts.is_dir():
        return False
    engine: Any = prepared
    engine.load_checkpoint(str(parts), tag=ENGINE_FOLDER)
    return True
