"""What runs have in common: which model, what text, where the numbers go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hmt.config import MemoryConfig

KILO = 1024


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
    hub_map: str | None = None
    """Local directories that stand for hub ids: ID=DIR,ID=DIR (also HMT_HUB_MAP)."""
    cache_dir: Path | None = None
    """Where the hub's files are kept (also HF_HOME)."""


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
