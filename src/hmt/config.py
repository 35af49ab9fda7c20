"""Settings of a memory: how text becomes segments, window, memory and prompts.

This file is plain Python, so that the command line can build its flags and help from it without importing torch.
Terms are those of He et al., "HMT" (arXiv:2405.06067). A setting that is None follows from the others; the properties
of `MemoryConfig` give the value that holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

Mode = Literal["hmt", "short_term", "rmt", "backbone"]
Sensory = Literal["cache", "reread"]

REMEMBERED_TOKENS = 1_000_000
"""Tokens that a bank of token ids holds by default."""

CACHE_WINDOW, REREAD_WINDOW = 512, 256
"""Default window W of the two forms of sensory memory."""

PUBLISHED: dict[str, Any] = {
    "sensory": "reread",
    "memory_injection": "published",
    "num_recalled_tokens": 0,
    "num_sinks": 0,
}
"""Settings in which the published method differs from the defaults here; see `MemoryConfig.published`."""

KINDS: dict[str, tuple[type, ...]] = {"bool": (bool,), "int": (int,), "float": (int, float)}
"""Types that a value of a field may have; text where it is not listed."""


def setting(default: Any, *, shapes: bool = False, identity: str = "", resume: bool = True) -> Any:
    """A config field that says where it matters.

    Args:
        default: Default value.
        shapes: The field fixes the shape of a parameter: a checkpoint cannot be read with another value.
        identity: Property of `MemoryConfig` that must agree between writing a memory and reading it; "" if any value
            can read the memory.
        resume: A run that is resumed must have the same value.
    """
    return field(default=default, metadata={"shapes": shapes, "identity": identity, "resume": resume})


@dataclass(kw_only=True)
class MemoryConfig:
    """How a segment is read and what is kept of it."""

    mode: Mode = setting("hmt", identity="mode")
    """Memory mode. hmt: recall from a bank of all segments; short_term: only the memory embedding of the segment
    before; rmt: the same without sensory tokens; backbone: no memory."""
    sensory: Sensory | None = setting(None, identity="sensory")
    """Sensory memory, the last tokens before a segment: kept as keys and values in a rolling cache (cache), or
    re-encoded in front of each segment, as published (reread). Default: cache, or reread for a backbone whose positions
    cannot be moved."""
    segment_length: int | None = setting(None, identity="window")
    """Window W: number of positions that a token can attend to, shared by attention sinks, recalled text, memory prompt
    and recent tokens. Default: 512 with --sensory cache, 256 with reread."""
    num_sensory: int | None = setting(None, identity="sensory_tokens")
    """Sensory tokens K: number of recent tokens kept in the window. Default: as many as fit with --sensory cache, 32
    with reread."""
    num_sinks: int = setting(4, identity="sinks")
    """Attention sinks S: number of first tokens of the text that never leave the rolling cache."""
    num_recalled_tokens: int | None = setting(None)
    """Recalled tokens E: maximum number of tokens of earlier text put back into the window to answer a prompt; 0
    disables text recall. Default: a quarter of the window."""
    recall_on: Literal["prompt", "segment"] = setting("prompt")
    """Recall text once per prompt, or for every segment while reading (slower, and no gain for plain text)."""
    num_memory_tokens: int | None = setting(None, shapes=True, identity="prompt_tokens")
    """Memory embeddings R: number of vectors that summarize a segment, and length of the memory prompt. Default: 0 in
    mode hmt with --sensory cache, else 1."""
    sum_fraction: float = setting(0.5, identity="sum_fraction")
    """Fraction of a segment that its summary, the recall query, reads: J = round(L * sum_fraction) of L tokens."""
    recall_query: Literal["prefix", "previous"] | None = setting(None, identity="query")
    """Tokens that the recall query summarizes: the first J of the segment, as published (prefix), or the last J before
    it, which is strictly causal (previous). Default: previous with --sensory cache, else prefix."""
    memory_injection: Literal["published", "gated"] = setting("gated", shapes=True, identity="memory_injection")
    """Memory prompt: the recalled embedding itself (published), or a learned base plus a small normalized share of the
    recalled embedding (gated)."""
    mem_recall_context: int | None = setting(None)
    """Capacity N of the memory bank: memory embeddings, or segments where there are none. Default: enough for a million
    tokens with --sensory cache, 300 with reread."""
    mem_recall_hidden_dim: int = setting(1024, shapes=True, identity="mem_recall_hidden_dim")
    """Width H of the query and key projections of recall."""
    memory_policy: str = setting("fifo")
    """Segment to drop when the bank is full: the oldest (fifo), the least recalled (usage) or the least attended
    (attention); merge combines two neighbors instead."""
    retention_protected: int = setting(4)
    """Number of newest segments that --memory_policy usage never drops."""
    retention_heads: int = setting(4, shapes=True)
    """Attention heads of --memory_policy attention, 16 dimensions each."""
    memory_gain: float = setting(0.2)
    """Initial size of the recalled embedding in a gated memory prompt, relative to the norm of a token embedding."""
    ngram_cache: int = setting(0, identity="ngrams")
    """Maximum context length, in tokens, of the n-gram cache, which predicts repeated text; 0 disables it."""
    dynamic_reading: bool = setting(False, identity="dynamic_reading")
    """Dynamic reading speed: halve the sensory tokens and lengthen the segment after recalling one of the last two
    segments (--sensory reread only)."""
    inject_autoencoder: bool = setting(False, identity="bottleneck")
    """DCT bottleneck: drop the lowest and highest frequencies of the input of each MLP of the backbone."""
    autoencoder_low: float = setting(0.25)
    """Fraction of the frequencies that the DCT bottleneck drops at the low end."""
    autoencoder_high: float = setting(0.25)
    """Fraction of the frequencies that the DCT bottleneck drops at the high end."""
    read_chunk_tokens: int = setting(512, resume=False)
    """Tokens read per forward pass: more is faster and takes more memory; results are the same."""
    summary_batch_tokens: int = setting(2048, resume=False)
    """Tokens summarized per forward pass with --sensory reread: more is faster and takes more memory; results are the
    same."""

    @classmethod
    def published(cls, **overrides: Any) -> Any:
        """Settings of the published method: sensory tokens re-encoded, recalled embeddings as prompts, no text recall.

        Args:
            overrides: Fields to set differently.
        """
        return cls(**PUBLISHED | overrides)

    @property
    def rolling(self) -> bool:
        """True where sensory memory is a rolling cache of keys and values."""
        return self.sensory != "reread"

    @property
    def window(self) -> int:
        """Window W, in positions; where only its parts are given, their sum."""
        if self.segment_length is not None:
            return self.segment_length
        if not self.rolling:
            return REREAD_WINDOW
        if self.num_sensory is None:
            return CACHE_WINDOW
        parts = self.sinks + self.num_sensory + 2 * self.prompt_tokens + 1
        if self.mode != "hmt":
            return parts
        return parts + (parts // 3 if self.num_recalled_tokens is None else self.num_recalled_tokens)

    @property
    def prompt_tokens(self) -> int:
        """Length R of the memory prompt; 0 without memory embeddings."""
        if self.mode == "backbone":
            return 0
        if self.num_memory_tokens is None:
            return 0 if self.rolling and self.mode == "hmt" else 1
        return self.num_memory_tokens

    @property
    def sinks(self) -> int:
        """Attention sinks S; 0 where sensory tokens are re-encoded."""
        return self.num_sinks if self.rolling else 0

    @property
    def recalled_tokens(self) -> int:
        """Budget E of text recall; 0 in modes without a bank."""
        if self.mode != "hmt":
            return 0
        return self.window // 4 if self.num_recalled_tokens is None else self.num_recalled_tokens

    @property
    def sensory_tokens(self) -> int:
        """Sensory tokens K; 0 in mode rmt."""
        if self.mode == "rmt":
            return 0
        if self.num_sensory is not None:
            return self.num_sensory
        if not self.rolling:
            return 32
        return self.window - self.sinks - self.recalled_tokens - 2 * self.prompt_tokens - 1

    @property
    def query(self) -> str:
        """Tokens that the summary reads, "prefix" or "previous"; "" without embedding recall."""
        if not self.recalls:
            return ""
        return self.recall_query or ("previous" if self.rolling else "prefix")

    @property
    def recalls(self) -> bool:
        """True where the memory prompt comes from attention over the bank."""
        return self.mode == "hmt" and self.prompt_tokens > 0

    @property
    def ngrams(self) -> int:
        """Maximum context length of the n-gram cache; 0 in modes without a bank of tokens."""
        return self.ngram_cache if self.mode in ("hmt", "backbone") else 0

    @property
    def bottleneck(self) -> tuple[float, float] | None:
        """Shares of cosine coefficients dropped before each MLP, low and high; None without a bottleneck."""
        return (self.autoencoder_low, self.autoencoder_high) if self.inject_autoencoder else None

    @property
    def fresh_tokens(self) -> int:
        """Tokens L of a segment: W - 2R - K where sensory tokens are re-encoded, half the window with a cache."""
        if self.rolling:
            return max(self.window // 2, 1)
        return self.window - 2 * self.prompt_tokens - self.sensory_tokens

    @property
    def speed_tokens(self) -> int:
        """Extra fresh tokens of a segment that is read fast (dynamic reading), K // 2; else 0."""
        return self.sensory_tokens // 2 if self.dynamic_reading and self.recalls else 0

    @property
    def longest_segment(self) -> int:
        """Fresh tokens of the longest segment."""
        return self.fresh_tokens + self.speed_tokens

    @property
    def summary_tokens(self) -> int:
        """Tokens J that the summary of a segment reads; 0 without embedding recall."""
        return round(self.fresh_tokens * self.sum_fraction) if self.recalls else 0

    @property
    def longest_summary(self) -> int:
        """Tokens that the summary of the longest segment reads."""
        return round(self.longest_segment * self.sum_fraction) if self.recalls else 0

    @property
    def segment_slots(self) -> int:
        """Bank slots of a segment: its R embeddings, or one that holds its token ids alone."""
        return self.prompt_tokens or int(self.keeps_bank)

    @property
    def keeps_bank(self) -> bool:
        """True where more than the last segment is remembered."""
        return self.mode == "hmt" or self.ngrams > 0

    @property
    def capacity(self) -> int:
        """Bank slots kept: N where there is a bank, else the last segment's R, 0 for the plain backbone."""
        if not self.keeps_bank:
            return self.prompt_tokens
        if self.mem_recall_context is not None:
            return self.mem_recall_context
        return REMEMBERED_TOKENS // self.fresh_tokens * self.segment_slots if self.rolling else 300

    @property
    def tail_tokens(self) -> int:
        """Tokens before a segment whose ids are kept: sinks and sensory tokens, and those that a summary reads."""
        return max(self.sensory_tokens + self.sinks, self.longest_summary, self.ngrams - 1, 0)

    def check(self) -> None:
        """Check ranges and combinations.

        Raises:
            ValueError: Naming the field, what is expected and what was given.
        """
        check_kinds(vars(self))
        _one_of(
            self,
            mode=("hmt", "short_term", "rmt", "backbone"),
            sensory=("cache", "reread", None),
            recall_query=("prefix", "previous", None),
            memory_injection=("published", "gated"),
            recall_on=("prompt", "segment"),
        )
        _at_least(
            self, segment_length=2, num_sensory=0, num_sinks=0, num_recalled_tokens=0, num_memory_tokens=0,
            ngram_cache=0, read_chunk_tokens=1, summary_batch_tokens=1, retention_heads=1, mem_recall_context=0,
        )  # fmt: skip
        if min(self.autoencoder_low, self.autoencoder_high) < 0 or self.autoencoder_low + self.autoencoder_high >= 1:
            raise ValueError(
                "autoencoder_low and autoencoder_high must be at least 0 and leave something between them, got "
                f"{self.autoencoder_low} and {self.autoencoder_high}"
            )
        if not 0 < self.sum_fraction <= 1:
            raise ValueError(f"sum_fraction must lie in (0, 1], got {self.sum_fraction}")
        if self.mode in ("short_term", "rmt") and not self.prompt_tokens:
            raise ValueError(f"num_memory_tokens must be at least 1 in mode {self.mode}, got 0")
        self._check_window()
        if self.recalls:
            _at_least(self, mem_recall_hidden_dim=1)
        if self.keeps_bank:
            self._check_bank()

    def _check_window(self) -> None:
        """Check that the parts of the window fit."""
        if self.rolling:
            # A window given as a whole is divided; parts given one by one must fit into it.
            used = self.sinks + self.recalled_tokens + 2 * self.prompt_tokens + 1
            wanted = used + (1 if self.num_sensory is None and self.mode != "rmt" else self.sensory_tokens)
            parts = "num_sinks + num_recalled_tokens + 2 * num_memory_tokens + num_sensory + 1"
            if self.segment_length is not None and wanted > self.window:
                raise ValueError(
                    f"segment_length must be at least {parts} ({wanted}), got {self.segment_length}; "
                    "raise --segment_length"
                )
            if self.recalls and self.query == "prefix":
                raise ValueError("recall_query must be previous with sensory cache, got prefix; give --sensory reread")
            if self.dynamic_reading:
                raise ValueError("dynamic_reading changes the number of re-encoded tokens; give --sensory reread")
            return
        reserved = 2 * self.prompt_tokens + self.sensory_tokens
        if self.window <= reserved:
            raise ValueError(
                f"segment_length must exceed 2 * num_memory_tokens + num_sensory ({reserved}), got {self.window}; "
                "raise --segment_length"
            )
        if self.dynamic_reading and self.recalls and not self.speed_tokens:
            raise ValueError(f"dynamic_reading halves num_sensory, which must be at least 2, got {self.sensory_tokens}")

    def _check_bank(self) -> None:
        """Check that the bank holds something to choose from."""
        if self.recalls and self.summary_tokens < 1:
            raise ValueError(
                f"sum_fraction {self.sum_fraction} of {self.fresh_tokens} fresh tokens leaves nothing to summarize; "
                "raise --sum_fraction or --segment_length"
            )
        if self.capacity < self.segment_slots:
            raise ValueError(
                f"mem_recall_context must hold at least one segment's {self.segment_slots} memory embeddings, "
                f"got {self.capacity}; raise --mem_recall_context"
            )
        if self.memory_policy == "usage":
            segments = self.capacity // self.segment_slots
            if not 1 <= self.retention_protected < segments:
                raise ValueError(
                    f"retention_protected must lie between 1 and {segments - 1}, one less than the segments that "
                    f"mem_recall_context holds, got {self.retention_protected}"
                )


MEMORY_FIELDS: tuple[str, ...] = tuple(f.name for f in fields(MemoryConfig))


def fields_with(key: str) -> tuple[str, ...]:
    """Names of the memory settings whose metadata has something under `key`: shapes, identity or resume."""
    return tuple(f.name for f in fields(MemoryConfig) if f.metadata[key])


def identity_settings(config: MemoryConfig) -> str:
    """Settings that must agree between writing a memory and reading it, as sorted "property=value" pairs."""
    properties = {f.metadata["identity"] for f in fields(MemoryConfig)} - {""}
    if not config.recalls:
        properties -= {"sum_fraction", "mem_recall_hidden_dim", "query"}
    if not config.prompt_tokens:
        properties -= {"memory_injection"}
    return ", ".join(f"{name}={getattr(config, name)}" for name in sorted(properties))


def memory_fields(config: MemoryConfig) -> dict[str, Any]:
    """The memory settings of a config (or of a class derived from it) as a plain dictionary."""
    return {name: getattr(config, name) for name in MEMORY_FIELDS}


def as_first_written(settings: dict[str, Any]) -> dict[str, Any]:
    """Stored settings with what those written before the field `sensory` existed leave unsaid: they mean reread."""
    if "sensory" in settings:
        return settings
    known = {name: value for name, value in settings.items() if name not in ("recall_recency", "recall_selection")}
    if recency := settings.get("recall_recency"):
        raise ValueError(f"recall_recency {recency} is no longer supported; train the memory without it")
    if "copy_context" in known:
        known["ngram_cache"] = known.pop("copy_context")
    return {"segment_length": 256, "num_sensory": 32, "num_memory_tokens": 1} | known | {
        "sensory": "reread", "num_sinks": 0, "num_recalled_tokens": 0,
    }  # fmt: skip


def check_kinds(values: Mapping[str, Any]) -> None:
    """Refuse settings of another type, which files written by hand may have.

    Args:
        values: By name; what is no setting of a memory is ignored.

    Raises:
        ValueError: Naming the setting, its type and what was given.
    """
    for one in fields(MemoryConfig):
        kind = str(one.type)
        value = values.get(one.name, one.default)
        if value is None and one.default is None:
            continue
        wanted = KINDS.get(kind.removesuffix(" | None"), (str,))
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            raise ValueError(f"{one.name} must be {kind}, got {value!r:.80}")


def _at_least(config: MemoryConfig, **minima: int) -> None:
    for name, minimum in minima.items():
        value = getattr(config, name)
        if value is not None and value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")


def _one_of(config: MemoryConfig, **choices: tuple[Any, ...]) -> None:
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            named = ", ".join(str(choice) for choice in allowed if choice is not None)
            raise ValueError(f"{name} must be one of {named}, got {getattr(config, name)!r}")
