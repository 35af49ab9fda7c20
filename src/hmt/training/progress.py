"""Where a run is, and what is kept of it: the checkpoint to go on from, and the record of what happened.

`save_ckpt` holds the checkpoint of the model, and in `training/` what `--resume` needs beside it:

    progress.json       stage, step, rows read, best validation
    optimizer.pt        moments of the optimizer and position of the schedule (tensors and numbers, no code)
    best.safetensors    with --patience, the best trained weights so far
    manifest.json       SHA-256 of every file of the checkpoint, checked before anything is resumed from it

`save_ckpt`.run holds `run.json` (settings, command, versions, commit), `train.log`, pictures, and `metrics.jsonl` (one
line a step, and a second one, whole, where it was validated).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hmt.atomic import atomic_directory, atomic_file, open_log
from hmt.config import MemoryConfig
from hmt.files import read_settings
from hmt.metrics.environment import environment
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.report.data import read_history
from hmt.training.options import TrainOptions

logger = logging.getLogger(__name__)

FOLDER = "training"

FREE = frozenset({
    "resume", "save_ckpt", "save_every", "load_from_ckpt", "training_step", "max_tokens", "max_minutes", "eval_step",
    "eval_samples", "patience", "test_step", "test_length", "plot_hist", "generate", "timing", "json", "report_to",
    "wandb_project", "wandb_run", "wandb_entity", "device", "cache_dir", "hub_map", "trust_remote_code", "compile",
    "gradient_checkpointing", "verify",
}) | {field.name for field in fields(MemoryConfig) if not field.metadata["resume"]}  # fmt: skip
"""Settings that a run may change on the way; what its samples, stages, model and optimizer are made of stays."""


@dataclass
class Progress:
    """Where a run is.

    Attributes:
        stage: Index of the stage at hand.
        step: Optimizer steps taken in it.
        steps: Optimizer steps taken in all.
        rows: Samples read in the stage at hand.
        tokens: Tokens read in all.
        seconds: Spent in all.
        best: Lowest validation loss of the stage so far.
        stale: Validations since then.
        finished: The run has ended; with more steps than it had it can go on.
    """

    stage: int = 0
    step: int = 0
    steps: int = 0
    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: float | None = None
    stale: int = 0
    finished: bool = False

    def next_stage(self) -> None:
        """Begin the next stage."""
        self.stage, self.step, self.rows = self.stage + 1, 0, 0
        self.best, self.stale = None, 0


@dataclass
class Saved:
    """What a checkpoint holds besides the model.

    Attributes:
        progress: Where the run was.
        optimizer: State of the optimizer and of the schedule.
        best: The best trained weights so far, by name, or None.
    """

    progress: Progress = field(default_factory=Progress)
    optimizer: dict[str, Any] | None = None
    best: dict[str, Tensor] | None = None


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
        model: Of the run.
        tokenizer: Saved beside it.
        options: Of the run.
        saved: What `--resume` needs.
        engine: Directory with the parts of an engine's optimizer, which is moved into the checkpoint.
        weights: Of the model, where its own are cut up over several processes.

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
        if saved.best is not None:
            save_file({name: tensor.contiguous() for name, tensor in saved.best.items()}, training / "best.safetensors")
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        manifest = {file.relative_to(folder).as_posix(): _digest(file) for file in files}
        (training / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def can_resume(path: Path) -> bool:
    """Whether a directory holds a checkpoint to go on from."""
    return (path / FOLDER / "manifest.json").is_file()


def load(path: Path) -> Saved:
    """What `save` wrote besides the model.

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
        progress = Progress(**json.loads((training / "progress.json").read_text())["progress"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be resumed, it is damaged: {error}") from error
    optimizer = None
    if (training / "optimizer.pt").exists():
        optimizer = torch.load(training / "optimizer.pt", weights_only=True, map_location="cpu")
    best = load_file(training / "best.safetensors") if (training / "best.safetensors").exists() else None
    return Saved(progress, optimizer, best)


def check_same_run(options: TrainOptions) -> None:
    """Make sure that a checkpoint is of a run like this one, whose data and optimizer it can go on with.

    Raises:
        ValueError: If a setting differs; names it and both values.
    """
    stored = read_settings(options.save_ckpt / FOLDER / "progress.json")["options"]
    wanted = json.loads(json.dumps(asdict(options), default=str))
    for name in sorted(wanted.keys() - FREE):
        theirs = stored.get(name, wanted[name])
        if wanted[name] != theirs:
            raise ValueError(f"{name} is {theirs} in {options.save_ckpt} and cannot be resumed with {wanted[name]}")
    steps = stored["training_step"]
    if options.training_step != steps and options.lr_schedule == "cosine" and options.lr_decay:
        logger.warning("the cosine of the learning rates was planned for %d steps: from here on it is another", steps)


class Record:
    """The record of a run: what was run, and one line a step.

    Args:
        path: Its directory.
        writes: Whether this process writes it.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self._path = path
        self._writes = writes
        self.history: list[dict[str, Any]] = []

    def begin(self, options: TrainOptions, steps: int) -> None:
        """Note what is run; of an earlier run in the same place, keep the lines up to where this one goes on."""
        file = self._path / "metrics.jsonl"
        if steps and file.exists():
            self.history = [entry for entry in read_history(file) if entry["step"] <= steps]
        if not self._writes:
            return
        with atomic_file(file) as unfinished:
            unfinished.write_text("".join(json.dumps(line) + "\n" for line in self.history))
        with atomic_file(self._path / "run.json") as unfinished:
            unfinished.write_text(json.dumps(_description(options), indent=1, default=str) + "\n")

    def add(self, **values: Any) -> None:
        """Note a step."""
        self.history.append(values)
        self._write(values)

    def amend(self, **values: Any) -> None:
        """Add to what was noted of the last step; its line comes again, whole."""
        self.history[-1] |= values
        self._write(self.history[-1])

    def _write(self, line: dict[str, Any]) -> None:
        if not self._writes:
            return
        try:
            with os.fdopen(open_log(self._path / "metrics.jsonl"), "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            self._writes = False
            logger.warning("from step %s on no figures are written: %s", line["step"], error)


def _description(options: TrainOptions) -> dict[str, Any]:
    return {"command": sys.argv, "options": asdict(options), **environment()}


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while part := handle.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
