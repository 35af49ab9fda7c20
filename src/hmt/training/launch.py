"""The engines a run may be launched on, through Accelerate: one process, DDP, DeepSpeed.

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
from torch import nn

from hmt.options import TrainOptions
from hmt.training.watch import check_trackers

logger = logging.getLogger(__name__)

ENGINE_FOLDER = "engine"


def make_accelerator(options: TrainOptions, device: torch.device) -> Accelerator:
    """The accelerator of a run, on the model's device where there is one process.

    Raises:
        ImportError: If the launcher asks for DeepSpeed and it is not installed; names the extra.
        ValueError: If the processes that were launched do not see each other.
    """
    precision: str | None = None if options.mixed_precision == "no" else options.mixed_precision
    if precision == "fp16" and device.type == "cpu":
        logger.warning("float16 cannot be computed with on a CPU: using bfloat16 instead")
        precision = "bf16"
    on_cpu = device.type == "cpu"
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    handlers = [_deepspeed_on_cpu()] if deepspeed and on_cpu else []
    accelerator = Accelerator(
        mixed_precision=precision,
        cpu=on_cpu and not deepspeed,  # Accelerate takes a run on a CPU for one without DeepSpeed
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        kwargs_handlers=handlers,
        log_with=check_trackers(options) or None,
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
        config["gradient_clipping"] = options.max_grad_norm
    return accelerator


def _deepspeed_on_cpu() -> InitProcessGroupKwargs:
    """Let processes without accelerators talk through gloo, and compile nothing for it."""
    try:
        import deepspeed.ops
    except ImportError as error:
        raise ImportError("DeepSpeed is not installed, the extra deepspeed: pip install deepspeed") from error
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return InitProcessGroupKwargs(backend="gloo")


def uses_deepspeed(accelerator: Accelerator) -> bool:
    """Whether DeepSpeed takes the steps."""
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def save_engine(accelerator: Accelerator, prepared: nn.Module, checkpoint: Path) -> Path | None:
    """Let all processes of an engine that spreads its optimizer write their parts, beside the checkpoint.

    Returns:
        The directory with the parts, to be moved into the checkpoint; None where one process has everything.
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
    """Bring an engine back to where `save_engine` wrote its parts; False where there are none."""
    parts = checkpoint / "training" / ENGINE_FOLDER
    if not uses_deepspeed(accelerator) or not parts.is_dir():
        return False
    engine: Any = prepared
    engine.load_checkpoint(str(parts), tag=ENGINE_FOLDER)
    return True
