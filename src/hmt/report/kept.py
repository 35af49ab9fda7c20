"""Segments that a memory keeps, for people to read."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hmt.memory.bank import Bank
from hmt.memory.retention import RetentionPolicy
from hmt.memory.state import MemoryState
from hmt.report.recollection import shortened


@dataclass(frozen=True)
class KeptSegment:
    """A segment that is in the bank.

    Attributes:
        segment: Its number, from 0.
        usage: Decayed sum of the recall weights that its memory embeddings received.
        score: Mean score of its memory embeddings by the retention policy; None if the policy has none for it.
        tokens: Length of its text.
        text: Its text; None without a tokenizer.
    """

    segment: int
    usage: float
    score: float | None
    tokens: int
    text: str | None


def kept_segments(
    memory: MemoryState,
    tokenizer: PreTrainedTokenizerBase | None,
    row: int = 0,
    policy: RetentionPolicy | None = None,
) -> list[KeptSegment]:
    """Return the segments that a row's bank keeps, oldest first."""
    bank = memory.bank
    scores = _scores(policy, bank)
    slots: dict[int, list[int]] = {}
    for slot in bank.valid[row].nonzero().flatten().tolist():
        slots.setdefault(int(bank.segments[row, slot]), []).append(slot)
    kept = []
    for number, own in slots.items():
        tokens = memory.segment_tokens(number, row)
        assert tokens is not None
        text = None if tokenizer is None else str(tokenizer.decode(tokens))
        score = None if scores is None else float(scores[row, own].mean())
        if score is not None and not math.isfinite(score):
            score = None
        kept.append(KeptSegment(number, float(bank.usage[row, own].sum()), score, len(tokens), text))
    return kept


@torch.no_grad()
def _scores(policy: RetentionPolicy | None, bank: Bank) -> Tensor | None:
    """Scores of the slots, (B, N), or None if the policy has none."""
    if policy is None or type(policy).scores is RetentionPolicy.scores:
        return None
    return policy.scores(bank)


def describe_kept(segments: list[KeptSegment]) -> str:
    """Format one line per segment, its text cut in the middle."""
    if not segments:
        return "nothing is kept"
    lines = []
    for one in segments:
        score = "" if one.score is None else f"score {one.score:7.3f}  "
        lines.append(f"segment {one.segment:>5}  usage {one.usage:7.3f}  {score}{shortened(one.text)}")
    return "\n".join(lines)
