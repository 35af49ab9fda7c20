"""Options of `hmt train`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from hmt.options import (
    AugmentOptions,
    ModelOptions,
    OutputOptions,
    PublishedMemory,
    check_positive,
    parse_share,
)

TRACKERS = ("wandb", "tensorboard", "trackio")


@dataclass(kw_only=True)
class TrainingTextOptions(AugmentOptions):
    """The training split of the task."""

    train_set_split: str | None = None
    """Number or percentage of training documents to use, such as 50 or 2%."""
    shuffle_train: bool = True
    """Shuffle the training samples by the seed."""


@dataclass(kw_only=True)
class OptimizationOptions:
    """Trained parameters, length of training, and optimizer."""

    hmt_stage_1: bool = False
    """Run only stage 1, for --training_step steps."""
    hmt_stage_2: bool = False
    """Run only stage 2, for --training_step steps, usually from a checkpoint of stage 1 (--load_from_ckpt)."""
    stage_1_step: int = 200
    """Optimizer steps of stage 1 when both stages run; 0 skips it."""
    training_step: int = 500
    """Optimizer steps of stage 2, or of the only stage."""
    max_tokens: int | None = None
    """Maximum number of training tokens; training ends there even if steps are left."""
    bptt_depth: int = 4
    """Segments per training sample in stage 2; the loss is back-propagated through all of them."""
    truncate_every: int | None = None
    """Truncated BPTT: detach the memory every N segments."""
    batch_size: int = 2
    """Samples per process and forward pass."""
    gradient_accumulation_steps: int = 1
    """Forward and backward passes per optimizer step."""
    loss_tokens: int | None = None
    """Number of last tokens of each sample that the loss counts. Default: all."""
    learning_rate: float = 1e-5
    """Learning rate of the backbone or its LoRA adapter."""
    memory_learning_rate: float = 1e-3
    """Learning rate of the memory's parameters."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    lr_decay: bool = True
    """Decay the learning rates within each stage; --no-lr_decay keeps them constant."""
    lr_schedule: Literal["step", "cosine"] = "step"
    """Decay: by the factor --lr_decay_gamma every 100 optimizer steps (step), or to 0 at the stage's end (cosine)."""
    lr_decay_gamma: float = 0.9
    """Factor of each decay with --lr_schedule step."""
    warmup_step: int = 0
    """Optimizer steps of linear warmup at the start of each stage."""
    max_grad_norm: float = 1.0
    """Maximum gradient norm (clipping)."""
    use_lora: bool = False
    """Train a LoRA adapter on the frozen backbone (needs the extra lora)."""
    lora_rank: int = 8
    """Rank of the LoRA adapter."""
    lora_alpha: int = 32
    """Alpha of the LoRA adapter; its updates are scaled by alpha / rank."""
    lora_dropout: float = 0.1
    """Dropout of the LoRA adapter."""
    lora_targets: str | None = None
    """Layers to adapt: all-linear, or module names separated by commas. Default: PEFT's for the backbone's family."""
    train_backbone: bool = False
    """Train all weights of the backbone, which is frozen otherwise."""
    train_memory_map: bool = False
    """Train only the map between the memory embeddings of the two reading speeds (with --dynamic_reading)."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Autocast data type; auto takes the setting of accelerate launch, or none."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: takes less memory and more time."""
    compile: bool = False
    """Compile the backbone's layers with torch.compile: half a minute at the start, then faster."""
    match_budget: str | None = None
    """Train a baseline on the budget of this checkpoint: same data, settings and number of tokens, about as many
    parameters; --mode backbone (default), rmt or short_term. Flags that are given override this."""

    @property
    def adapted_layers(self) -> list[str] | str | None:
        """Layers that `lora_targets` names, as PEFT takes them."""
        if self.lora_targets is None or self.lora_targets == "all-linear":
            return self.lora_targets
        return [name.strip() for name in self.lora_targets.split(",")]


@dataclass(kw_only=True)
class RunOptions:
    """Checkpoints, validation, test and trackers of a run."""

    save_ckpt: Path = Path("runs/checkpoint")
    """Output directory of the checkpoint; metrics and logs go to the directory SAVE_CKPT.run."""
    save_every: int | None = None
    """Save every N optimizer steps too, for --resume."""
    resume: bool = False
    """Continue from the checkpoint in --save_ckpt, or start a new run if there is none."""
    eval_step: int | None = None
    """Score 8 samples of the validation split every N optimizer steps."""
    test_step: int | None = None
    """Number of samples of the test split to score at the end. Default: none."""
    test_length: int | None = None
    """Tokens per test sample. Default: as in training."""
    plot_hist: bool = False
    """Plot how far back the test samples recall: SAVE_CKPT.run/recall_distances.png and .csv."""
    generate: str | None = None
    """Prompt (text or file, may be empty) to continue after each test sample: SAVE_CKPT.run/generated.jsonl."""
    timing: bool = False
    """Measure the time of summary, recall, read, head and backward pass."""
    report_to: str = ""
    """Experiment trackers, separated by commas: wandb, tensorboard, trackio. Default: none."""
    wandb_project: str | None = None
    """Project name in the trackers. Default: the name of the --save_ckpt directory."""
    wandb_run: str | None = None
    """Run name in Weights & Biases."""
    wandb_entity: str | None = None
    """Weights & Biases entity: a user or team."""

    @property
    def trackers(self) -> list[str]:
        """Trackers that `report_to` names."""
        return [name.strip() for name in self.report_to.split(",") if name.strip()]

    @property
    def record(self) -> Path:
        """Directory of the run's figures and logs."""
        return self.save_ckpt.with_name(f"{self.save_ckpt.name}.run")


@dataclass(kw_only=True)
class TrainOptions(RunOptions, OptimizationOptions, OutputOptions, TrainingTextOptions, PublishedMemory, ModelOptions):
    """Train a memory in two stages: with the previous segment's memory only, then with recall.

    Stage 1 reads samples of 2 segments and gives each segment the memory embedding of the one before. Stage 2 reads
    samples of --bptt_depth segments and recalls from the bank of all earlier ones. Both run unless --hmt_stage_1 or
    --hmt_stage_2 chooses one. The backbone stays frozen unless --use_lora or --train_backbone is given.
    """

    MOST_USED: ClassVar[tuple[str, ...]] = (
        "model_name", "task_name", "save_ckpt", "load_from_ckpt", "resume", "training_step", "batch_size",
        "memory_learning_rate", "use_lora", "segment_length",
    )  # fmt: skip

    def check(self) -> None:
        """Raise a ValueError that names the first flag that makes no sense."""
        super().check()
        self.check_task()
        check_positive(
            self, "training_step", "max_tokens", "bptt_depth", "truncate_every", "batch_size",
            "gradient_accumulation_steps", "loss_tokens", "learning_rate", "memory_learning_rate", "lr_decay_gamma",
            "max_grad_norm", "lora_rank", "lora_alpha", "save_every", "eval_step", "test_step", "test_length",
        )  # fmt: skip
        for name in ("stage_1_step", "warmup_step"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.seed < 1 << 31:
            raise ValueError(f"seed must lie between 0 and {(1 << 31) - 1}, got {self.seed}")
        if parse_share(self.train_set_split)[1] < 1 and self.streaming:
            raise ValueError(f"train_set_split must be a number with streaming, got {self.train_set_split}")
        if unknown := set(self.trackers) - set(TRACKERS):
            raise ValueError(f"report_to must be of {', '.join(TRACKERS)}, got {', '.join(sorted(unknown))}")
        if self.test_step is None and (self.plot_hist or self.generate is not None):
            raise ValueError("plot_hist and generate need test samples; give --test_step")
        self._check_stages()
        self._check_trained_parts()

    def _check_stages(self) -> None:
        """Check the flags that choose stages."""
        if self.hmt_stage_1 and self.hmt_stage_2:
            raise ValueError("hmt_stage_1 and hmt_stage_2 exclude each other; give neither to run both stages")
        if self.hmt_stage_1 and self.mode not in ("hmt", "short_term"):
            raise ValueError(f"hmt_stage_1 trains mode short_term, not {self.mode}; give one of the two")
        if self.hmt_stage_1 and not self.prompt_tokens:
            raise ValueError("hmt_stage_1 trains memory embeddings; give --num_memory_tokens 1 or more")

    def _check_trained_parts(self) -> None:
        """Check the flags that choose trained parameters."""
        if self.use_lora and self.train_backbone:
            raise ValueError("use_lora keeps the backbone frozen, train_backbone trains it; give one of the two")
        if self.dtype == "float16" and (self.use_lora or self.train_backbone):
            raise ValueError("dtype float16 cannot be trained; give --mixed_precision fp16 or --dtype bfloat16")
        if self.train_memory_map and not self.speed_tokens:
            raise ValueError("train_memory_map trains the map between two reading speeds; give --dynamic_reading")
        if self.train_memory_map and (self.use_lora or self.train_backbone or self.hmt_stage_1):
            raise ValueError("train_memory_map excludes use_lora, train_backbone and hmt_stage_1")
        if self.compile and self.inject_autoencoder:
            raise ValueError("compile and inject_autoencoder exclude each other")
