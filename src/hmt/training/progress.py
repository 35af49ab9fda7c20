"""The checkpoint of a run, which `--resume` continues from.

`save_ckpt` holds the model's checkpoint, and beside it in `training/`:

    progress.json       stage, step and samples read, and the options of the run
    optimizer.pt        state of the optimizer and the schedule (tensors and numbers, no code)
    engine/             DeepSpeed's own files instead of optimizer.pt
    manifest.json       SHA-256 of every file of the checkpoint, verified before a run continues from it
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hmt.atomic import atomic_directory
from hmt.config import MemoryConfig
from hmt.files import read_settings
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.training.options import RunOptions, TrainOptions

logger = logging.getLogger(__name__)

FOLDER = "training"

FREE = frozenset(
    {field.name for field in fields(RunOptions)}
    | {field.name for field in fields(MemoryConfig) if not field.metadata["resume"]}
    | {
        "cache_dir", "compile", "device", "gradient_checkpointing", "hub_map", "json", "load_from_ckpt",
        "match_budget", "max_tokens", "training_step", "trust_remote_code", "verify",
    }
)  # fmt: skip
"""Options that may change when a run is resumed: its samples, stages, model and optimizer do not depend on them."""


@dataclass
class Progress:
    """Position of a run.

    Attributes:
        stage: Index of the current stage.
        step: Optimizer steps taken in it.
        steps: Optimizer steps taken in all.
        rows: Samples read in the current stage.
        tokens: Tokens read in all.
        seconds: Time spent in all.
        finished: The run has ended; it can go on with more steps.
    """

    stage: int = 0
    step: int = 0
    steps: int = 0
    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0
    finished: bool = False

    def next_stage(self) -> None:
        """Begin the next stage."""
        self.stage, self.step, self.rows = self.stage + 1, 0, 0


@dataclass
class Saved:
    """The part of a checkpoint that is not the model.

    Attributes:
        progress: Position of the run.
        optimizer: State of optimizer, schedule and loss scaler; None where DeepSpeed keeps it, or no process has it.
    """

    progress: Progress = field(default_factory=Progress)
    optimizer: dict[str, Any] | None = None


def save(
    model: HMTForCausalLM,
    tokenizer: PreTrainedTokenizerBase | None,
    options: TrainOptions,
    saved: Saved,
    engine: Path | None = None,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write the checkpoint, whole or not at all; the one before it stays until then.

    Args:
        model: The trained model.
        tokenizer: Saved beside it.
        options: Options of the run.
        saved: State that `--resume` needs.
        engine: Directory with DeepSpeed's own files, which is moved into the checkpoint.
        weights: Whole weights of a model whose own are sharded over several processes.

    Raises:
        OSError: If it cannot be written.
    """
    with atomic_directory(options.save_ckpt) as folder:
        trained = options.train_backbone or not model.config.backbone_source
        model.save_pretrained(folder, state_dict=weights, save_backbone=None if weights is None else trained)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        training = folder / FOLDER
        training.mkdir()
        state = {"progress": asdict(saved.progress), "options": asdict(options)}
        (training / "progress.json").write_text(json.dumps(state, indent=1, default=str) + "\n")
        if saved.optimizer is not None:
            with (training / "optimizer.pt").open("wb") as file:
                torch.save(saved.optimizer, file)
        if engine is not None:
            engine.rename(training / engine.name.rpartition(".")[2])
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        manifest = {file.relative_to(folder).as_posix(): _digest(file) for file in files}
        (training / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def can_resume(path: Path) -> bool:
    """True if a directory holds a checkpoint that a run can continue from."""
    return (path / FOLDER / "manifest.json").is_file()


def load(path: Path) -> Saved:
    """Read the part of a checkpoint that is not the model.

    Raises:
        ValueError: If a file of the checkpoint is damaged; names it.
        OSError: If one cannot be read.
    """
    training = path / FOLDER
    try:
        manifest = json.loads((training / "manifest.json").read_text())
        damaged = [name for name, digest in manifest.items() if _digest(path / name) != digest]
        if damaged:
            raise ValueError(f"{', '.join(damaged)} changed since the checkpoint was written")
        stored = json.loads((training / "progress.json").read_text())["progress"]
        progress = Progress(**{one.name: stored[one.name] for one in fields(Progress)})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be resumed, it is damaged: {error}") from error
    optimizer = None
    if (training / "optimizer.pt").exists():
        optimizer = torch.load(training / "optimizer.pt", weights_only=True, map_location="cpu")
    return Saved(progress, optimizer)


def check_same_run(options: TrainOptions) -> None:
    """Refuse to continue a run whose samples, model or optimizer were made with other options.

    Raises:
        ValueError: If an option differs; names it and both values.
    """
    stored = read_settings(options.save_ckpt / FOLDER / "progress.json")["options"]
    wanted = json.loads(json.dumps(asdict(options), default=str))
    for name in sorted(wanted.keys() - FREE):
        theirs = stored.get(name, wanted[name])
        if wanted[name] != theirs:
            raise ValueError(f"{name} is {theirs} in {options.save_ckpt} and cannot be resumed with {wanted[name]}")
    steps = stored["training_step"]
    if options.training_step != steps and options.lr_schedule == "cosine" and options.lr_decay:
        logger.warning("the cosine schedule was planned for %d steps; it continues with another one", steps)


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while part := handle.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
