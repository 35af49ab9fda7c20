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
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from hmt.report import check_installed
from hmt.training.options import TrainOptions
from hmt.training.watch import check_trackers

logger = logging.getLogger(__name__)

ENGINE_FOLDER = "engine"


def make_accelerator(options: TrainOptions, device: torch.device) -> Accelerator:
    """The accelerator of a run, on the model's device where there is one process.

    Raises:
        ImportError: If the launcher asks for DeepSpeed and it is not installed; names the extra.
        ValueError: If the processes that were launched do not see each other.
    """
    precision: str | None = None if options.mixed_precision == "auto" else options.mixed_precision
    if precision == "fp16" and device.type == "cpu":
        logger.warning("float16 cannot be computed with on a CPU: using bfloat16 instead")
        precision = "bf16"
    on_cpu = device.type == "cpu"
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    handlers = [_deepspeed_on_cpu()] if deepspeed and on_cpu else []
    # What a launcher has put there goes over the argument, and DeepSpeed divides by it.
    os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = str(options.gradient_accumulation_steps)
    accelerator = Accelerator(
        mixed_precision=precision,
        cpu=on_cpu and not deepspeed,  # Accelerate takes a run on a CPU for one without DeepSpeed
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        kwargs_handlers=handlers,
        log_with=check_trackers(options) or None,
        project_dir=options.record if options.trackers else None,
    )
    if options.plot_hist:
        check_installed()
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


def is_cut_up(model: nn.Module) -> bool:
    """Whether each process holds only a part of every parameter, so that all must act together to read."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def check_stages(accelerator: Accelerator, options: TrainOptions, stages: int, changes_model: bool) -> None:
    """Make sure that an engine can train these stages.

    Args:
        accelerator: Of the run.
        options: Of the run.
        stages: How many.
        changes_model: Whether one of them reads in another mode than the model is saved in.

    Raises:
        ValueError: If it cannot; says what to do.
    """
    if uses_deepspeed(accelerator) and stages > 1:
        raise ValueError(
            "DeepSpeed trains one stage a command: give --hmt_stage_1, then --hmt_stage_2 with --load_from_ckpt"
        )
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    if stages > 1 or changes_model:
        raise ValueError("FSDP trains the model as it is saved: give --mode short_term for stage 1, --hmt_stage_2 then")
    if options.save_every or options.resume or options.patience:
        raise ValueError("with FSDP a run is saved at its end: no --save_every, --resume or --patience yet")


def gathered(accelerator: Accelerator, model: nn.Module) -> dict[str, Tensor] | None:
    """Whole weights of a model whose parameters are cut up over the processes; None where they are not.

    All processes must call it together.
    """
    if not is_cut_up(model):
        return None
    weights: Any = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    accelerator.wait_for_everyone()
    return weights


def save_engine(accelerator: Accelerator, prepared: nn.Module, checkpoint: Path) -> Path | None:
    """Let all processes of an engine that spreads its optimizer write their parts, beside the checkpoint.

    Returns:
        The directory with the parts, to be moved into the checkpoint; None where one process has everything.

    Raises:
        OSError: In all processes, if one has no room for its part.
    """
    if not uses_deepspeed(accelerator):
        return None
    engine: Any = prepared
    aside = checkpoint.with_name(f".{checkpoint.name}.{ENGINE_FOLDER}")
    if accelerator.is_main_process:
        shutil.rmtree(aside, ignore_errors=True)
    accelerator.wait_for_everyone()
    # A process that failed while it writes would leave the others waiting for it: so they ask before.
    missing = torch.tensor(float(_missing_bytes(prepared, aside.parent)), device=accelerator.device)
    if (total := int(accelerator.reduce(missing, reduction="sum"))) > 0:
        raise OSError(f"no room for the optimizer's parts in {aside.parent}: {total / 1e6:,.0f} MB are missing")
    engine.save_checkpoint(str(aside), tag=ENGINE_FOLDER)
    accelerator.wait_for_everyone()
    return aside


def _missing_bytes(model: nn.Module, folder: Path) -> int:
    """Bytes that a directory lacks for the weights, a float32 copy of what is trained and its two moments."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return max(weights + 3 * 4 * trained - shutil.disk_usage(folder).free, 0)


def load_engine(accelerator: Accelerator, prepared: nn.Module, checkpoint: Path) -> bool:
    """Bring an engine back to where `save_engine` wrote its parts; False where there are none."""
    parts = checkpoint / "training" / ENGINE_FOLDER
    if not uses_deepspeed(accelerator) or not parts.is_dir():
        return False
    engine: Any = prepared
    engine.load_checkpoint(str(parts), tag=ENGINE_FOLDER)
    return True
