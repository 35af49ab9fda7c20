"""What was recalled, as text that a person can read."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from hmt.memory.state import MemoryState
from hmt.model.outputs import RecallTrace

SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class RecalledSegment:
    """A segment that was recalled.

    Attributes:
        number: Of the segment, from 0.
        share: Of all that was recalled.
        text: Of the segment; None if the bank no longer keeps it.
    """

    number: int
    share: float
    text: str | None


def recalled_segments(
    trace: RecallTrace | None, memory: MemoryState | None, tokenizer: PreTrainedTokenizerBase, count: int = 5
) -> list[RecalledSegment]:
    """The segments that were recalled most, strongest first, with their text."""
    if trace is None or memory is None:
        return []
    found = []
    for number, share in trace.strongest(count):
        tokens = memory.segment_tokens(number)
        found.append(RecalledSegment(number, share, None if tokens is None else str(tokenizer.decode(tokens))))
    return found


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
    return "\n".join(f"segment {one.segment:>5}  usage {one.usage:7.3f}  {_shortened(one.text)}" for one in segments)


def describe_recall(segments: list[RecalledSegment]) -> str:
    """One line a segment, its text cut in the middle."""
    if not segments:
        return "nothing was recalled"
    return "\n".join(f"segment {one.number:>5}  {one.share:6.1%}  {_shortened(one.text)}" for one in segments)


def _shortened(text: str | None) -> str:
    if text is None:
        return "(no longer kept)"
    line = " ".join(text.split())
    if len(line) <= SHOWN_CHARACTERS:
        return line
    half = SHOWN_CHARACTERS // 2
    return f"{line[:half]} ... {line[-half:]}"
