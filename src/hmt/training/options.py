"""Runs that train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hmt.config import Sensory
from hmt.options import AugmentOptions, ModelOptions, OutputOptions, check_positive, parse_share

TRACKERS = ("wandb", "tensorboard", "trackio")


@dataclass(kw_only=True)
class TrainOptions(OutputOptions, AugmentOptions, ModelOptions):
    """Teach the memory: first with the last memory embedding only (stage 1), then with recall (stage 2)."""

    sensory: Sensory | None = "reread"
    """Sensory memory: re-encode the last tokens in front of each segment, as published, or keep keys and values in a
    rolling cache."""
    num_recalled_tokens: int | None = 0
    """Recalled tokens E: budget for passages of remembered text that answer a prompt; 0 disables text recall."""
    save_ckpt: Path = Path("runs/checkpoint")
    """Directory the trained checkpoint is written to; DIR.run beside it holds the record of the run."""
    save_every: int | None = None
    """Save every so many optimizer steps too, so that --resume can go on from there."""
    resume: bool = False
    """Go on from the checkpoint in save_ckpt; start anew where there is none yet."""
    hmt_stage_1: bool = False
    """Only stage 1: mode short_term, 2 segments per sample."""
    hmt_stage_2: bool = False
    """Only stage 2, usually with --load_from_ckpt."""
    stage_1_step: int = 200
    """Optimizer steps of stage 1 where both stages run."""
    training_step: int = 500
    """Optimizer steps of the only stage, or of stage 2."""
    max_minutes: float | None = None
    """Stop after so many minutes of training, whatever the steps."""
    max_tokens: int | None = None
    """Stop after so many tokens of training, whatever the steps."""
    bptt_depth: int = 4
    """Segments per training sample in stage 2, all back-propagated through."""
    truncate_every: int | None = None
    """Cut the gradient after every so many segments; never by default."""
    train_set_split: str | None = None
    """Train on at most so many documents, or on such a share of them: 50 or 2%."""
    shuffle_train: bool = True
    """Draw the order of the samples by the seed; without, they are taken as they stand."""
    batch_size: int = 2
    """Samples per process and micro-step."""
    gradient_accumulation_steps: int = 1
    """Micro-steps per optimizer step."""
    loss_tokens: int | None = None
    """Score only the last so many tokens of a sample (legacy: mask_size); by default all."""
    retrieval_loss_weight: float = 1.0
    """Weight of retrieval and retention loss where a sample says which segments support its answer; 0 only reports."""
    learning_rate: float = 1e-5
    """Learning rate of the backbone, or of its LoRA adapter."""
    memory_learning_rate: float = 1e-3
    """Learning rate of the memory's parameters."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    lr_schedule: Literal["step", "cosine", "constant"] = "step"
    """How the learning rates fall: by steps, along a cosine to 0 at the end of the stage, or not at all."""
    lr_decay: bool = True
    """Let the learning rates fall; without, lr_schedule is constant."""
    lr_decay_gamma: float = 0.9
    """Factor of the schedule step."""
    lr_decay_step: int = 100
    """Optimizer steps between two decays."""
    warmup_step: int = 0
    """Optimizer steps in which the learning rates rise from 0, in each stage."""
    max_grad_norm: float = 1.0
    """Clip the norm of the gradient to this."""
    use_lora: bool = False
    """Train a LoRA adapter on the backbone too (needs the extra lora)."""
    lora_rank: int = 8
    """Rank of the adapter."""
    lora_alpha: int = 32
    """Scale of the adapter, alpha / rank."""
    lora_dropout: float = 0.1
    """Dropout of the adapter."""
    lora_targets: str | None = None
    """Layers to adapt: all-linear, or names with commas; by default those usual for the backbone's family."""
    train_memory_map: bool = False
    """Train nothing but the map between the two reading speeds, with --dynamic_reading."""
    train_backbone: bool = False
    """Train all of the backbone. By default it is frozen."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Format to compute in while the weights stay as they are; auto is the launcher's, without one none."""
    gradient_checkpointing: bool = False
    """Keep only the window of each segment and compute it again for the gradient: less memory, more time."""
    compile: bool = False
    """Compile the backbone's layers: half a minute at the start, then faster and with less memory."""
    eval_step: int | None = None
    """Score the validation split every so many optimizer steps."""
    eval_samples: int = 8
    """Samples of the validation split that are scored."""
    patience: int | None = None
    """Stop after so many validations without a new best, and keep the best weights."""
    test_step: int | None = None
    """Score so many samples of the test split at the end."""
    test_length: int | None = None
    """Tokens of a test sample; by default those of a training sample."""
    plot_hist: bool = False
    """Draw how far back the test samples recall, as SAVE_CKPT.run/recall_distances.png and .csv."""
    generate: str | None = None
    """Write on after each test sample and this prompt (text or file, may be ""): SAVE_CKPT.run/generated.jsonl."""
    timing: bool = False
    """Time the parts of a few steps and of a test batch: summary, recall, read, head, backward."""
    report_to: str = ""
    """Trackers besides the run's own record: wandb, tensorboard, trackio, with commas between them."""
    wandb_project: str | None = None
    """Project in the trackers; by default the name of save_ckpt."""
    wandb_run: str | None = None
    """Name of the run in wandb."""
    wandb_entity: str | None = None
    """Owner of the project in wandb."""

    def check(self) -> None:
        """Check ranges and combinations.

        Raises:
            ValueError: Naming the flag.
        """
        super().check()
        check_positive(self, "training_step", "bptt_depth", "batch_size", "loss_tokens", "learning_rate")
        self.check_task()
        check_positive(self, "max_minutes", "max_tokens", "truncate_every", "gradient_accumulation_steps")
        check_positive(self, "memory_learning_rate", "lr_decay_step", "lr_decay_gamma", "max_grad_norm")
        check_positive(self, "lora_rank", "lora_alpha", "save_every", "eval_step", "eval_samples", "patience")
        check_positive(self, "test_step", "test_length")
        if self.stage_1_step < 0 or self.warmup_step < 0:
            raise ValueError(
                f"stage_1_step and warmup_step must be at least 0, got {self.stage_1_step} and {self.warmup_step}"
            )
        if self.streaming and parse_share(self.train_set_split)[1] < 1:
            raise ValueError(
                f"a share of a stream is not known: train_set_split must be a number, got {self.train_set_split}"
            )
        if self.compile and self.inject_autoencoder:
            raise ValueError(
                "compile and inject_autoencoder exclude each other: the autoencoder acts inside the layers"
            )
        if self.retrieval_loss_weight < 0:
            raise ValueError(f"retrieval_loss_weight must be at least 0, got {self.retrieval_loss_weight}")
        parse_share(self.train_set_split)
        if not 0 <= self.seed < 1 << 31:
            raise ValueError(f"seed must lie between 0 and {(1 << 31) - 1}, got {self.seed}")
        if unknown := set(self.trackers) - set(TRACKERS):
            raise ValueError(f"report_to must be of {', '.join(TRACKERS)}, got {', '.join(sorted(unknown))}")
        if self.hmt_stage_1 and self.hmt_stage_2:
            raise ValueError("hmt_stage_1 and hmt_stage_2 exclude each other; give neither to run both stages")
        if self.hmt_stage_1 and self.mode not in ("hmt", "short_term"):
            raise ValueError(f"hmt_stage_1 trains mode short_term, not {self.mode}; give one of the two")
        if self.hmt_stage_1 and not self.prompt_tokens:
            raise ValueError("hmt_stage_1 trains memory embeddings; give --num_memory_tokens 1 or more")
        if self.dtype == "float16" and (self.use_lora or self.train_backbone):
            raise ValueError("float16 weights cannot be trained; give --mixed_precision fp16 or --dtype bfloat16")
        if self.use_lora and self.train_backbone:
            raise ValueError(
                "use_lora trains an adapter on a frozen backbone, train_backbone the backbone itself; give one"
            )
        if self.train_memory_map and not self.speed_tokens:
            raise ValueError("train_memory_map trains the map between two reading speeds; give --dynamic_reading")
        if self.train_memory_map and (self.use_lora or self.train_backbone or self.hmt_stage_1):
            raise ValueError("train_memory_map trains nothing else: no use_lora, train_backbone or hmt_stage_1 with it")
        if self.test_step is None and (self.plot_hist or self.generate is not None):
            raise ValueError("plot_hist and generate are of the test samples; say how many with --test_step")
        if self.patience is not None and self.eval_step is None:
            raise ValueError("patience counts validations; say how often with --eval_step")
        if self.max_minutes is not None and (self.lr_schedule == "cosine" or self.resume):
            raise ValueError("max_minutes leaves the number of steps open: no --lr_schedule cosine, no --resume")

    @property
    def adapted_layers(self) -> list[str] | str | None:
        """What lora_targets names."""
        if self.lora_targets is None or self.lora_targets == "all-linear":
            return self.lora_targets
        return [name.strip() for name in self.lora_targets.split(",")]

    @property
    def trackers(self) -> list[str]:
        """The trackers that report_to names."""
        return [name.strip() for name in self.report_to.split(",") if name.strip()]

    @property
    def record(self) -> Path:
        """Directory of the run's record."""
        return self.save_ckpt.with_name(f"{self.save_ckpt.name}.run")
