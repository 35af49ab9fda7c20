"""What a run is: one field, one flag, one line of help.

This file imports neither torch nor transformers, so that `hmt --help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from hmt.config import MemoryConfig

KILO = 1024

ROWS: dict[str, dict[str, object]] = {
    "backbone": {"mode": "backbone"},
    "isolated": {"mode": "backbone", "num_sensory": 0},
    "rmt": {"mode": "rmt"},
    "short_term": {"mode": "short_term"},
    "hmt": {"mode": "hmt"},
    "hmt_previous": {"mode": "hmt", "recall_query": "previous"},
}
"""Ways of reading that an evaluation can put side by side, as changes of the memory settings."""


API_KEY = "HMT_API_KEY"
"""Environment variable with the key that clients of a server must send."""


def parse_count(text: str) -> int:
    """A number of tokens such as 512, 2k (2,048) or 1m.

    Raises:
        ValueError: If it is none.
    """
    units = {"k": KILO, "m": KILO * KILO}
    digits = text.strip().lower()
    factor = units.get(digits[-1:], 1)
    digits = digits[:-1] if factor > 1 else digits
    if not digits.isdecimal() or int(digits) == 0:
        raise ValueError(f"{text!r} is no number of tokens; write it as 512, 2k or 1m")
    return int(digits) * factor


def parse_counts(text: str) -> list[int]:
    """Numbers of tokens, ascending, such as "1k,2k,8k"."""
    return sorted({parse_count(part) for part in text.split(",") if part.strip()})


@dataclass(kw_only=True)
class ModelOptions(MemoryConfig):
    """Which model, and how it reads."""

    model_name: str = "smollm2-135m"
    """Backbone: a directory, a hub id, or smollm2-135m, which needs no hub."""
    load_from_ckpt: str | None = None
    """Checkpoint directory (or hub id) to use instead; its memory settings are the defaults of the flags above."""
    gguf_file: str | None = None
    """GGUF file in the backbone's directory or repository."""
    revision: str | None = None
    """Revision of a hub id."""
    trust_remote_code: bool = False
    """Run code that comes with the backbone."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the backbone's weights; auto is that of the checkpoint."""
    device: str = "auto"
    """Where to run: cpu, cuda, cuda:1, mps; auto takes an accelerator if there is one."""
    seed: int = 0
    """Of everything drawn at random."""


@dataclass(kw_only=True)
class TaskOptions:
    """What text."""

    task_name: str = "stdlib"
    """stdlib, a directory with train, validation and test as .txt, .jsonl or .parquet, wikitext, pg19, or a hub id."""
    task_subset: str | None = None
    """Configuration of a hub data set."""
    text_column: str = "text"
    """Column that holds the text in tables."""
    max_documents: int | None = None
    """Use at most so many documents."""


@dataclass(kw_only=True)
class OutputOptions:
    """Where the numbers go."""

    json: Path | None = None
    """Write the numbers to this file."""


@dataclass(kw_only=True)
class EvaluateOptions(OutputOptions, TaskOptions, ModelOptions):
    """Score the same target tokens at several context lengths, several ways of reading side by side."""

    lengths: str = "1k,2k,4k"
    """Context lengths in tokens, the targets included; 1k is 1,024."""
    modes: str | None = None
    """Rows, same window for all: backbone, isolated, rmt, short_term, hmt, hmt_previous; by default that of --mode."""
    split: Literal["train", "validation", "test"] = "test"
    """Split to score."""
    target_tokens: int | None = None
    """Tokens scored per span; by default half of the shortest context."""
    spans_per_document: int = 1
    """Spans of target tokens per document, spread over it."""
    batch_size: int = 1
    """Spans read side by side."""

    def check(self) -> None:
        """Check ranges.

        Raises:
            ValueError: Naming the flag.
        """
        super().check()
        _positive(self, "batch_size", "spans_per_document", "max_documents", "target_tokens")
        lengths = parse_counts(self.lengths)
        if not lengths or lengths[0] < 2:
            raise ValueError(f"lengths must be numbers of tokens of at least 2, got {self.lengths!r}")
        if self.target_tokens is not None and self.target_tokens >= lengths[0]:
            raise ValueError(
                f"target_tokens must be below the shortest of lengths ({lengths[0]}), got {self.target_tokens}"
            )
        if not self.rows:
            raise ValueError(f"modes must name at least one of {', '.join(ROWS)}, got {self.modes!r}")
        for row in self.rows:
            if row not in ROWS:
                raise ValueError(f"modes must be of {', '.join(ROWS)}, got {row!r}")

    @property
    def rows(self) -> list[str]:
        """The rows of the table."""
        return [row.strip() for row in (self.modes or self.mode).split(",") if row.strip()]

    @property
    def scored_tokens(self) -> int:
        """Tokens scored per span."""
        return self.target_tokens or parse_counts(self.lengths)[0] // 2


@dataclass(kw_only=True)
class TrainOptions(OutputOptions, TaskOptions, ModelOptions):
    """Teach the memory: first with the last memory embedding only (stage 1), then with recall (stage 2)."""

    save_ckpt: Path = Path("runs/checkpoint")
    """Directory the trained checkpoint is written to."""
    hmt_stage_1: bool = False
    """Only stage 1: mode short_term, 2 segments per sample."""
    hmt_stage_2: bool = False
    """Only stage 2, usually with --load_from_ckpt."""
    stage_1_step: int = 200
    """Optimizer steps of stage 1 where both stages run."""
    training_step: int = 500
    """Optimizer steps of the only stage, or of stage 2."""
    bptt_depth: int = 4
    """Segments per training sample in stage 2, all back-propagated through."""
    batch_size: int = 2
    """Samples per step."""
    loss_tokens: int | None = None
    """Score only the last so many tokens of a sample (legacy: mask_size); by default all."""
    learning_rate: float = 1e-5
    """Learning rate of the backbone, or of its LoRA adapter."""
    memory_learning_rate: float = 1e-3
    """Learning rate of the memory's parameters."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    lr_decay: bool = True
    """Multiply the learning rates by lr_decay_gamma every lr_decay_step steps."""
    lr_decay_gamma: float = 0.9
    """Factor of that decay."""
    lr_decay_step: int = 100
    """Steps between two decays."""
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
    train_backbone: bool = False
    """Train all of the backbone. By default it is frozen."""
    max_minutes: float | None = None
    """Stop after so many minutes of training, whatever the steps."""

    def check(self) -> None:
        """Check ranges and combinations.

        Raises:
            ValueError: Naming the flag.
        """
        super().check()
        _positive(self, "training_step", "bptt_depth", "batch_size", "loss_tokens", "learning_rate", "max_documents")
        _positive(self, "memory_learning_rate", "lr_decay_step", "lr_decay_gamma", "max_grad_norm", "max_minutes")
        _positive(self, "lora_rank", "lora_alpha")
        if self.stage_1_step < 0:
            raise ValueError(f"stage_1_step must be at least 0, got {self.stage_1_step}")
        if self.hmt_stage_1 and self.hmt_stage_2:
            raise ValueError("hmt_stage_1 and hmt_stage_2 exclude each other; give neither to run both stages")
        if self.dtype == "float16" and (self.use_lora or self.train_backbone):
            raise ValueError("float16 weights cannot be trained; give --dtype bfloat16 or float32")
        if self.use_lora and self.train_backbone:
            raise ValueError(
                "use_lora trains an adapter on a frozen backbone, train_backbone the backbone itself; give one"
            )


@dataclass(kw_only=True)
class SamplingOptions:
    """How the next token is chosen."""

    max_new_tokens: int = 100
    """Tokens to generate at most."""
    do_sample: bool = False
    """Sample instead of taking the likeliest token."""
    temperature: float = 1.0
    """Of sampling."""
    top_k: int = 0
    """Sample from the k likeliest tokens; 0 from all."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that hold this much probability."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that were there before become less likely."""

    @property
    def sampling(self) -> dict[str, Any]:
        """The same settings as arguments of `generate`."""
        return {field.name: getattr(self, field.name) for field in fields(SamplingOptions)}

    def check(self) -> None:
        """Check ranges, then those of the other options.

        Raises:
            ValueError: Naming the flag.
        """
        _positive(self, "max_new_tokens", "temperature", "repetition_penalty", "top_p")
        if self.top_p > 1:
            raise ValueError(f"top_p must be at most 1, got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, got {self.top_k}")
        super().check()  # type: ignore[misc]


@dataclass(kw_only=True)
class GenerateOptions(SamplingOptions, OutputOptions, ModelOptions):
    """Continue a text of any length."""

    prompt: str | None = None
    """The text to continue."""
    prompt_file: Path | None = None
    """A UTF-8 file with the text to continue."""
    memory: Path | None = None
    """Memory file of what was read before the prompt (see hmt remember)."""
    chat: bool = False
    """The prompt is a message to be answered: put it into the tokenizer's chat template."""
    explain: bool = False
    """Show which earlier segments were recalled most, with their text."""

    def check(self) -> None:
        """Check ranges and combinations.

        Raises:
            ValueError: Naming the flag.
        """
        super().check()
        if (self.prompt is None) == (self.prompt_file is None):
            raise ValueError("give the text to continue with one of --prompt and --prompt_file")


@dataclass(kw_only=True)
class ChatOptions(SamplingOptions, OutputOptions, ModelOptions):
    """Talk to the model in the terminal; what was said is kept in a memory that never outgrows the window."""

    memory: Path | None = None
    """Memory file to begin with (see hmt remember)."""
    system: str | None = None
    """System message; that of the chat template by default."""


@dataclass(kw_only=True)
class ServeOptions(SamplingOptions, OutputOptions, ModelOptions):
    """Answer clients of the OpenAI protocol; the flags of sampling hold where a request says nothing."""

    memory: Path | None = None
    """Memory file that every request goes on from (see hmt remember)."""
    host: str = "127.0.0.1"
    """Address to listen on; other machines reach it only if you give another one."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    api_key_file: Path | None = None
    """File with the key that clients must send; by default it is taken from HMT_API_KEY."""
    require_key: bool = True
    """Require a key. Without one, only requests to a loopback address are answered."""
    served_name: str | None = None
    """What clients call the model; by default the last part of its name."""
    max_new_tokens: int = 512
    """Tokens to generate at most, where a request does not say."""

    def check(self) -> None:
        """Check ranges.

        Raises:
            ValueError: Naming the flag.
        """
        super().check()
        if not 0 <= self.port < 1 << 16:
            raise ValueError(f"port must lie between 0 and 65535, got {self.port}")


@dataclass(kw_only=True)
class RememberOptions(OutputOptions, ModelOptions):
    """Read a text of any length once, and keep the memory of it in a file."""

    text: Positional[str]
    """A UTF-8 text file, or - for standard input."""
    out: Path
    """The memory file."""
    append: bool = False
    """Go on from the memory that is in the file."""


@dataclass(kw_only=True)
class ConvertOptions(MemoryConfig):
    """Turn weights of the published HMT program into a checkpoint of this library."""

    state: Path
    """The weights: .safetensors, .pth or .bin (tensors only, nothing is executed), or a DeepSpeed directory."""
    backbone: Path
    """Directory with the backbone's config.json; its tokenizer is copied if it is there."""
    out: Path
    """Directory of the new checkpoint."""
    lora_alpha: int = 32
    """Alpha of the run's LoRA, which its weights do not tell."""


@dataclass(kw_only=True)
class DemoOptions(OutputOptions):
    """The whole story in a few minutes: score, train the memory, score again, draw the picture."""

    model_name: str = "smollm2-135m"
    """Backbone."""
    task_name: str = "stdlib"
    """Text."""
    lengths: str = "1k,2k,4k"
    """Context lengths in tokens."""
    train_minutes: float = 2.0
    """Minutes of training."""
    max_documents: int = 2
    """Documents scored."""
    out: Path = Path("report")
    """Directory of the report."""
    seed: int = 0
    """Of everything drawn at random."""

    def check(self) -> None:
        """Check ranges.

        Raises:
            ValueError: Naming the flag.
        """
        _positive(self, "train_minutes", "max_documents")
        parse_counts(self.lengths)


def _positive(options: object, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be above 0, got {value}")
