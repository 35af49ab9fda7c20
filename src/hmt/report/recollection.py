"""Recalled and kept text, for people to read, and recall by segment, to be drawn."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hmt.memory.bank import Bank
from hmt.memory.retention import RetentionPolicy
from hmt.memory.state import MemoryState
from hmt.model.outputs import RecallTrace

SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class RecalledSegment:
    """A segment whose memory embeddings were recalled.

    Attributes:
        number: Number of the segment, from 0.
        share: Share of all that was recalled.
        text: Its text; None if the bank no longer keeps it.
    """

    number: int
    share: float
    text: str | None


@dataclass(frozen=True)
class RecalledPassage:
    """A passage of remembered text that was put into the window.

    Attributes:
        start: Tokens of the text before it.
        tokens: Its length.
        score: Weight of the phrases it shares with the prompt, in nats.
        text: Its text.
    """

    start: int
    tokens: int
    score: float
    text: str


def recalled_segments(
    trace: RecallTrace | None, memory: MemoryState | None, tokenizer: PreTrainedTokenizerBase, count: int = 5
) -> list[RecalledSegment]:
    """Return the segments whose embeddings were recalled most, strongest first."""
    if trace is None or memory is None:
        return []
    found = []
    for number, share in trace.strongest(count):
        tokens = memory.segment_tokens(number)
        found.append(RecalledSegment(number, share, None if tokens is None else str(tokenizer.decode(tokens))))
    return found


def recalled_passages(
    trace: RecallTrace | None, tokenizer: PreTrainedTokenizerBase, row: int = 0
) -> list[RecalledPassage]:
    """Return the passages that a row recalled, oldest first."""
    passages = [] if trace is None else trace.of_row(row)
    return [
        RecalledPassage(one.start, len(one.ids), one.score, str(tokenizer.decode(one.ids.tolist()))) for one in passages
    ]


def describe_recall(segments: list[RecalledSegment], passages: list[RecalledPassage]) -> str:
    """Format the recalled passages as they stand in the text, and a line for each recalled segment."""
    if not segments and not passages:
        return "nothing was recalled"
    lines = []
    for one in passages:
        lines.append(f"recalled tokens {one.start:,} to {one.start + one.tokens:,} (score {one.score:.1f}):")
        lines += [f"    {line}" for line in one.text.strip().splitlines()]
    lines += [f"segment {one.number:>5}  {one.share:6.1%}  {shortened(one.text)}" for one in segments]
    return "\n".join(lines)


def shortened(text: str | None) -> str:
    """Return a text on one line, cut in the middle."""
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
    """Recall of each segment of a few texts, as figures that a heat map can be drawn from.

    Attributes:
        tokenizer: Tokenizer of the model.
        segments: One entry per segment of up to 3 documents, the last 200 of each: document, segment (from 0), its
            text, the 16 strongest of those it recalled as pairs (segment, weight), and the distance to the strongest,
            0 if nothing was recalled.
        distances: Count of each recall distance, over all texts.
    """

    tokenizer: PreTrainedTokenizerBase
    segments: list[dict[str, Any]] = field(default_factory=list)
    distances: Counter[int] = field(default_factory=Counter)

    def add(self, document: str, ids: Tensor, trace: RecallTrace, row: int) -> None:
        """Add one row of a call that read a text from its beginning.

        Args:
            document: Name of the text.
            ids: The text, (tokens,) int64.
            trace: Recall of the call.
            row: Row of the call.
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
