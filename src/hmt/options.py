"""What runs have in common: which model, what text, where the numbers go."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from hmt.config import MemoryConfig

KILO = 1024

API_KEY = "HMT_API_KEY"
"""Environment variable with the key that clients of a server must send."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Names of this machine that no other machine can use."""

GREEDY_TEMPERATURE = 1e-5
"""Below this temperature the likeliest token is taken: dividing by less gives numbers that are not finite."""


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


def parse_depths(text: str) -> list[float]:
    """Depths in a context, ascending, such as "0,0.5,1".

    Raises:
        ValueError: If one is no number from 0 to 1.
    """
    try:
        depths = sorted({float(part) for part in text.split(",") if part.strip()})
    except ValueError:
        depths = [-1.0]
    if any(not 0 <= depth <= 1 for depth in depths):
        raise ValueError(f"depths must be numbers from 0 to 1 with commas between them, got {text!r}")
    return depths


def parse_share(text: str | None) -> tuple[int | None, float]:
    """A number of documents or a share of them, such as 50 or 2%: the number or None, and the share.

    Raises:
        ValueError: If it is neither.
    """
    if text is None:
        return None, 1.0
    number, percent, rest = text.strip().partition("%")
    try:
        value = float(number) if percent else int(number)
    except ValueError:
        value = 0
    if value <= 0 or rest or (percent and value > 100):
        raise ValueError(f"train_set_split must be a number of documents or a percentage, as 50 or 2%, got {text!r}")
    return (None, value / 100) if percent else (int(value), 1.0)


def check_positive(options: object, *names: str) -> None:
    """Make sure that these fields, where they are set, are above 0.

    Raises:
        ValueError: Naming the flag.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be above 0, got {value}")


@dataclass(kw_only=True)
class HubOptions:
    """What models and texts have in common."""

    seed: int = 0
    """Of everything drawn at random."""
    hub_map: str | None = None
    """Local directories that stand for names and hub ids: ID=DIR,ID=DIR (also HMT_HUB_MAP)."""
    cache_dir: Path | None = None
    """Where the hub's files are kept (also HF_HOME)."""


@dataclass(kw_only=True)
class ModelOptions(HubOptions, MemoryConfig):
    """Which model, and how it reads."""

    model_name: str = "smollm2-135m"
    """Backbone: a directory, a hub id, or smollm2-135m, which needs no hub."""
    load_from_ckpt: str | None = None
    """Checkpoint directory (or hub id) to use instead; flags that are not given take its values."""
    gguf_file: str | None = None
    """GGUF file in the backbone's directory or repository."""
    revision: str | None = None
    """Revision of a hub id."""
    trust_remote_code: bool = False
    """Run code that comes with the backbone."""
    verify: bool = False
    """Compare the checkpoint's weights with its manifest by SHA-256; without, by sizes and a fast checksum."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the backbone's weights; auto is that of the checkpoint."""
    device: str = "auto"
    """Where to run: cpu, cuda, cuda:1, mps; auto takes an accelerator if there is one."""

    @staticmethod
    def inherited(stored: dict[str, Any]) -> dict[str, Any]:
        """Values of flags that were not given, from what a checkpoint says of itself."""
        return stored


@dataclass(kw_only=True)
class ReadingOptions(ModelOptions):
    """How a model reads that is not trained meanwhile."""

    compile: bool = False
    """Compile the backbone for whole segments: a minute or two at the start, faster afterwards."""


@dataclass(kw_only=True)
class TaskOptions(HubOptions):
    """What text, and which questions about it."""

    task_name: str = "stdlib"
    """A name that hmt tasks lists, a directory with train, validation and test, a file, or a hub id."""
    task_subset: str | None = None
    """Configuration or variant of the task."""
    text_column: str = "text"
    """Column that holds the text in tables."""
    max_documents: int | None = None
    """Use at most so many documents."""
    shuffle: bool = False
    """Take documents and questions in an order drawn with the seed."""
    streaming: bool = False
    """Read a hub's data set row by row instead of fetching it first."""
    fuse_size: int = 2
    """Items whose contexts are put together into one (pubmed_qa)."""
    haystack: str | None = None
    """Text task that needle, babi and recite are made of; by default stdlib, and fineweb for recite."""
    context_lengths: str = "1k,4k"
    """Lengths of the contexts of needle, babi and recite, in tokens."""
    depths: str = "0,0.25,0.5,0.75,1"
    """Depths of what is asked for in needle and babi: 0 is the beginning of the context, 1 its end."""
    per_cell: int = 10
    """Questions of needle and babi for each pair of length and depth."""

    def check_task(self) -> None:
        """Check ranges and combinations.

        Raises:
            ValueError: Naming the flag.
        """
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
    """What text, and what is done to it."""

    interleave_dataset: bool = False
    """Mix every two documents: so many tokens of the one, so many of the other."""
    interleave_len: int = 100
    """Tokens of each in turn."""
    dilate_dataset: bool = False
    """Put filler between every dilate_len tokens of a document."""
    dilate_len: int = 888
    """Tokens of the document and of filler in turn."""
    dilate_str: str = "$"
    """The filler; its first token is repeated."""

    def check_task(self) -> None:
        """Check ranges and combinations.

        Raises:
            ValueError: Naming the flag.
        """
        super().check_task()
        check_positive(self, "interleave_len", "dilate_len")
        if self.interleave_dataset and self.dilate_dataset:
            raise ValueError("interleave_dataset and dilate_dataset exclude each other")
        if self.dilate_dataset and not self.dilate_str:
            raise ValueError("dilate_str must be some text, got ''")


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
        settings = {field.name: getattr(self, field.name) for field in fields(SamplingOptions)}
        settings["do_sample"] = self.do_sample and self.temperature >= GREEDY_TEMPERATURE
        if not settings["do_sample"]:
            settings = {
                name: value for name, value in settings.items() if name not in ("temperature", "top_k", "top_p")
            }
        return settings

    def check(self) -> None:
        """Check ranges, then those of the other options.

        Raises:
            ValueError: Naming the flag.
        """
        check_positive(self, "max_new_tokens", "temperature", "repetition_penalty", "top_p")
        if self.top_p > 1:
            raise ValueError(f"top_p must be at most 1, got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, got {self.top_k}")
        super().check()  # type: ignore[misc]


@dataclass(kw_only=True)
class OutputOptions:
    """Where the numbers go."""

    json: Path | None = None
    """Write the numbers to this file."""
