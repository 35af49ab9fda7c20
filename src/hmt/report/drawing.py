"""Tidy rows to Vega-Altair charts, and charts to PNG and SVG without a browser."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from hmt.atomic import atomic_file

Row = dict[str, Any]
Drawing = alt.Chart | alt.LayerChart | alt.FacetChart

WIDTH = 560
HEIGHT = 280
SMOOTHED_STEPS = 20
LOG_FROM = 10
"""Ratio of the largest to the smallest value from which an axis that allows it is logarithmic."""

LARGE = 10_000
"""Value from which an axis is labelled 10k, 2M, 3G."""

SHORT_LENGTH = "datum.value >= 1024 && datum.value % 1024 == 0 ? datum.value / 1024 + 'k' : format(datum.value, ',')"


@dataclass(frozen=True)
class Panel:
    """Tidy rows and the chart that shows them.

    Attributes:
        name: File name without suffix, and HTML id.
        title: Heading.
        note: Caption.
        rows: One dictionary per value or table row, all with the same keys; written to the CSV file.
        chart: Chart of `rows`; None to show a table.
        texts: The chart is a recall map: the page shows both texts of the cell under the pointer.
    """

    name: str
    title: str
    note: str
    rows: Sequence[Row]
    chart: Drawing | None = None
    texts: bool = False

    def csv(self) -> str:
        """Return the rows as CSV text, numbers at full precision."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()


@dataclass(frozen=True)
class Axis:
    """Column of the tidy rows and how its axis looks.

    Attributes:
        key: Name of the column.
        label: Axis title, with the unit.
        log: Use a logarithmic scale if the values span a factor of ten.
    """

    key: str
    label: str
    log: bool = False


def save(panels: Sequence[Panel], path: Path, columns: int = 1) -> None:
    """Write the charts of panels to one picture.

    Args:
        panels: At least one, each with a chart.
        path: File ending in .svg, or anything else for PNG. Appears whole or not at all.
        columns: Charts per row.
    """
    charts = [panel.chart.properties(title=panel.title) for panel in panels if panel.chart is not None]
    with warnings.catch_warnings():  # charts share the selection of their legends, unused in a picture
        warnings.filterwarnings("ignore", "Automatically deduplicated selection parameter")
        joined = alt.concat(*charts, columns=columns)
    spec = joined.resolve_scale(color="independent", shape="independent", strokeDash="independent").to_dict()
    with atomic_file(path) as unfinished:
        if path.suffix == ".svg":
            unfinished.write_text(vl_convert.vegalite_to_svg(spec, config=theme()), encoding="utf-8")
        else:
            unfinished.write_bytes(vl_convert.vegalite_to_png(spec, config=theme(), scale=2))


def theme(dark: bool = False) -> dict[str, Any]:
    """Return the Vega-Lite config shared by all charts; colors are distinguishable with color blindness."""
    ink, grid, paper = ("#e8ecef", "#2f3840", "#1a2026") if dark else ("#1b2127", "#e4e8ec", "#ffffff")
    colors = (
        ["#56b4e9", "#f0813a", "#35c99a", "#e08cb8", "#e6b93c", "#b39ae6", "#a9b4bd"]
        if dark
        else ["#0072b2", "#d55e00", "#008f68", "#a64d79", "#b07d00", "#7a4fb5", "#5c6770"]
    )
    text = {"labelColor": ink, "titleColor": ink, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
    return {
        "background": paper,
        "font": "system-ui, Liberation Sans, DejaVu Sans, sans-serif",
        "view": {"stroke": None},
        "title": {"anchor": "start", "color": ink, "fontSize": 14, "offset": 10},
        "axis": text | {"gridColor": grid, "domainColor": grid, "tickColor": grid, "labelOverlap": True},
        "legend": text | {"orient": "bottom", "columns": 2, "labelLimit": 300, "symbolBaseStrokeColor": ink},
        "range": {"category": colors, "heatmap": ["#202b35", "#d6effc"] if dark else ["#eaf2f8", "#0a4473"]},
        "mark": {"color": colors[0]},
        "rule": {"color": ink},
        "text": {"color": ink},
    }


def lines(rows: Sequence[Row], x: Axis, y: Axis) -> Drawing:
    """Draw marked lines with intervals between `low` and `high`; a click on the legend highlights a line.

    Args:
        rows: `row` (one color and shape each), `series` (one dash each; optional), x, y, `low` and `high` (optional).
        x: Length, on a logarithmic axis.
        y: Measure.
    """
    places = sorted({row[x.key] for row in rows})
    length = alt.X(f"{x.key}:Q", title=x.label).scale(type="log", nice=False, padding=16)
    base, bright, shown = _base(rows, y)
    base = base.encode(x=length.axis(values=places, labelExpr=SHORT_LENGTH))
    layers = [base.mark_line().encode(y=_height(y, rows), opacity=bright)]
    base = base.encode(strokeDash=alt.Undefined)
    if any(row.get("low") is not None for row in rows):
        layers.append(base.mark_rule(strokeWidth=2).encode(y=_height(y, rows, "low"), y2="high:Q", opacity=bright))
    points = base.mark_point(filled=True, size=60).encode(y=_height(y, rows), shape=_names(alt.Shape, "row", rows))
    layers.append(points.encode(opacity=bright).add_params(shown))
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)


def curves(rows: Sequence[Row], x: Axis, y: Axis, smoothed: str, borders: Sequence[Row] = ()) -> Drawing:
    """Draw values over many steps.

    Args:
        rows: As in `lines`, without intervals.
        x: Optimizer step.
        y: Measured value.
        smoothed: Series to show as a moving average in front of its values.
        borders: Places on x (`at`) where something begins (`label`).
    """
    base, bright, shown = _base(rows, y)
    base = base.encode(x=alt.X(f"{x.key}:Q", title=x.label).scale(zero=False, nice=False))
    faint = base.mark_line(strokeWidth=1, opacity=0.35).transform_filter(alt.datum.series == smoothed)
    mean = base.transform_window(
        average=f"mean({y.key})", frame=[1 - SMOOTHED_STEPS, 0], groupby=["row", "series"]
    ).transform_calculate(mean=f"datum.series == '{smoothed}' ? datum.average : datum.{y.key}")
    layers: list[alt.Chart] = [
        faint.encode(y=_height(y, rows), strokeDash=alt.Undefined),
        mean.mark_line(strokeWidth=2).encode(y=_height(y, rows, "mean"), opacity=bright).add_params(shown),
        mean.mark_point(size=80, opacity=0).encode(y=_height(y, rows, "mean"), strokeDash=alt.Undefined),
    ]
    if borders:
        begins = alt.Chart(alt.Data(values=list(borders))).encode(x="at:Q")
        layers.append(begins.mark_rule(strokeDash=[2, 3]))
        layers.append(begins.mark_text(align="left", dx=4, dy=8).encode(y=alt.value(0), text="label:N"))
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)


def bars(rows: Sequence[Row], x: Axis, y: Axis) -> Drawing:
    """Draw a bar for each whole number; every column appears in the tooltip."""
    place = alt.X("from:Q", title=x.label).scale(zero=False, nice=False).axis(tickMinStep=1, format=",d")
    return (
        alt.Chart(alt.Data(values=list(rows)))
        .transform_calculate(**{"from": f"datum.{x.key} - 0.42", "to": f"datum.{x.key} + 0.42"})
        .mark_bar()
        .encode(x=place, x2="to:Q", y=alt.Y(f"{y.key}:Q", title=y.label).axis(tickMinStep=1), y2=alt.datum(0))
        .encode(tooltip=_tooltip(rows[0]))
        .properties(width=WIDTH, height=HEIGHT)
    )


def recall_map(cells: Sequence[Row], texts: Sequence[Row]) -> Drawing:
    """Draw which segment recalls which; a click selects a cell.

    Args:
        cells: `segment`, `recalled`, `weight`.
        texts: `segment` and its `text`; both texts of a cell become fields of its datum, `text` and `recalled_text`.
    """
    lookup = alt.LookupData(alt.Data(values=list(texts)), "segment", ["text"])
    chosen = alt.selection_point(name="chosen", fields=["segment", "recalled"], toggle=False)
    places = {
        f"{column}_{edge}": f"datum.{column} {sign} 0.5"
        for column in ("segment", "recalled")
        for edge, sign in (("from", "-"), ("to", "+"))
    }
    left = alt.X("recalled_from:Q", title="recalled segment").axis(tickMinStep=1, format=",d")
    top = alt.Y("segment_from:Q", title="segment that recalls").axis(tickMinStep=1, format=",d")
    return (
        alt.Chart(alt.Data(values=list(cells)))
        .transform_lookup("recalled", lookup)
        .transform_calculate(recalled_text="datum.text")
        .transform_lookup("segment", lookup)
        .transform_calculate(**places)
        .mark_rect(cursor="pointer")
        .encode(
            x=left.scale(zero=False, nice=False),
            x2="recalled_to:Q",
            y=top.scale(zero=False, nice=False, reverse=True),
            y2="segment_to:Q",
            color=alt.Color("weight:Q", title="recall weight", scale=alt.Scale(type="sqrt", domainMin=0)),
            stroke=alt.when(chosen, empty=False).then(alt.value("#d55e00")).otherwise(alt.value(None)),
            strokeWidth=alt.value(3),
            tooltip=_tooltip(cells[0]),
        )
        .add_params(chosen)
        .properties(width=WIDTH, height=400)
    )


def _base(rows: Sequence[Row], y: Axis) -> tuple[alt.Chart, Any, alt.Parameter]:
    """A chart with color, dashes and tooltip, the opacity of its lines, and the selection that its legend makes."""
    shown = alt.selection_point(name=f"shown_{y.key}", fields=["row"], bind="legend")
    chart = alt.Chart(alt.Data(values=list(rows))).encode(tooltip=_tooltip(rows[0]))
    chart = chart.encode(color=_names(alt.Color, "row", rows))
    if any(row.get("series") for row in rows):
        chart = chart.encode(strokeDash=_names(alt.StrokeDash, "series", rows), detail="series:N")
    return chart, alt.when(shown).then(alt.value(1.0)).otherwise(alt.value(0.12)), shown


def _names(kind: Any, key: str, rows: Sequence[Row]) -> Any:
    """A channel of names in their order; an explicit domain makes the legends of several channels one."""
    names = list(dict.fromkeys(str(row[key]) for row in rows))
    symbol = "stroke" if kind is alt.StrokeDash else alt.Undefined
    legend = alt.Legend(symbolType=symbol) if len(names) > 1 else None
    return kind(f"{key}:N", title=None).scale(domain=names).legend(legend)


def _height(y: Axis, rows: Sequence[Row], key: str = "") -> alt.Y:
    """The y channel, logarithmic if the axis allows it and the values span a factor of ten."""
    values = [row[y.key] for row in rows]
    channel = alt.Y(f"{key or y.key}:Q", title=y.label)
    if max(values) >= LARGE:
        channel = channel.axis(format="~s")
    if y.log and min(values) > 0 and max(values) / min(values) >= LOG_FROM:
        return channel.scale(type="log")
    return channel.scale(zero=y.log)


def _tooltip(row: Row) -> list[alt.Tooltip]:
    """Every column, numbers with four digits."""
    shown = []
    for key, value in row.items():
        tooltip = alt.Tooltip(f"{key}:{'Q' if isinstance(value, int | float) else 'N'}", title=key.replace("_", " "))
        shown.append(tooltip.format(",.4~g") if isinstance(value, float) else tooltip)
    return shown
