"""The command line of the published HMT program, in terms of this library's own verbs.

The flags and their defaults are those of the program (HMT-pytorch, `hmt_src/main.py`); docs/reference/published.md says
for each what it does here and where that differs. Training is `hmt train`, `--inference_only` scores the test split.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hmt.files import read_text
from hmt.options import check_positive
from hmt.pretrained import checkpoint_settings
from hmt.training.options import TrainOptions

logger = logging.getLogger(__name__)

ALIGNMENTS = ("left", "right", "center")
"""Where a text's segments begin, as the programs of this family name it."""


@dataclass(kw_only=True)
class PublishedOptions:
    """Train or test a model as the published HMT program does."""

    task_name: str = "wikitext"
    """Data set: a name that hmt tasks lists, a hub id, or a directory."""
    task_subset: str | None = None
    """Configuration of the data set."""
    task_config: str | None = None
    """The same under its other name."""
    batch_size: int = 2
    """Samples per process."""
    num_seg_save: int = 5
    """Segments whose results stay on the accelerator; has no effect, since results are not kept at all."""
    seed: int = 3407
    """Of everything drawn at random."""
    model_name: str = "facebook/opt-1.3b"
    """Backbone."""
    segment_length: int = 256
    """Window: positions the backbone sees in one step."""
    bptt_depth: int = 2
    """Segments per training sample."""
    sum_fraction: float = 0.5
    """Share of a segment that its summary reads."""
    test_length: int = 2000
    """Tokens per test sample."""
    training_step: int = 500
    """Optimizer steps."""
    eval_step: int = 100
    """Optimizer steps between two validations."""
    test_step: int = 100
    """Test samples that are scored."""
    learning_rate: float = 1e-5
    """Learning rate, of the memory too."""
    lr_decay: bool = False
    """Multiply the learning rate by lr_decay_gamma every 100 steps."""
    lr_decay_gamma: float = 0.8
    """Factor of that decay."""
    use_lora: bool = False
    """Train a LoRA adapter; without, all of the backbone is trained."""
    num_sensory: int = 0
    """Sensory tokens."""
    mem_recall_hidden_dim: int = 4096
    """Width of the recall projections."""
    mem_recall_context: int = 100
    """Memory embeddings kept."""
    rmt_only: bool = False
    """Train and test a recurrent memory transformer instead."""
    baseline_only: bool = False
    """Train and test the backbone alone."""
    segment_alignment: str | None = None
    """left, which is what is done; right and center need the end of a text, which reading on does not know."""
    hmt_stage_1: bool = False
    """Stage 1: the last memory embedding instead of recall."""
    hmt_stage_2: bool = False
    """Stage 2, usually with --load_from_ckpt."""
    save_ckpt: Path | None = None
    """Directory of the checkpoint; by default nothing is kept."""
    load_from_ckpt: str | None = None
    """Checkpoint to begin with."""
    token_file: Path = Path("hmt_src/cred.txt")
    """File with a token of the hub; it need not be there."""
    train_set_split: str | None = None
    """Use at most so many training documents, or such a share of them: 50 or 2%."""
    interleave_dataset: bool = False
    """Mix every two documents."""
    interleave_len: int = 100
    """Tokens of each in turn."""
    plot_hist: bool = False
    """Draw how far back the test samples recall, as SAVE_CKPT.run/recall_distances.png and .csv."""
    fuse_size: int = 2
    """Question-answering items whose contexts are put together (pubmed_qa)."""
    timing: bool = False
    """Time the parts of a step: summary, recall, read, head, backward."""
    inference_only: bool = False
    """Score the test split, do not train."""
    dynamic: bool = False
    """Dynamic reading speed: half the sensory tokens, and longer segments, after a near segment was recalled."""
    dilate_dataset: bool = False
    """Put filler between every dilate_len tokens of a document."""
    dilate_len: int = 888
    """Tokens of the document and of filler in turn."""
    dilate_str: str = "$"
    """The filler."""
    train_memory_map: bool = False
    """Train nothing but the map between the two reading speeds, with --dynamic."""
    inject_autoencoder: bool = False
    """Drop the lowest and the highest quarter of the cosine coefficients before each MLP."""
    generate: str | None = None
    """Write on after each test sample and this prompt (text or file, may be ""): SAVE_CKPT.run/generated.jsonl."""
    streaming: bool = False
    """Read a hub's data set row by row instead of fetching it first."""
    shuffle: bool = False
    """Take the documents and questions of a split in an order drawn with the seed."""
    shuffle_train: bool = True
    """Draw the order of the training samples by the seed; without, they are taken as they stand."""
    cache_dir: Path | None = None
    """Where the hub's files are kept."""
    wandb_project: str | None = None
    """Project of Weights & Biases, if wandb is installed; SAVE_CKPT.run/metrics.jsonl has the figures in any case."""
    wandb_run: str | None = None
    """Name of the run."""
    wandb_entity: str | None = None
    """Owner of the project."""
    num_epochs: int = 1
    """Has no effect: the number of optimizer steps decides."""
    fp16: bool = False
    """Mixed precision in float16 (bfloat16 on a CPU)."""
    gradient_accumulation_steps: int = 1
    """Micro-steps per optimizer step."""
    hub_map: str | None = None
    """Local directories for hub ids: ID=DIR,ID=DIR (also HMT_HUB_MAP)."""
    json: Path | None = None
    """Write the figures to this file."""

    def check(self) -> None:
        """Check ranges and combinations.

        Raises:
            ValueError: Naming the flag.
        """
        check_positive(self, "batch_size", "training_step", "test_length", "learning_rate", "bptt_depth")
        if self.segment_alignment not in (None, "left"):
            known = "" if self.segment_alignment in ALIGNMENTS else f" (of {', '.join(ALIGNMENTS)})"
            raise ValueError(
                f"segment_alignment must be left{known}, got {self.segment_alignment}: segments begin with the text, "
                "so that reading can go on from any point; any other alignment needs to know where the text will end"
            )
        if self.rmt_only and self.baseline_only:
            raise ValueError("rmt_only and baseline_only exclude each other")

    @staticmethod
    def inherited(stored: dict[str, Any]) -> dict[str, Any]:
        """Values of flags that were not given, from what a checkpoint says of itself."""
        mode = stored.get("mode")
        dynamic = stored.get("dynamic_reading", False)
        return stored | {"rmt_only": mode == "rmt", "baseline_only": mode == "backbone", "dynamic": dynamic}

    def training(self) -> TrainOptions:
        """The same as options of `hmt train`; what has no flag here is as in the checkpoint that is loaded."""
        stored = {} if self.load_from_ckpt is None else checkpoint_settings(self.load_from_ckpt)
        mode = "rmt" if self.rmt_only else "backbone" if self.baseline_only else "hmt"
        if mode == "hmt" and stored.get("mode") == "short_term":
            mode = "short_term"
        there, own = ({field.name for field in fields(kind)} for kind in (TrainOptions, self))
        settings: dict[str, Any] = {name: getattr(self, name) for name in (there & own) - {"save_ckpt"}}
        settings |= {
            "memory_injection": "published", "sensory": "reread", "num_recalled_tokens": 0, "num_sinks": 0,
        }  # fmt: skip
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
            "report_to": "wandb" if self.wandb_project and self.save_ckpt and _has_wandb() else "",
        }
        settings["save_ckpt"] = self.save_ckpt or Path(self.load_from_ckpt or "hmt")  # of the record
        options = TrainOptions(**settings)
        options.loss_tokens = options.fresh_tokens  # the last segment, as published
        options.check()
        return options


def run(options: PublishedOptions) -> tuple[dict[str, Any], str]:
    """Train, or with `inference_only` score the test split.

    Returns:
        The figures, and closing lines.
    """
    from hmt.cli import train

    _use_token(options.token_file)
    training = options.training()
    if options.wandb_project and options.save_ckpt is None and not options.inference_only:
        logger.warning("without --save_ckpt nothing is kept, and Weights & Biases is told nothing")
    if options.inference_only:
        return train.test(training)
    return train.run(training, keep=options.save_ckpt is not None)


def _has_wandb() -> bool:
    if importlib.util.find_spec("wandb") is not None:
        return True
    logger.warning("wandb is not installed: the figures are in SAVE_CKPT.run alone")
    return False


def _use_token(file: Path) -> None:
    """Give the hub's library the token of a file; it is never shown."""
    if file.exists():
        os.environ.setdefault("HF_TOKEN", read_text(file).strip())
