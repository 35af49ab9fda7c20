"""The same training for a baseline: as many tokens of the same texts, in the same order, with as many parameters.

A memory that was trained has seen the text of the task; what it is compared with should have, too.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from hmt.config import memory_fields
from hmt.files import read_settings
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.pretrained import read_checkpoint_config
from hmt.training.options import TrainOptions
from hmt.training.progress import FOLDER

MATCHED_MODES = ("backbone", "rmt", "short_term")
"""Ways of reading that a baseline is trained in."""

INCIDENTAL = ("resume", "json", "device", "cache_dir", "hub_map", "load_from_ckpt", "report_to", "save_every")
"""Settings that may differ between two runs that give the same weights."""


SAVE_EVERY_STEPS = 100


@dataclass(frozen=True)
class Budget:
    """What the training of a checkpoint cost.

    Attributes:
        checkpoint: Its directory.
        options: Settings of its last run.
        tokens: Read in all its runs, those of the checkpoints it began from included.
        backbone: Settings of a run that begins from the same backbone.
    """

    checkpoint: Path
    options: dict[str, Any]
    tokens: int
    backbone: dict[str, Any]


def budget_of(checkpoint: str) -> Budget:
    """What the training of a checkpoint cost, from what it says of its own run.

    Raises:
        OSError: If it says nothing.
    """
    path = Path(checkpoint)
    config = read_checkpoint_config(checkpoint)
    runs: list[tuple[Path, dict[str, Any]]] = []
    while path not in [one for one, _ in runs] and (path / FOLDER / "progress.json").is_file():
        runs.append((path, read_settings(path / FOLDER / "progress.json")))
        path = Path(runs[-1][1]["options"].get("load_from_ckpt") or path)
    if not runs:
        raise FileNotFoundError(
            f"{checkpoint}/{FOLDER}/progress.json is not there: what was spent on this checkpoint is not known, so "
            "--match_budget cannot match it"
        )
    first = runs[-1][1]["options"]
    names = {"model_name": "backbone_source", "gguf_file": "backbone_gguf", "revision": "backbone_revision"}
    backbone = {name: config.get(theirs) for name, theirs in names.items()}
    if not backbone["model_name"]:  # the backbone was trained and is in the checkpoint alone
        backbone = {name: first.get(name) for name in names}
    tokens = sum(run["progress"]["tokens"] for _, run in runs)
    return Budget(Path(checkpoint), runs[0][1]["options"], tokens, backbone)


def matched_options(budget: Budget, mode: str, learning_rate: float | None = None) -> TrainOptions:
    """The run that gives a baseline the same budget.

    Texts, their order, the length of a sample in segments, batch and schedule are those of the checkpoint's run; it
    ends after as many tokens. Where the backbone was trained or had an adapter it has one of the same size here; where
    only the memory was trained, mode backbone gets an adapter with about as many parameters, at the memory's learning
    rate.

    Args:
        budget: To be matched.
        mode: How the baseline reads: backbone, rmt or short_term.
        learning_rate: Of the adapter; that of the run, or of its memory, where None.
    """
    given = {field.name for field in fields(TrainOptions)}
    options = TrainOptions(**{name: value for name, value in budget.options.items() if name in given})
    options = replace(
        options,
        **budget.backbone,
        mode=mode,  # type: ignore[arg-type]  # one of MATCHED_MODES
        ngram_cache=0,
        save_ckpt=matched_path(str(budget.checkpoint), mode),
        load_from_ckpt=None,
        resume=True,
        save_every=options.save_every or SAVE_EVERY_STEPS,
        max_tokens=budget.tokens,
        max_minutes=None,
        hmt_stage_1=False,
        hmt_stage_2=False,
        train_memory_map=False,
        json=None,
        test_step=None,
        report_to="",
        cache_dir=options.cache_dir and Path(options.cache_dir),
    )
    if mode == "backbone" and not options.use_lora and not options.train_backbone:
        options.use_lora = True
        options.lora_rank = matching_rank(budget)
        options.learning_rate = options.memory_learning_rate
    if mode == "backbone" and learning_rate is not None:
        options.learning_rate = learning_rate
    options.training_step = _steps(options, budget.tokens)
    options.check()
    return options


def matched_path(checkpoint: str, mode: str) -> Path:
    """Where the baseline of a checkpoint is kept."""
    path = Path(checkpoint)
    return path.with_name(f"{path.name}.matched-{mode}")


def _steps(options: TrainOptions, tokens: int) -> int:
    """Steps that read so many tokens at least: samples may be shorter, at worst half as long."""
    step_tokens = options.fresh_tokens * options.bptt_depth * options.batch_size * options.gradient_accumulation_steps
    steps = math.ceil(tokens / step_tokens)
    return steps if options.lr_schedule == "cosine" else 2 * steps  # a cosine is to reach its end


def matching_rank(budget: Budget) -> int:
    """Rank of the adapter that has about as many parameters as the memory of a checkpoint."""
    from hmt.model.configuration_hmt import HMTConfig

    config = HMTConfig.from_pretrained(budget.checkpoint)
    with torch.device("meta"):
        backbone: PreTrainedModel = AutoModelForCausalLM.from_config(
            config.backbone_config, trust_remote_code=bool(budget.options.get("trust_remote_code"))
        )
        memory = HMTForCausalLM(config, backbone=backbone).memory
        wanted = sum(parameter.numel() for parameter in memory.parameters())
        adapted = HMTForCausalLM.from_backbone(backbone, **memory_fields(config))
        adapted.add_lora(rank=1)
    a_rank = sum(p.numel() for name, p in adapted.backbone.named_parameters() if "lora_" in name)
    return max(round(wanted / a_rank), 1)


def is_trained(options: TrainOptions) -> bool:
    """Whether a matched run was finished before, with the same settings.

    Raises:
        ValueError: If another run is in its place; names the first setting that differs.
    """
    record = options.save_ckpt / FOLDER / "progress.json"
    if not record.is_file():
        return False
    stored = read_settings(record)
    wanted = json.loads(json.dumps(asdict(options), default=str))
    for name, value in wanted.items():
        if name not in INCIDENTAL and name in stored["options"] and stored["options"][name] != value:
            raise ValueError(
                f"{options.save_ckpt} was trained with {name} {stored['options'][name]}, matching needs {value}; "
                "remove it, or move it away"
            )
    return bool(stored["progress"]["finished"])


def trained(options: TrainOptions) -> dict[str, Any]:
    """What a finished run was: where, on how many tokens, in how many steps, with which adapter."""
    stored = read_settings(options.save_ckpt / FOLDER / "progress.json")
    return {
        "path": str(options.save_ckpt),
        "tokens": stored["progress"]["tokens"],
        "budget_tokens": options.max_tokens,
        "steps": stored["progress"]["steps"],
        "lora_rank": options.lora_rank if options.use_lora else None,
        "learning_rate": options.learning_rate,
        "memory_learning_rate": options.memory_learning_rate,
    }
