"""What was recalled, as text that a person can read."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hmt.memory.state import MemoryState
from hmt.model.outputs import RecallTrace

SHOWN_CHARACTERS = 200
SHOWN_PARTS = 5


@dataclass(frozen=True)
class RecalledSegment:
    """A segment that was recalled, read again or copied from.

    Attributes:
        number: Of the segment, from 0.
        share: Of all that was recalled; 0 where it was copied from alone.
        text: Of the segment; None if the bank no longer keeps it.
        read_again: The parts of it that were put into the window again, most often read first.
        copied: What was written that had followed the same words in it, the longest first.
    """

    number: int
    share: float
    text: str | None
    read_again: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()


def recalled_segments(
    trace: RecallTrace | None, memory: MemoryState | None, tokenizer: PreTrainedTokenizerBase, count: int = 5
) -> list[RecalledSegment]:
    """The segments that were recalled most, strongest first, then others that were read again or copied from."""
    if trace is None or memory is None:
        return []
    shares = dict(trace.strongest())
    runs_copied = [(number, run) for number, run in trace.copied_runs() if len(run) > 1]  # one token says little
    read_again, copied = _by_segment(trace.read_again()), _by_segment(runs_copied)
    shown = list(shares)[:count]
    for runs in (read_again, copied):
        shown += sorted(runs, key=lambda number: sum(map(len, runs[number])), reverse=True)[:count]
    found = []
    for number in dict.fromkeys(shown):
        tokens = memory.segment_tokens(number)
        text = None if tokens is None else str(tokenizer.decode(tokens))
        often = Counter(str(tokenizer.decode(run)) for run in read_again[number]).most_common()
        longest = (str(tokenizer.decode(run)) for run in sorted(copied[number], key=len, reverse=True))
        parts = tuple(part for part, _ in often), tuple(dict.fromkeys(longest))
        found.append(RecalledSegment(number, shares.get(number, 0.0), text, *parts))
    return found


def _by_segment(runs: list[tuple[int, Tensor]]) -> dict[int, list[Tensor]]:
    """Runs of tokens by the number of their segment."""
    found: dict[int, list[Tensor]] = defaultdict(list)
    for number, run in runs:
        found[number].append(run)
    return found


def describe_recall(segments: list[RecalledSegment]) -> str:
    """A line for each segment and for the first parts of it that were read again or copied, texts cut in the middle."""
    if not segments:
        return "nothing was recalled"
    lines = []
    for one in segments:
        share = f"{one.share:6.1%}" if one.share else "     -"
        lines.append(f"segment {one.number:>5}  {share}  {shortened(one.text)}")
        for told, parts in (("read again", one.read_again), ("copied    ", one.copied)):
            lines += [f"           {told}  {shortened(part)}" for part in parts[:SHOWN_PARTS]]
    return "\n".join(lines)


def shortened(text: str | None) -> str:
    """A text on one line, cut in the middle."""
    if text is None:
        return "(no longer kept)"
    line = " ".join(text.split())
    if len(line) <= SHOWN_CHARACTERS:
        return line
    half = SHOWN_CHARACTERS // 2
    return f"{line[:half]} ... {line[-half:]}"


MAP_DOCUMENTS = 3
MAP_SEGMENTS = 200
MAP_SLOTS = 16


@dataclass
class RecallMap:
    """What each segment of a few texts recalled, as figures that a heat map can be drawn from.

    Attributes:
        tokenizer: Writes the segments out.
        segments: One entry a segment: document, segment (from 0), its text, the strongest 16 of those it recalled
            as pairs (segment, weight), and the distance to the strongest, 0 where nothing was recalled. Of at most
            3 documents, the last 200 segments of each.
        distances: How often each recall distance was seen, over all texts.
    """

    tokenizer: PreTrainedTokenizerBase
    segments: list[dict[str, Any]] = field(default_factory=list)
    distances: Counter[int] = field(default_factory=Counter)

    def add(self, document: str, ids: Tensor, trace: RecallTrace, row: int) -> None:
        """Note one row of a call that read a text from its beginning.

        Args:
            document: Name of the text.
            ids: The text, (tokens,) int64.
            trace: What the call recalled.
            row: Of the call.
        """
        distances = [int(one[row]) for one in trace.by_segment]
        self.distances.update(distance for distance in distances if distance > 0)
        seen = {entry["document"] for entry in self.segments}
        if document in seen or len(seen) == MAP_DOCUMENTS:
            return
        silent = len(distances) - len(trace.weights)  # the first segments have nothing to recall
        bounds = trace.bounds(len(ids), row)
        for number in range(max(len(bounds) - 1 - MAP_SEGMENTS, 0), len(bounds) - 1):
            text = self.tokenizer.decode(ids[bounds[number] : bounds[number + 1]])
            mass: Counter[int] = Counter()
            if number >= silent and distances[number]:
                weights = trace.weights[number - silent][row].mean(dim=0).tolist()
                for origin, weight in zip(trace.segments[number - silent][row].tolist(), weights, strict=True):
                    mass[origin] += weight
            slots = [[origin, round(weight, 4)] for origin, weight in mass.most_common(MAP_SLOTS) if weight > 0]
            self.segments.append(
                {
                    "document": document, "segment": number, "text": shortened(str(text)),
                    "weights": slots, "distance": distances[number],
                }
            )  # fmt: skip
