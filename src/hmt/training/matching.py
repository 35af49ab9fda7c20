"""A baseline with the training budget of a memory: as many tokens of the same texts, about as many parameters.

A trained memory has seen the text of the task, so what it is compared with should have seen it too.
"""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from hmt.config import memory_fields
from hmt.files import read_settings
from hmt.model.configuration_hmt import HMTConfig
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.pretrained import checkpoint_settings
from hmt.training.options import RunOptions, TrainOptions
from hmt.training.progress import FOLDER

MODES = ("backbone", "rmt", "short_term")
"""Modes that a baseline can be trained in."""

SAVE_EVERY_STEPS = 100

OWN = {field.name for field in fields(RunOptions)} | {
    "cache_dir", "compile", "device", "hub_map", "json", "load_from_ckpt", "match_budget",
}  # fmt: skip
"""Options of a run that its baseline does not take over."""


def matched_settings(checkpoint: str, mode: str) -> dict[str, Any]:
    """Choose options of `hmt train` that give a baseline the budget of a checkpoint.

    Texts, their order, segments per sample, batch and schedule are those of the checkpoint's run; training ends after
    as many tokens. If the backbone was trained or had an adapter, so it is here; if only the memory was trained, mode
    backbone gets an adapter with about as many parameters, at the memory's learning rate.

    Args:
        checkpoint: Directory of the checkpoint.
        mode: Mode of the baseline: backbone, rmt or short_term.

    Raises:
        ValueError: If a baseline cannot be trained in that mode.
        OSError: If the directory does not say how the checkpoint was trained.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)} with --match_budget, got {mode}")
    runs = _runs(checkpoint)
    last, first = runs[0]["options"], runs[-1]["options"]
    known = {field.name for field in fields(TrainOptions)} - OWN
    settings = {name: value for name, value in last.items() if name in known}
    settings |= _backbone(checkpoint, first) | {
        "mode": mode,
        "ngram_cache": 0,
        "hmt_stage_1": False,
        "hmt_stage_2": False,
        "train_memory_map": False,
        "max_tokens": sum(run["progress"]["tokens"] for run in runs),
        "save_ckpt": str(matched_path(checkpoint, mode)),
        "save_every": SAVE_EVERY_STEPS,
        "resume": True,
    }
    if mode == "backbone" and not settings["use_lora"] and not settings["train_backbone"]:
        settings |= {
            "use_lora": True,
            "lora_rank": _matching_rank(checkpoint, bool(settings["trust_remote_code"])),
            "learning_rate": settings["memory_learning_rate"],
        }
    return settings | {"training_step": _steps(TrainOptions(**settings))}


def matched_path(checkpoint: str, mode: str) -> Path:
    """Default directory of the baseline of a checkpoint."""
    path = Path(checkpoint)
    return path.with_name(f"{path.name}.matched-{mode}")


def _runs(checkpoint: str) -> list[dict[str, Any]]:
    """Read progress and options of the runs behind a checkpoint, the last one first."""
    path = Path(checkpoint).expanduser()
    seen, runs = set(), []
    while path not in seen and (path / FOLDER / "progress.json").is_file():
        seen.add(path)
        runs.append(read_settings(path / FOLDER / "progress.json"))
        path = Path(runs[-1]["options"].get("load_from_ckpt") or path).expanduser()
    if not runs:
        raise FileNotFoundError(
            f"{checkpoint}/{FOLDER}/progress.json is missing: --match_budget needs a checkpoint of hmt train"
        )
    return runs


def _backbone(checkpoint: str, first: dict[str, Any]) -> dict[str, Any]:
    """Name the backbone that the training of a checkpoint began with."""
    stored = checkpoint_settings(checkpoint)
    source = stored if "model_name" in stored else first  # a trained backbone is in the checkpoint alone
    return {name: source.get(name) for name in ("model_name", "gguf_file", "revision")}


def _steps(options: TrainOptions) -> int:
    """Enough steps to read `max_tokens`: samples may be shorter than usual, at worst half as long."""
    assert options.max_tokens is not None
    step_tokens = options.fresh_tokens * options.bptt_depth * options.batch_size * options.gradient_accumulation_steps
    steps = math.ceil(options.max_tokens / step_tokens)
    return steps if options.lr_schedule == "cosine" else 2 * steps  # a cosine should reach its end


def _matching_rank(checkpoint: str, trust_remote_code: bool) -> int:
    """Rank of the adapter that has about as many parameters as the memory of a checkpoint."""
    config = HMTConfig.from_pretrained(checkpoint)
    with torch.device("meta"):
        backbone = AutoModelForCausalLM.from_config(config.backbone_config, trust_remote_code=trust_remote_code)
        memory = HMTForCausalLM(config, backbone=backbone).memory
        wanted = sum(parameter.numel() for parameter in memory.parameters())
        adapted = HMTForCausalLM.from_backbone(backbone, **memory_fields(config))
        adapted.add_lora(rank=1)
    rank_1 = sum(p.numel() for name, p in adapted.backbone.named_parameters() if "lora_" in name)
    return max(round(wanted / rank_1), 1)
