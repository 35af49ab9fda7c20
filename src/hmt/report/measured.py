"""What evaluations measured, as plots.

A row is one way of reading at one length: `row` (its name), `context_tokens` or `length` (or `distance`), and what was
measured, with its interval in `..._low` and `..._high`. A cell is a row's `accuracy` at a `length` and a `depth`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hmt.report.charts import Axis, Chart, HeatMap, Line, LineChart, Point

Row = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """Something that is plotted against a length.

    Attributes:
        key: Of its value in a row.
        title: Of its plot.
        label: Of its axis, with the unit.
        note: What is to be known to read it.
        log: Whether its axis is logarithmic.
        name: Of its plot's files; by default the key.
    """

    key: str
    title: str
    label: str
    note: str = ""
    log: bool = False
    name: str = ""


QUALITY = (
    Measure("ppl", "Perplexity against context", "perplexity",
            "The same tokens are scored at every length; bands are 95% intervals. Lower is better.",
            name="perplexity"),
    Measure("accuracy", "Accuracy", "accuracy", "Bands are 95% intervals. Higher is better."),
    Measure("exact_match", "Exact match", "exact match", "Of generated answers. Higher is better."),
    Measure("f1", "Token F1", "F1", "Of generated answers. Higher is better."),
    Measure("rouge_l", "ROUGE-L", "ROUGE-L", "Of generated answers. Higher is better."),
)  # fmt: skip
"""How good it is."""

COST = (
    Measure("tokens_per_second", "Speed", "tokens per second", "Higher is better.", log=True),
    Measure("peak_mb", "Peak memory", "megabytes", "Lower is better.", log=True),
    Measure("seconds_to_first_token", "Time to the first token", "seconds", "Lower is better.", log=True),
    Measure("ms_per_token", "Time per token", "milliseconds", "Lower is better.", log=True),
)
"""What it takes."""

LENGTHS = {
    "context_tokens": "context length (tokens)",
    "length": "text length (tokens)",
    "distance": "distance (segments)",
}
"""What a measure is plotted against: the first of these that a row has."""


def measured_charts(measures: Sequence[Measure], rows: Sequence[Row]) -> list[Chart]:
    """A plot for each measure that is in the rows; lines for each (`row`, `series`).

    Args:
        measures: In the order of the plots.
        rows: Of one evaluation, or of several of the same targets, told apart by `series`.
    """
    charts: list[Chart] = []
    for measure in measures:
        for length in LENGTHS:
            chosen = [row for row in rows if _length_of(row) == length and _is_number(row.get(measure.key))]
            if chosen:
                charts.append(_chart(measure, length, chosen))
    return charts


def needle_charts(cells: Sequence[Row]) -> list[Chart]:
    """A map of accuracy for each row of the cells, depth by length."""
    note = "Share of the hidden facts that were found; depth 0 is the beginning of the text."
    charts: list[Chart] = []
    for name in dict.fromkeys(str(cell.get("row") or "") for cell in cells):
        chosen = [cell for cell in cells if str(cell.get("row") or "") == name and _is_number(cell.get("accuracy"))]
        if chosen:
            values = tuple(sorted((cell["depth"], cell["length"], cell["accuracy"]) for cell in chosen))
            title = f"Finding a needle{f': {name}' if name else ''}"
            x, y = Axis("text length (tokens)", key="length"), Axis("depth", key="depth")
            charts.append(HeatMap(f"needle-{name}", title, note, x, y, values, "accuracy", top=1.0))
    return charts


def _chart(measure: Measure, length: str, rows: Sequence[Row]) -> LineChart:
    names = list(dict.fromkeys(str(row.get("row", "")) for row in rows))
    series = list(dict.fromkeys(str(row.get("series") or "") for row in rows))
    lines = []
    for dash, part in enumerate(series):
        for colour, name in enumerate(names):
            points = [
                Point(row[length], row[measure.key], *_interval(row, measure.key))
                for row in sorted(rows, key=lambda row: row[length])
                if str(row.get("row", "")) == name and str(row.get("series") or "") == part
            ]
            if points:
                lines.append(Line(", ".join(filter(None, (name, part))), tuple(points), colour, dash))
    x = Axis(LENGTHS[length], "log", tuple(sorted({row[length] for row in rows})), key=length)
    y = Axis(measure.label, "log" if measure.log and all(row[measure.key] > 0 for row in rows) else "linear",
             key=measure.key, least=4.0)  # fmt: skip
    return LineChart(measure.name or measure.key, measure.title, measure.note, x, y, tuple(lines))


def _length_of(row: Row) -> str | None:
    return next((key for key in LENGTHS if _is_number(row.get(key)) and row[key] > 0), None)


def _interval(row: Row, key: str) -> tuple[float | None, float | None]:
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    return (low, high) if _is_number(low) and _is_number(high) else (None, None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
