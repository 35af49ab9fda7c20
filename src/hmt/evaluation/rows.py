"""Rows of an evaluation: one entry says everything about a method of reading. Plain Python: `--help` needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hmt.config import MemoryConfig


@dataclass(frozen=True)
class Row:
    """A method of reading.

    Attributes:
        settings: Changes of the memory settings, in a window of the same size; a form of sensory memory other than the
            model's own brings its own defaults.
        trained: The row uses learned parts of the memory; else the backbone's weights alone.
        windows: The backbone reads windows of raw text and keeps no memory: the "longest" that it was made for, or
            windows of W tokens, "strided".
        retrieval: Passages that a question gets: found by "bm25", those that hold the answer ("oracle"), or "random"
            ones. Otherwise the model recalls by itself.
        control: The row measures what is left of another one: with the bank of "another_text", with "given_passages",
            or in a text from which the answer was taken out ("no_answer").
        tasks: The row scores "text", answers "questions", or both.
    """

    settings: dict[str, object]
    trained: bool = False
    windows: Literal["longest", "strided"] | None = None
    retrieval: Literal["bm25", "oracle", "random"] | None = None
    control: Literal["another_text", "given_passages", "no_answer"] | None = None
    tasks: tuple[Literal["text", "questions"], ...] = ("text", "questions")


NO_MEMORY: dict[str, object] = {"mode": "backbone", "num_recalled_tokens": 0, "ngram_cache": 0}
SINKS: dict[str, object] = {**NO_MEMORY, "sensory": "cache"}
NGRAM: dict[str, object] = {"mode": "backbone", "num_recalled_tokens": 0, "sensory": "cache", "memory_policy": "fifo"}
REREAD: dict[str, object] = {"sensory": "reread", "ngram_cache": 0}
HMT: dict[str, object] = {"mode": "hmt", **REREAD}
HMT_CACHE: dict[str, object] = {"mode": "hmt", "sensory": "cache", "ngram_cache": 0, "recall_query": None}
RECALL: dict[str, object] = {"mode": "hmt", "sensory": "cache", "ngram_cache": 0, "num_memory_tokens": 0}

ROWS: dict[str, Row] = {
    "full": Row({}, windows="longest"),
    "recompute": Row({}, windows="strided", tasks=("text",)),
    "sliding": Row({**SINKS, "num_sinks": 0}),
    "sinks": Row(SINKS),
    "isolated": Row({**NO_MEMORY, "sensory": "reread", "num_sensory": 0}),
    "backbone": Row({**NO_MEMORY, "sensory": "reread"}),
    "ngram": Row(NGRAM),
    "ngram_shuffled": Row(NGRAM, control="another_text", tasks=("text",)),
    "rmt": Row({"mode": "rmt", **REREAD}, trained=True),
    "short_term": Row({"mode": "short_term", **REREAD}, trained=True),
    "hmt": Row(HMT, trained=True),
    "hmt_previous": Row({**HMT, "recall_query": "previous"}, trained=True),
    "hmt_shuffled": Row(HMT, trained=True, control="another_text", tasks=("text",)),
    "hmt_cache": Row(HMT_CACHE, trained=True),
    "recall": Row(RECALL),
    "bm25": Row(SINKS, retrieval="bm25", tasks=("questions",)),
    "oracle": Row(RECALL, retrieval="oracle", control="given_passages", tasks=("questions",)),
    "random": Row(RECALL, retrieval="random", control="given_passages", tasks=("questions",)),
    "absent": Row(RECALL, control="no_answer", tasks=("questions",)),
}
"""Methods that an evaluation can put side by side, by their standard names."""


def parse_rows(modes: str, known: Sequence[str] = tuple(ROWS)) -> list[str]:
    """Return the names in a flag like "sinks,hmt", each once.

    Raises:
        ValueError: If there is none, or one that is not known.
    """
    names = list(dict.fromkeys(name.strip() for name in modes.split(",") if name.strip()))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f"modes must be of {', '.join(known)}, got {', '.join(unknown) or modes!r}")
    return names


def row_settings(config: MemoryConfig, row: str) -> dict[str, object]:
    """Return the changes of a model's memory settings that make it read as a row does, in a window of the same size."""
    settings = dict(ROWS[row].settings)
    form = settings.get("sensory", config.sensory)
    if form != config.sensory:  # what is said of one form of sensory memory does not hold for the other
        own = ("num_sensory", "num_memory_tokens", "recall_query", "mem_recall_context")
        room = {"num_sinks": 4, "num_recalled_tokens": None} if form == "cache" else {"num_recalled_tokens": 0}
        settings = dict.fromkeys(own) | {"num_sinks": 0} | room | settings
    elif form == "cache":
        settings = {"num_sensory": None} | settings
    if row == "hmt_cache":
        settings["num_memory_tokens"] = config.num_memory_tokens or 1
    return {"segment_length": config.window, **settings}
