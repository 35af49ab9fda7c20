"""Plots of the report: each is one registered function from figures to panels.

Figures are what the verbs write with `--json`: `rows`, `cells`, `recall`, `recall_distances`, `kept`, `history`. A plot
whose figures were not measured yields no panel. To add a plot, add a function here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from hmt.report.data import Figures, is_number, records
from hmt.report.drawing import SMOOTHED_STEPS, Axis, Panel, Row, bars, curves, grid, lines, recall_map

Draw = Callable[[Figures], Iterator[Panel]]

MOST_CELLS = 10_000
"""Maximum number of cells of a recall map: the strongest of each segment are kept."""

MOST_MAPS = 6
"""Maximum number of recall maps."""

LENGTHS = {
    "context_tokens": "context length (tokens)",
    "length": "text length (tokens)",
    "distance": "distance (segments)",
}
"""Columns that a measure is plotted against: the first that a row has."""

FIRST_COLUMNS = (
    "series", "row", "context_tokens", "length", "distance", "ppl", "ppl_low", "ppl_high", "ppl_causal",
    "bits_per_byte", "questions", "accuracy", "accuracy_low", "accuracy_high", "tokens", "tokens_per_second", "peak_mb",
)  # fmt: skip


@dataclass(frozen=True)
class Measure:
    """Measured column that is plotted against a length.

    Attributes:
        key: Name of the column; its interval is in `KEY_low` and `KEY_high`.
        title: Title of the plot.
        label: Axis title, with the unit.
        note: How to read it.
        log: Use a logarithmic axis.
    """

    key: str
    title: str
    label: str
    note: str
    log: bool = False


MEASURES = {
    "Quality against length": {
        "perplexity": Measure("ppl", "Perplexity against context", "perplexity",
                              "The same tokens are scored at every length. Bands: 95% intervals. Lower is better."),
        "accuracy": Measure("accuracy", "Accuracy", "accuracy", "Bands: 95% intervals. Higher is better."),
        "exact-match": Measure("exact_match", "Exact match", "exact match", "Generated answers. Higher is better."),
        "f1": Measure("f1", "Token F1", "F1", "Generated answers. Higher is better."),
        "rouge-l": Measure("rouge_l", "ROUGE-L", "ROUGE-L", "Generated answers. Higher is better."),
    },
    "Speed and memory": {
        "tokens-per-second": Measure("tokens_per_second", "Speed", "tokens per second", "Higher is better.", log=True),
        "peak-mb": Measure("peak_mb", "Peak memory", "megabytes", "Lower is better.", log=True),
        "seconds-to-first-token": Measure("seconds_to_first_token", "Time to the first token", "seconds",
                                          "Lower is better.", log=True),
        "ms-per-token": Measure("ms_per_token", "Time per token", "milliseconds", "Lower is better.", log=True),
    },
}  # fmt: skip

PLOTS: dict[str, dict[str, Draw]] = {
    section: {} for section in (
        "Quality against length", "Needles", "Recall", "Kept segments", "Speed and memory", "Training", "All figures",
    )
}  # fmt: skip
"""Section -> name -> plot, in the order of the page."""


def plot(section: str, name: str) -> Callable[[Draw], Draw]:
    """Register a plot."""

    def register(draw: Draw) -> Draw:
        PLOTS[section][name] = draw
        return draw

    return register


def panels(figures: Figures, section: str) -> list[Panel]:
    """Draw all plots of a section that the figures have numbers for."""
    return [panel for draw in PLOTS[section].values() for panel in draw(figures)]


def against_length(name: str, measure: Measure) -> Draw:
    """Return the plot of a measure against whichever length its rows have."""

    def draw(figures: Figures) -> Iterator[Panel]:
        found = [(row, _length(row)) for row in records(figures, "rows") if is_number(row.get(measure.key))]
        for length, label in LENGTHS.items():
            chosen = sorted((row for row, own in found if own == length), key=lambda row: row[length])
            if not chosen:
                continue
            order = list(dict.fromkeys((row.get("series") or "", row.get("row", "")) for row, _ in found))
            chosen.sort(key=lambda row: order.index((row.get("series") or "", row.get("row", ""))))
            rows = [_measured(row, length, measure.key) for row in chosen]
            optional = [key for key in ("series", "low", "high") if all(row[key] in (None, "") for row in rows)]
            rows = [{key: value for key, value in row.items() if key not in optional} for row in rows]
            log = measure.log and all(row[measure.key] > 0 for row in rows)
            chart = lines(rows, Axis(length, label, log=True), Axis(measure.key, measure.label, log))
            yield Panel(name, measure.title, measure.note, rows, chart)

    return draw


for _section, _measures in MEASURES.items():
    for _name, _measure in _measures.items():
        plot(_section, _name)(against_length(_name, _measure))


def _length(row: Row) -> str | None:
    return next((key for key in LENGTHS if is_number(row.get(key)) and row[key] > 0), None)


def _measured(row: Row, length: str, key: str) -> Row:
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    banded = is_number(low) and is_number(high)
    return {
        "row": str(row.get("row", "")), "series": str(row.get("series") or ""), length: row[length], key: row[key],
        "low": low if banded else None, "high": high if banded else None,
    }  # fmt: skip


@plot("Needles", "needle")
def needles(figures: Figures) -> Iterator[Panel]:
    """Share of hidden facts that were found, by depth and length, one map per row."""
    cells = [cell for cell in records(figures, "cells") if is_number(cell.get("accuracy"))]
    note = "Share of hidden facts that were found. Depth 0 is the beginning of the text."
    for name in dict.fromkeys(str(cell.get("row") or "") for cell in cells):
        chosen = [cell for cell in cells if str(cell.get("row") or "") == name]
        rows = sorted(
            ({key: cell[key] for key in ("depth", "length", "accuracy")} for cell in chosen),
            key=lambda row: (row["depth"], row["length"]),
        )
        chart = grid(rows, Axis("length", LENGTHS["length"]), Axis("depth", "depth"), "accuracy")
        yield Panel(f"needle-{name}", f"Finding a needle{f': {name}' if name else ''}", note, rows, chart)


@plot("Recall", "recall")
def recall_maps(figures: Figures) -> Iterator[Panel]:
    """Recall weights by segment and recalled segment, one map per document and row."""
    identity: Callable[[Row], tuple[str, str]] = lambda one: (str(one.get("document", "")), str(one.get("row") or ""))  # noqa: E731
    groups = groupby(sorted(records(figures, "recall"), key=identity), key=identity)
    drawn = 0
    for (document, name), group in groups:
        entries = sorted(group, key=lambda one: int(one["segment"]))
        most = max(1, MOST_CELLS // len(entries))
        cells: list[Row] = []
        left_out = 0
        for entry in entries:
            weights: Counter[int] = Counter()  # several memory embeddings of a segment are one cell
            for recalled, weight in entry.get("weights") or ():
                weights[int(recalled)] += weight
            left_out += max(len(weights) - most, 0)
            strongest = sorted(weights.most_common(most))
            cells += [{"segment": int(entry["segment"]), "recalled": to, "weight": float(w)} for to, w in strongest]
        if not cells or drawn == MOST_MAPS:
            continue
        drawn += 1
        note = "Click a cell to read both segments."
        if left_out:
            note += f" Only the {most} strongest of each segment are drawn; {left_out:,} weaker ones are left out."
        what = ", ".join(filter(None, (document, name)))
        texts = [{"segment": int(one["segment"]), "text": one["text"]} for one in entries if one.get("text")]
        title = f"Recalled segments{f': {what}' if what else ''}"
        yield Panel(f"recall-{document}-{name}", title, note, cells, recall_map(cells, texts), texts=True)


@plot("Recall", "recall-distance")
def recall_distances(figures: Figures) -> Iterator[Panel]:
    """Histogram of the distance to the strongest recalled segment; 0 stands for no recall and is left out."""
    found = figures.get("recall_distances") or [one.get("distance") or 0 for one in records(figures, "recall")]
    counts: Counter[int] = Counter()
    for one in found.items() if isinstance(found, dict) else found:
        distance, count = (one, 1) if isinstance(one, int) else one
        counts[int(distance)] += count
    rows = [{"distance": distance, "count": count} for distance, count in sorted(counts.items()) if distance and count]
    if rows:
        note = "Distance to the strongest recalled segment, for each segment that recalled."
        chart = bars(rows, Axis("distance", "recall distance (segments)"), Axis("count", "segments"))
        yield Panel("recall-distance", "Recall distance", note, rows, chart)


@plot("Kept segments", "kept")
def kept(figures: Figures) -> Iterator[Panel]:
    """Recall weight that each kept segment received, and a table with its text."""
    segments = records(figures, "kept")
    if not segments:
        return
    empty = {key for key in ("score",) if all(segment.get(key) is None for segment in segments)}
    columns = [key for key in dict.fromkeys(key for segment in segments for key in segment) if key not in empty]
    rows = [{key: segment.get(key) for key in columns} for segment in segments]
    numbers = [{key: value for key, value in row.items() if key != "text"} for row in rows]
    chart = bars(numbers, Axis("segment", "segment"), Axis("usage", "usage"))
    note = (
        "Segments in the bank, oldest first. Usage: decayed sum of the recall weights that they received. Score: "
        "their value to the retention policy, where it has one."
    )
    yield Panel("kept", "Usage of kept segments", note, numbers, chart)
    yield Panel("kept-texts", f"{len(rows)} kept segments", "", rows)


@plot("Training", "loss")
def losses(figures: Figures) -> Iterator[Panel]:
    """Training and validation loss against the optimizer step."""
    history = records(figures, "history")
    rows = [
        {"row": str(entry.get("run", "")), "series": series, "step": entry["step"], "loss": entry[key]}
        for key, series in (("loss", "training"), ("validation_loss", "validation"))
        for entry in history
        if is_number(entry.get(key))
    ]
    if rows:
        note = f"Training loss: each step, and in front of it the mean of the last {SMOOTHED_STEPS}."
        chart = curves(rows, Axis("step", "optimizer step"), Axis("loss", "loss (nats per token)"), "training",
                       _stages(history))  # fmt: skip
        yield Panel("loss", "Loss", note, rows, chart)


@plot("Training", "gradient-norm")
def gradient_norms(figures: Figures) -> Iterator[Panel]:
    """Gradient norm before clipping."""
    rows = [
        {"row": str(entry.get("run", "")), "step": entry["step"], "grad_norm": entry["grad_norm"]}
        for entry in records(figures, "history")
        if _is_positive(entry.get("grad_norm"))
    ]
    if rows:
        chart = curves(rows, Axis("step", "optimizer step"), Axis("grad_norm", "gradient norm", log=True))
        yield Panel("gradient-norm", "Gradient norm", "Before clipping.", rows, chart)


@plot("Training", "learning-rates")
def learning_rates(figures: Figures) -> Iterator[Panel]:
    """Learning rate of each parameter group."""
    rows = [
        {"row": group, "series": str(entry.get("run", "")), "step": entry["step"], "learning_rate": rate}
        for entry in records(figures, "history")
        for group, rate in entry.get("learning_rates", {}).items()
        if _is_positive(rate)
    ]
    if rows:
        chart = curves(rows, Axis("step", "optimizer step"), Axis("learning_rate", "learning rate", log=True))
        yield Panel("learning-rates", "Learning rates", "One line per parameter group.", rows, chart)


@plot("All figures", "rows")
def table(figures: Figures) -> Iterator[Panel]:
    """Every number and word that was measured."""
    rows = records(figures, "rows")
    columns = list(
        dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, dict | list))
    )
    columns.sort(key=lambda key: FIRST_COLUMNS.index(key) if key in FIRST_COLUMNS else len(FIRST_COLUMNS))
    if rows:
        yield Panel("rows", "All measured values", "", [{key: row.get(key) for key in columns} for row in rows])


def _stages(history: Sequence[Row]) -> list[Row]:
    """Return the steps at which a stage begins."""
    return [
        {"at": entry["step"] - 0.5, "label": f"stage {entry['stage']}"}
        for before, entry in pairwise(history)
        if before.get("run") == entry.get("run") and before.get("stage") != entry.get("stage")
    ]


def _is_positive(value: Any) -> bool:
    return is_number(value) and value > 0
