"""What a memory is: every setting that decides how text becomes segments, memory and prompts.

This file is plain Python on purpose: the command line builds its flags and help from it without importing torch.
The terms are those of He et al., "HMT" (arXiv:2405.06067); the README has a table of them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

Mode = Literal["hmt", "short_term", "rmt", "backbone"]


@dataclass(kw_only=True)
class MemoryConfig:
    """How a segment is read and what is kept of it."""

    mode: Mode = "hmt"
    """hmt recalls from a bank, short_term has the last embedding only, rmt no sensory tokens, backbone no memory."""
    segment_length: int = 256
    """Window W: positions the backbone sees in one step, counting prompts, sensory tokens and fresh tokens."""
    num_sensory: int = 32
    """Sensory tokens K: the last tokens before the segment, read again."""
    num_memory_tokens: int = 1
    """Memory embeddings R that a segment leaves behind, and the length of the memory prompt."""
    sum_fraction: float = 0.5
    """Share of a segment's fresh tokens that its summary reads, J = round(L * sum_fraction)."""
    recall_query: Literal["prefix", "previous"] = "prefix"
    """What asks the bank: the segment's first J tokens (as published) or the last J before it (strictly causal)."""
    num_recalled_tokens: int = 0
    """Recalled tokens E: tokens of earlier segments, read again before the sensory tokens (hmt and backbone)."""
    recall_selection: Literal["attention", "similarity", "lexical"] = "lexical"
    """Where they are from: the segment recalled most, the one most similar to the summary, or anywhere by phrases."""
    copy_context: int = 0
    """Tokens C of the longest context that is looked up in the remembered text: what followed it there becomes likelier
    (hmt and backbone); 0 for no copying. Costs no position of the window."""
    memory_injection: Literal["published", "gated"] = "gated"
    """How a recalled embedding becomes a prompt: as it is, or as a small normalised share of a learned base."""
    dynamic_reading: bool = False
    """Read on faster after recalling one of the last two segments: K/2 sensory tokens, K/2 more fresh ones (hmt)."""
    mem_recall_context: int = 300
    """Capacity N of the memory bank, in memory embeddings."""
    mem_recall_hidden_dim: int = 1024
    """Width H of the two recall projections."""
    recall_recency: float = 0.0
    """Where a new model's recall starts to look: minus so many times the log of a segment's age is added to its recall
    logits, learned from there; 0 for all segments alike, as published."""
    memory_policy: str = "fifo"
    """What leaves a full bank: fifo the oldest, usage the least recalled, attention the least attended, merge none."""
    retention_protected: int = 4
    """Newest segments that the policy usage keeps in any case."""
    retention_heads: int = 4
    """Heads of the policy attention, 16 wide each."""
    memory_gain: float = 0.2
    """Starting share of the recalled embedding in a gated prompt, relative to the size of a token embedding."""
    inject_autoencoder: bool = False
    """Drop the lowest and the highest cosine coefficients of what enters each MLP of the backbone."""
    autoencoder_low: float = 0.25
    """Share of the coefficients that is dropped at the lower end."""
    autoencoder_high: float = 0.25
    """Share of the coefficients that is dropped at the upper end."""
    summary_batch_tokens: int = 2048
    """Positions summarised in one call of the backbone: memory against speed, never a change of the result."""

    @property
    def recalls(self) -> bool:
        """True where the prompt comes from attention over the bank."""
        return self.mode == "hmt"

    @property
    def prompt_tokens(self) -> int:
        """Length R of the memory prompt, 0 without memory."""
        return 0 if self.mode == "backbone" else self.num_memory_tokens

    @property
    def max_sensory(self) -> int:
        """Sensory tokens K of this mode (rmt has none)."""
        return 0 if self.mode == "rmt" else self.num_sensory

    @property
    def recalled_tokens(self) -> int:
        """Recalled tokens E of this mode (short_term and rmt have no bank to take them from)."""
        return self.num_recalled_tokens if self.mode in ("hmt", "backbone") else 0

    @property
    def copied_context(self) -> int:
        """Tokens C of the longest context that this mode looks up."""
        return self.copy_context if self.mode in ("hmt", "backbone") else 0

    @property
    def queries(self) -> bool:
        """True where something of the bank is chosen by a query: embeddings, tokens or both."""
        return self.recalls or self.recalled_tokens > 0

    @property
    def fresh_tokens(self) -> int:
        """New tokens per segment, L = W - 2R - K - E."""
        return self.segment_length - 2 * self.prompt_tokens - self.max_sensory - self.recalled_tokens

    @property
    def speed_tokens(self) -> int:
        """What a segment that is read fast has more of fresh tokens and less of sensory ones, K // 2 (else 0)."""
        return self.num_sensory // 2 if self.dynamic_reading and self.recalls else 0

    @property
    def longest_segment(self) -> int:
        """Fresh tokens of the longest segment: those of one that is read fast, where there are any."""
        return self.fresh_tokens + self.speed_tokens

    @property
    def summary_tokens(self) -> int:
        """Fresh tokens that a whole segment's query reads, J; 0 in modes without a query."""
        return round(self.fresh_tokens * self.sum_fraction) if self.queries else 0

    @property
    def longest_summary(self) -> int:
        """Fresh tokens that the query of the longest segment reads."""
        return round(self.longest_segment * self.sum_fraction) if self.queries else 0

    @property
    def segment_slots(self) -> int:
        """Bank slots of a segment: its R embeddings, or one where only its tokens are kept."""
        return self.prompt_tokens or int(self.keeps_bank)

    @property
    def keeps_bank(self) -> bool:
        """True where more than the last segment is remembered: something is recalled, read again or copied."""
        return self.queries or self.copied_context > 0

    @property
    def capacity(self) -> int:
        """Bank slots kept: N where there is a bank, else the last segment's R, 0 for the plain backbone."""
        return self.mem_recall_context if self.keeps_bank else self.prompt_tokens

    @property
    def tail_tokens(self) -> int:
        """Tokens before a segment that it may need: sensory tokens, and those a query reads."""
        return max(self.max_sensory, self.longest_summary, self.copied_context - 1)

    @property
    def near_segments(self) -> int:
        """Segments before the one at hand that no token is recalled from: those in reach of the sensory tokens."""
        return max(-(-self.max_sensory // self.fresh_tokens), 1)

    def check(self) -> None:
        """Check ranges and combinations.

        Raises:
            ValueError: Naming the field, what is expected and what was given.
        """
        _at_least(self, num_sensory=0, num_memory_tokens=1, summary_batch_tokens=1, retention_heads=1)
        _at_least(self, num_recalled_tokens=0, copy_context=0)
        _one_of(
            self,
            mode=("hmt", "short_term", "rmt", "backbone"),
            recall_query=("prefix", "previous"),
            memory_injection=("published", "gated"),
            recall_selection=("attention", "similarity", "lexical"),
        )
        if min(self.autoencoder_low, self.autoencoder_high) < 0 or self.autoencoder_low + self.autoencoder_high >= 1:
            raise ValueError(
                "autoencoder_low and autoencoder_high must be at least 0 and leave something between them, got "
                f"{self.autoencoder_low} and {self.autoencoder_high}"
            )
        if not 0 < self.sum_fraction <= 1:
            raise ValueError(f"sum_fraction must lie in (0, 1], got {self.sum_fraction}")
        reserved = 2 * self.prompt_tokens + self.max_sensory + self.recalled_tokens
        if self.segment_length <= reserved:
            parts = "2 * num_memory_tokens + num_sensory" + " + num_recalled_tokens" * (self.recalled_tokens > 0)
            raise ValueError(
                f"segment_length must exceed {parts} ({reserved}), got {self.segment_length}; raise --segment_length"
            )
        if self.recalls:
            _at_least(self, mem_recall_hidden_dim=1, recall_recency=0)
            if self.dynamic_reading and not self.speed_tokens:
                raise ValueError(
                    f"dynamic_reading halves num_sensory, which must be at least 2, got {self.num_sensory}"
                )
        elif self.recalled_tokens and self.recall_selection != "lexical":
            raise ValueError(
                f"recall_selection {self.recall_selection} compares memory embeddings, which mode backbone has none "
                "of; give --recall_selection lexical or --mode hmt"
            )
        if self.keeps_bank:
            self._check_bank()

    def _check_bank(self) -> None:
        """Check what is chosen from a bank, and that the bank holds something to choose from."""
        if self.queries and self.summary_tokens < 1:
            raise ValueError(
                f"sum_fraction {self.sum_fraction} of {self.fresh_tokens} fresh tokens leaves nothing to summarise; "
                "raise --sum_fraction or --segment_length"
            )
        if self.mem_recall_context < self.segment_slots:
            raise ValueError(
                f"mem_recall_context must hold at least one segment's {self.segment_slots} memory embeddings, "
                f"got {self.mem_recall_context}; raise --mem_recall_context"
            )
        if self.memory_policy == "usage":
            segments = self.mem_recall_context // self.segment_slots
            if not 1 <= self.retention_protected < segments:
                raise ValueError(
                    f"retention_protected must lie between 1 and {segments - 1}, one less than the segments that "
                    f"mem_recall_context holds, got {self.retention_protected}"
                )


MEMORY_FIELDS: tuple[str, ...] = tuple(f.name for f in fields(MemoryConfig))


def memory_fields(config: MemoryConfig) -> dict[str, Any]:
    """The memory settings of a config (or of a class derived from it) as a plain dictionary."""
    return {name: getattr(config, name) for name in MEMORY_FIELDS}


def _at_least(config: MemoryConfig, **minima: int) -> None:
    for name, minimum in minima.items():
        if getattr(config, name) < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {getattr(config, name)}")


def _one_of(config: MemoryConfig, **choices: tuple[str, ...]) -> None:
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(config, name)!r}")
