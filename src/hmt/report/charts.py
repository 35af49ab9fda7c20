"""Plots of the report: each is one registered function from figures to panels.

Figures are what the verbs write with `--json`: `rows`, `recall`, `recall_distances`, `history`. A plot whose figures
were not measured yields no panel. To add a plot, add a function here; to add a measure, a line in `MEASURES`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from hmt.report.data import Figures, is_number, records
from hmt.report.drawing import SMOOTHED_STEPS, Axis, Panel, Row, bars, curves, lines, recall_map

Draw = Callable[[Figures], Iterator[Panel]]

MOST_MAPS = 6
"""Maximum number of recall maps."""

LENGTHS = {"context_tokens": "context length (tokens)", "length": "text length (tokens)"}
"""Columns that a measure is plotted against: the first that a row has."""


@dataclass(frozen=True)
class Measure:
    """Measured column that is plotted against a length.

    Attributes:
        key: Name of the column; its interval is in `KEY_low` and `KEY_high`.
        title: Title of the plot.
        label: Axis title, with the unit.
        note: Caption.
        log: Use a logarithmic axis for values that span a factor of ten.
    """

    key: str
    title: str
    label: str
    note: str
    log: bool = False


MEASURES = {
    "Quality against length": (
        Measure("ppl", "Perplexity", "perplexity",
                "The same tokens are scored at every length, with 95% intervals. Lower is better."),
        Measure("accuracy", "Accuracy", "accuracy", "With 95% intervals. Higher is better."),
    ),
    "Speed and memory": (
        Measure("tokens_per_second", "Speed", "tokens per second", "Higher is better.", log=True),
        Measure("seconds_to_first_token", "Time to the first token", "seconds", "Lower is better.", log=True),
        Measure("ms_per_token", "Time per token", "milliseconds", "Lower is better.", log=True),
        Measure("peak_mb", "Peak memory", "megabytes", "Lower is better.", log=True),
        Measure("bytes_kept", "Kept after reading", "bytes", "Lower is better.", log=True),
        Measure("flops_per_token", "Operations per token", "floating-point operations", "Lower is better.", log=True),
    ),
}  # fmt: skip


def against_length(name: str, measure: Measure) -> Draw:
    """Return the plot of a measure against the length that its rows have."""

    def draw(figures: Figures) -> Iterator[Panel]:
        found = [row for row in records(figures, "rows") if is_number(row.get(measure.key))]
        for length, label in LENGTHS.items():
            chosen = [row for row in found if is_number(row.get(length)) and row[length] > 0]
            if not chosen:
                continue
            order = list(dict.fromkeys((row.get("series") or "", row["row"]) for row in chosen))
            chosen.sort(key=lambda row: (order.index((row.get("series") or "", row["row"])), row[length]))
            rows = [_measured(row, length, measure.key) for row in chosen]
            optional = [key for key in ("series", "low", "high") if all(row[key] in (None, "") for row in rows)]
            rows = [{key: value for key, value in row.items() if key not in optional} for row in rows]
            chart = lines(rows, Axis(length, label), Axis(measure.key, measure.label, measure.log))
            yield Panel(name, measure.title, measure.note, rows, chart)
            return

    return draw


def _measured(row: Row, length: str, key: str) -> Row:
    return {
        "row": row["row"], "series": str(row.get("series") or ""), length: row[length], key: row[key],
        "low": row.get(f"{key}_low"), "high": row.get(f"{key}_high"),
    }  # fmt: skip


def recall_maps(figures: Figures) -> Iterator[Panel]:
    """Draw recall weights by segment and recalled segment, one map per document."""
    groups = groupby(sorted(records(figures, "recall"), key=_document), key=_document)
    for document, entries in [(name, list(group)) for name, group in groups][:MOST_MAPS]:
        cells = []
        for entry in sorted(entries, key=lambda one: int(one["segment"])):
            weights: Counter[int] = Counter()  # several memory embeddings of a segment are one cell
            for recalled, weight in entry.get("weights") or ():
                weights[int(recalled)] += weight
            cells += [
                {"segment": int(entry["segment"]), "recalled": recalled, "weight": float(weight)}
                for recalled, weight in sorted(weights.items())
            ]
        texts = [{"segment": int(one["segment"]), "text": one["text"]} for one in entries if one.get("text")]
        if cells:
            title, note = f"Recalled segments: {document}", "Click a cell to keep both texts on the page."
            yield Panel(f"recall-{document}", title, note, cells, recall_map(cells, texts), texts=True)


def _document(entry: Row) -> str:
    return str(entry.get("document", ""))


def recall_distances(figures: Figures) -> Iterator[Panel]:
    """Draw the histogram of the distance to the strongest recalled segment; 0 stands for no recall."""
    found = figures.get("recall_distances")
    counts = {int(distance): count for distance, count in found.items()} if isinstance(found, dict) else {}
    rows = [{"distance": distance, "count": count} for distance, count in sorted(counts.items()) if distance and count]
    if rows:
        note = "Distance to the strongest recalled segment, for each segment that recalled."
        chart = bars(rows, Axis("distance", "recall distance (segments)"), Axis("count", "segments"))
        yield Panel("recall-distance", "Recall distance", note, rows, chart)


def losses(figures: Figures) -> Iterator[Panel]:
    """Draw training and validation loss against the optimizer step."""
    history = records(figures, "history")
    rows = [
        {"row": str(entry.get("run", "")), "series": series, "step": entry["step"], "loss": entry[key]}
        for key, series in (("loss", "training"), ("validation_loss", "validation"))
        for entry in history
        if is_number(entry.get(key))
    ]
    if rows:
        note = f"Training loss: each step, and in front of it the mean of the last {SMOOTHED_STEPS}."
        step, loss = Axis("step", "optimizer step"), Axis("loss", "loss (nats per token)")
        yield Panel("loss", "Loss", note, rows, curves(rows, step, loss, "training", _stages(history)))


def _stages(history: Sequence[Row]) -> list[Row]:
    """Steps at which a stage begins."""
    return [
        {"at": entry["step"] - 0.5, "label": f"stage {entry['stage']}"}
        for before, entry in pairwise(history)
        if before.get("run") == entry.get("run") and before.get("stage") != entry.get("stage")
    ]


def table(figures: Figures) -> Iterator[Panel]:
    """Show every number and word that was measured."""
    rows = records(figures, "rows")
    columns = dict.fromkeys(
        key for row in rows for key, value in row.items() if value is not None and not isinstance(value, dict | list)
    )
    if rows:
        yield Panel("rows", "All measured values", "", [{key: row.get(key) for key in columns} for row in rows])


PLOTS: dict[str, list[Draw]] = {
    "Quality against length": [],
    "Recall": [recall_maps, recall_distances],
    "Speed and memory": [],
    "Training": [losses],
    "All figures": [table],
}
"""Section -> plots, in the order of the page."""

for _section, _measures in MEASURES.items():
    PLOTS[_section] += [against_length(_measure.title.lower().replace(" ", "-"), _measure) for _measure in _measures]


def panels(figures: Figures, section: str) -> list[Panel]:
    """Draw all plots of a section that the figures have numbers for."""
    return [panel for draw in PLOTS[section] for panel in draw(figures)]
