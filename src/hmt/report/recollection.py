"""What was recalled, as text that a person can read."""

from __future__ import annotations

from collections import Counter
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
        read_again: The parts of it that were put into the window again, most often read first.
    """

    number: int
    share: float
    text: str | None
    read_again: tuple[str, ...] = ()


def recalled_segments(
    trace: RecallTrace | None, memory: MemoryState | None, tokenizer: PreTrainedTokenizerBase, count: int = 5
) -> list[RecalledSegment]:
    """The segments that were recalled most, strongest first, then others that were read again, with their text."""
    if trace is None or memory is None:
        return []
    runs: dict[int, Counter[str]] = {}
    for number, run in trace.read_again():
        runs.setdefault(number, Counter())[str(tokenizer.decode(run))] += 1
    shares = dict(trace.strongest())
    often = sorted(runs, key=lambda number: runs[number].total(), reverse=True)
    found = []
    for number in dict.fromkeys([*list(shares)[:count], *often[:count]]):
        tokens = memory.segment_tokens(number)
        text = None if tokens is None else str(tokenizer.decode(tokens))
        read_again = tuple(run for run, _ in runs.get(number, Counter()).most_common())
        found.append(RecalledSegment(number, shares.get(number, 0.0), text, read_again))
    return found


def describe_recall(segments: list[RecalledSegment]) -> str:
    """One line a segment and one for each part that was read again, texts cut in the middle."""
    if not segments:
        return "nothing was recalled"
    lines = []
    for one in segments:
        lines.append(f"segment {one.number:>5}  {one.share:6.1%}  {_shortened(one.text)}")
        lines += [f"           read again  {_shortened(part)}" for part in one.read_again]
    return "\n".join(lines)


def _shortened(text: str | None) -> str:
    if text is None:
        return "(no longer kept)"
    line = " ".join(text.split())
    if len(line) <= SHOWN_CHARACTERS:
        return line
    half = SHOWN_CHARACTERS // 2
    return f"{line[:half]} ... {line[-half:]}"
