"""What a memory keeps, as text that a person can read."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from hmt.memory.state import MemoryState
from hmt.report.recollection import shortened


@dataclass(frozen=True)
class KeptSegment:
    """A segment that is in the bank.

    Attributes:
        segment: Its number, from 0.
        usage: Decayed sum of the recall weights that its memory embeddings received.
        tokens: Of its text.
        text: None without a tokenizer.
    """

    segment: int
    usage: float
    tokens: int
    text: str | None


def kept_segments(memory: MemoryState, tokenizer: PreTrainedTokenizerBase | None, row: int = 0) -> list[KeptSegment]:
    """The segments that a row's bank keeps, oldest first."""
    bank = memory.bank
    usage: dict[int, float] = {}
    for slot in bank.valid[row].nonzero().flatten().tolist():
        number = int(bank.segments[row, slot])
        usage[number] = usage.get(number, 0.0) + float(bank.usage[row, slot])
    kept = []
    for number, value in usage.items():
        tokens = memory.segment_tokens(number, row)
        assert tokens is not None
        text = None if tokenizer is None else str(tokenizer.decode(tokens))
        kept.append(KeptSegment(number, value, len(tokens), text))
    return kept


def describe_kept(segments: list[KeptSegment]) -> str:
    """One line a segment, its text cut in the middle."""
    if not segments:
        return "nothing is kept"
    return "\n".join(f"segment {one.segment:>5}  usage {one.usage:7.3f}  {shortened(one.text)}" for one in segments)
