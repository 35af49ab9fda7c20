"""What each segment recalled, as plots: a map (segment by recalled segment) and how far back it was.

A record is what one segment of one document recalled: `segment` (its number), `text`, `weights` (pairs of a recalled
segment and its weight), `distance` (segments back to the strongest; 0 where nothing was recalled), and where there are
several, `document` and `row` (what read it).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from hmt.model.outputs import RecallTrace
from hmt.report.charts import Axis, BarChart, Chart, HeatMap

MOST_CELLS = 10_000
"""Cells of a map at most: of a longer text, so many of the strongest of each segment."""

MOST_MAPS = 6
"""Maps at most: of the documents that come first."""

Record = dict[str, Any]


def trace_records(trace: RecallTrace, row: int = 0) -> list[Record]:
    """The records of a trace, for a row of its batch; without texts."""
    first = len(trace.by_segment) - len(trace.weights)  # before it there was nothing to recall
    records = []
    for number, (weights, segments) in enumerate(zip(trace.weights, trace.segments, strict=True), start=first):
        shares = weights[row].mean(dim=0).tolist()
        pairs = [pair for pair in zip(segments[row].tolist(), shares, strict=True) if pair[1] > 0]
        distance = int(trace.by_segment[number][row])
        records.append({"segment": number, "weights": pairs, "distance": distance})
    return records


def recall_charts(records: Sequence[Record], distances: Any = None) -> list[Chart]:
    """A map for each document and way of reading, and one histogram of all distances.

    Args:
        records: Of any number of documents.
        distances: How often each distance was seen: a mapping, or pairs; by default it is counted in the records.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((str(record.get("row") or ""), str(record.get("document", ""))), []).append(record)
    charts: list[Chart] = [
        chart
        for (row, document), group in list(groups.items())[:MOST_MAPS]
        if (chart := _map(f"recall-{row}-{document}", ", ".join(filter(None, (document, row))), group)) is not None
    ]
    bars = _bars(distances) or _bars(Counter(record.get("distance") or 0 for record in records))
    if bars:
        note = "Of the strongest recalled segment, for each segment that recalled."
        x, y = Axis("recall distance (segments)", key="distance"), Axis("segments", key="count")
        charts.append(BarChart("recall-distance", "How far back is recalled", note, x, y, bars))
    return charts


def _map(name: str, what: str, records: Sequence[Record]) -> HeatMap | None:
    each = max(1, MOST_CELLS // max(len(records), 1))
    cells, left_out = [], 0
    for record in sorted(records, key=lambda one: int(one["segment"])):
        pairs: dict[int, float] = {}  # several memory embeddings of a segment are one cell
        for recalled, weight in record.get("weights") or ():
            pairs[int(recalled)] = pairs.get(int(recalled), 0.0) + float(weight)
        strongest = sorted(pairs.items(), key=lambda pair: -pair[1])[:each]
        left_out += len(pairs) - len(strongest)
        cells += [(int(record["segment"]), recalled, weight) for recalled, weight in sorted(strongest)]
    if not cells:
        return None
    note = "Choose a cell to read both segments. The colour grows with the square root of the weight."
    if left_out:
        note += f" Of each segment the {each} strongest are drawn; {left_out:,} weaker ones are left out."
    return HeatMap(
        name=name,
        title=f"What is recalled{f': {what}' if what else ''}",
        note=note,
        x=Axis("recalled segment", key="recalled"),
        y=Axis("segment that recalls", key="segment"),
        cells=tuple(cells),
        value="recall weight",
        top=max(weight for _, _, weight in cells),
        power=0.5,
        whole=True,
        texts=tuple((int(one["segment"]), str(one["text"])) for one in records if one.get("text") is not None),
    )


def _bars(distances: Any) -> tuple[tuple[int, float], ...]:
    """Numbers and counts, whichever way they were written down."""
    if not distances:
        return ()
    pairs: Iterable[Any] = distances.items() if isinstance(distances, dict) else distances
    counts: Counter[int] = Counter()
    for pair in pairs:
        number, count = (pair, 1) if isinstance(pair, int) else pair
        counts[int(number)] += count
    return tuple(sorted((number, count) for number, count in counts.items() if number > 0 and count > 0))
