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


def describe_recall(segments: list[RecalledSegment]) -> str:
    """One line a segment, its text cut in the middle."""
    if not segments:
        return "nothing was recalled"
    return "\n".join(f"segment {one.number:>5}  {one.share:6.1%}  {shortened(one.text)}" for one in segments)


def shortened(text: str | None) -> str:
    """A text on one line, cut in the middle."""
    if text is None:
        return "(no longer kept)"
    line = " ".join(text.split())
    if len(line) <= SHOWN_CHARACTERS:
        return line
    half = SHOWN_CHARACTERS // 2
    return f"{line[:half]} ... {line[-half:]}"
