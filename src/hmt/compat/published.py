"""Command line of the published HMT program.

Flags and defaults are those of the program (HMT-pytorch, `hmt_src/main.py`); docs/reference/published.md lists their
effect here. Training is `hmt train`; `--inference_only` scores the test split.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hmt.config import PUBLISHED
from hmt.files import read_text
from hmt.options import OutputOptions, check_positive
from hmt.pretrained import checkpoint_settings
from hmt.training.options import TrainingTextOptions, TrainOptions

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class PublishedOptions(TrainingTextOptions, OutputOptions):
    """Train or test a model with the flags of the published HMT program."""

    task_name: str = "wikitext"
    """Task of `hmt tasks`, hub id of a data set, or directory."""
    task_config: str | None = None
    """Configuration of the data set; goes over --task_subset."""
    batch_size: int = 2
    """Samples per process."""
    num_seg_save: int = 5
    """Has no effect: the results of segments are not kept."""
    seed: int = 3407
    """Random seed."""
    model_name: str = "facebook/opt-1.3b"
    """Backbone: directory or hub id."""
    segment_length: int = 256
    """Window W: positions that the backbone attends to in one step."""
    bptt_depth: int = 2
    """Segments per training sample."""
    sum_fraction: float = 0.5
    """Share of a segment that is summarized."""
    test_length: int = 2000
    """Tokens per test sample."""
    training_step: int = 500
    """Optimizer steps."""
    eval_step: int = 100
    """Optimizer steps between validations."""
    test_step: int = 100
    """Test samples to score."""
    learning_rate: float = 1e-5
    """Learning rate of backbone or adapter, and memory."""
    lr_decay: bool = False
    """Multiply the learning rate by lr_decay_gamma every 100 steps."""
    lr_decay_gamma: float = 0.8
    """Factor of the learning-rate decay."""
    use_lora: bool = False
    """Train a LoRA adapter instead of the whole backbone."""
    num_sensory: int = 0
    """Sensory tokens K: last tokens before a segment, re-encoded in front of it."""
    mem_recall_hidden_dim: int = 4096
    """Width of the recall projections."""
    mem_recall_context: int = 100
    """Capacity N of the memory bank."""
    rmt_only: bool = False
    """Train and test a recurrent memory transformer (RMT) instead."""
    baseline_only: bool = False
    """Train and test the backbone alone."""
    segment_alignment: str | None = None
    """Only left is supported: segments begin with the text, whose end is not known while reading."""
    hmt_stage_1: bool = False
    """Stage 1: prompt with the last memory embedding instead of recall."""
    hmt_stage_2: bool = False
    """Stage 2: train with recall, usually with --load_from_ckpt."""
    save_ckpt: Path | None = None
    """Directory for the checkpoint. Default: nothing is saved."""
    load_from_ckpt: str | None = None
    """Checkpoint to start from."""
    token_file: Path = Path("hmt_src/cred.txt")
    """File with a hub token, if it exists."""
    plot_hist: bool = False
    """Plot recall distances on the test split: SAVE_CKPT.run/recall_distances.png and .csv."""
    timing: bool = False
    """Measure the time of summary, recall, read, head and backward pass."""
    inference_only: bool = False
    """Score the test split without training."""
    dynamic: bool = False
    """Dynamic reading speed: halve the sensory tokens after a near segment was recalled."""
    train_memory_map: bool = False
    """Train only the map between reading speeds (implies --dynamic)."""
    inject_autoencoder: bool = False
    """Drop the lowest and highest quarter of the cosine coefficients before each MLP."""
    generate: str | None = None
    """Prompt (text or file, may be "") to continue after each test sample: SAVE_CKPT.run/generated.jsonl."""
    wandb_project: str | None = None
    """Weights & Biases project; needs wandb and --save_ckpt."""
    wandb_run: str | None = None
    """Weights & Biases run name."""
    wandb_entity: str | None = None
    """Weights & Biases entity."""
    num_epochs: int = 1
    """Has no effect: --training_step decides."""
    fp16: bool = False
    """Mixed precision in float16 (bfloat16 on a CPU)."""
    gradient_accumulation_steps: int = 1
    """Micro-batches per optimizer step."""

    def check(self) -> None:
        """Check ranges and combinations.

        Raises:
            ValueError: Naming the flag.
        """
        check_positive(self, "batch_size", "training_step", "test_length", "learning_rate", "bptt_depth")
        if self.segment_alignment not in (None, "left"):
            raise ValueError(
                f"segment_alignment must be left, got {self.segment_alignment}: segments begin with the text, "
                "so that reading can go on from any point; any other alignment needs to know where the text will end"
            )
        if self.rmt_only and self.baseline_only:
            raise ValueError("rmt_only and baseline_only exclude each other")

    @staticmethod
    def inherited(stored: dict[str, Any]) -> dict[str, Any]:
        """Values of flags that were not given, from the settings of a checkpoint."""
        mode = stored.get("mode")
        dynamic = stored.get("dynamic_reading", False)
        return stored | {"rmt_only": mode == "rmt", "baseline_only": mode == "backbone", "dynamic": dynamic}

    def training(self) -> TrainOptions:
        """Options of `hmt train`; settings without a flag here come from the checkpoint."""
        stored = {} if self.load_from_ckpt is None else checkpoint_settings(self.load_from_ckpt)
        mode = "rmt" if self.rmt_only else "backbone" if self.baseline_only else "hmt"
        if mode == "hmt" and stored.get("mode") == "short_term":
            mode = "short_term"
        there, own = ({field.name for field in fields(kind)} for kind in (TrainOptions, self))
        settings = PUBLISHED | {name: getattr(self, name) for name in there & own}
        settings |= {name: value for name, value in stored.items() if name in there - own}
        settings |= {
            "mode": mode,
            "task_subset": self.task_config or self.task_subset,
            "stage_1_step": 0,
            "memory_learning_rate": self.learning_rate,
            "dynamic_reading": self.dynamic or self.train_memory_map,
            "use_lora": self.use_lora and not self.train_memory_map,
            "train_backbone": not (self.use_lora or self.train_memory_map),
            "mixed_precision": "fp16" if self.fp16 else "auto",
            "save_ckpt": self.save_ckpt or Path(self.load_from_ckpt or "hmt"),  # names the record of the run
            "report_to": "wandb" if self.wandb_project and self.save_ckpt and _has_wandb() else "",
        }
        options = TrainOptions(**settings)
        options.loss_tokens = options.fresh_tokens  # the last segment, as published
        options.check()
        return options


def run(options: PublishedOptions) -> tuple[dict[str, Any], str]:
    """Train, or with `inference_only` score the test split.

    Returns:
        Figures and closing lines.
    """
    from hmt.cli import train

    _use_token(options.token_file)
    training = options.training()
    if options.wandb_project and options.save_ckpt is None and not options.inference_only:
        logger.warning("without --save_ckpt nothing is saved or logged to Weights & Biases")
    if options.inference_only:
        return train.test(training)
    return train.run(training, keep=options.save_ckpt is not None)


def _has_wandb() -> bool:
    if importlib.util.find_spec("wandb") is not None:
        return True
    logger.warning("wandb is not installed: the figures are in SAVE_CKPT.run alone")
    return False


def _use_token(file: Path) -> None:
    """Use the hub token in a file; it is never shown."""
    if file.exists():
        os.environ.setdefault("HF_TOKEN", read_text(file).strip())
