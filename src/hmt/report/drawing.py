"""Drawing primitives: tidy rows to Vega-Altair charts, and charts to PNG and SVG without a browser."""

from __future__ import annotations

import csv
import io
import math
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

SERIES_DASHES = [[1, 0], [6, 4], [2, 3], [8, 3, 2, 3]]


@dataclass(frozen=True)
class Panel:
    """Tidy rows and the chart that shows them.

    Attributes:
        name: File name without suffix, and HTML id.
        title: Heading.
        note: How to read it.
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
        log: Use a logarithmic scale.
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
    spec = (charts[0] if len(charts) == 1 else _concatenate(charts, columns)).to_dict()
    with atomic_file(path) as unfinished:
        if path.suffix == ".svg":
            unfinished.write_text(vl_convert.vegalite_to_svg(spec, config=theme()), encoding="utf-8")
        else:
            unfinished.write_bytes(vl_convert.vegalite_to_png(spec, config=theme(), scale=2))


def theme(dark: bool = False) -> dict[str, Any]:
    """Return the Vega-Lite config shared by all charts; colors are distinguishable with color blindness."""
    ink, soft, grid, paper = (
        ("#e8ecef", "#a8b3bd", "#2b333b", "#1a2026") if dark else ("#1b2127", "#566069", "#e4e8ec", "#ffffff")
    )
    ramp = ["#202b35", "#56b4e9", "#d6effc"] if dark else ["#eaf2f8", "#4a9bd0", "#0a4473"]
    colors = (
        ["#56b4e9", "#f0813a", "#35c99a", "#e08cb8", "#e6b93c", "#b39ae6", "#a9b4bd"]
        if dark
        else ["#0072b2", "#d55e00", "#008f68", "#a64d79", "#b07d00", "#7a4fb5", "#5c6770"]
    )
    return {
        "background": paper,
        "font": "system-ui, Liberation Sans, DejaVu Sans, sans-serif",
        "params": [{"name": "ink", "value": ink}, {"name": "paper", "value": paper}],
        "view": {"stroke": None},
        "title": {"anchor": "start", "color": ink, "fontSize": 14, "offset": 10},
        "axis": {
            "labelColor": ink, "titleColor": soft, "gridColor": grid, "domainColor": grid, "tickColor": grid,
            "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelOverlap": True,
        },
        "legend": {
            "orient": "bottom", "labelColor": ink, "titleColor": soft, "labelFontSize": 12, "titleFontWeight": "normal",
            "labelLimit": 300, "symbolStrokeWidth": 2, "symbolBaseStrokeColor": soft,
            "layout": {"bottom": {"direction": "vertical", "anchor": "start"}},
        },
        "range": {"category": colors, "heatmap": ramp, "ramp": ramp},
        "mark": {"color": colors[0]},
        "rule": {"color": soft},
        "text": {"color": ink},
    }  # fmt: skip


def lines(rows: Sequence[Row], x: Axis, y: Axis) -> Drawing:
    """Draw marked lines with a band between `low` and `high`; a click on the legend highlights a line.

    Args:
        rows: `row` (one color and shape each), `series` (one dash each; optional), x, y, `low` and `high` (optional).
        x: With a single value of it, rows stand side by side.
        y: Logarithmic axes span at least a factor of 4, so that small differences look small.
    """
    places = sorted({row[x.key] for row in rows})
    names = list(dict.fromkeys(row["row"] for row in rows))
    base, shown = _base(rows, y)
    if len(places) > 1:
        length = alt.X(f"{x.key}:Q", title=x.label).scale(type="log", nice=False, padding=16)
        base = base.encode(x=length.axis(_length_axis(places)))
        shape = _channel(alt.Shape, "row", rows)
    else:
        place = alt.X("row:N", title=f"{x.label}: {places[0]:,}").sort(names).axis(labelAngle=-30, labelOverlap=False)
        base = base.encode(x=place, color=alt.Color("row:N").scale(domain=names).legend(None))
        shape = alt.value("circle")
        if any(row.get("series") for row in rows):
            base = base.encode(xOffset=alt.XOffset("series:N").sort(None))
            shape = _channel(alt.Shape, "series", rows)
    ends = [row[key] for row in rows for key in (y.key, "low", "high") if row.get(key) is not None]
    base = base.encode(y=_height(y, ends))
    bright = alt.when(shown).then(alt.value(1.0)).otherwise(alt.value(0.12))
    layers = [base.mark_line().encode(opacity=bright)] if len(places) > 1 else []
    base = base.encode(strokeDash=alt.Undefined)
    if any(row.get("low") is not None for row in rows):
        interval = base.encode(y=_height(y, ends, "low"), y2="high:Q")
        if len(places) > 1:
            faint = alt.when(shown).then(alt.value(min(0.15, 0.6 / len(names)))).otherwise(alt.value(0.02))
            layers.append(interval.mark_area().encode(opacity=faint))
        else:
            layers.append(interval.mark_rule(strokeWidth=2).encode(opacity=bright))
    layers.append(base.mark_point(filled=True, size=60).encode(opacity=bright, shape=shape).add_params(shown))
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)


def curves(rows: Sequence[Row], x: Axis, y: Axis, smoothed: str = "", borders: Sequence[Row] = ()) -> Drawing:
    """Draw values over many steps, where single points need no mark.

    Args:
        rows: As in `lines`, without intervals.
        x: Optimizer step.
        y: Measured value.
        smoothed: Series to show as a moving average in front of its values.
        borders: Places on x (`at`) where something begins (`label`).
    """
    base, shown = _base(rows, y)
    base = base.encode(x=alt.X(f"{x.key}:Q", title=x.label, scale=alt.Scale(zero=False, nice=False)))
    height = _height(y, [row[y.key] for row in rows])
    bright = alt.when(shown).then(alt.value(1.0)).otherwise(alt.value(0.12))
    layers: list[alt.Chart] = []
    mean = height
    if smoothed:
        faint = base.mark_line(strokeWidth=1, opacity=0.35).transform_filter(alt.datum.series == smoothed)
        layers.append(faint.encode(y=height, strokeDash=alt.Undefined))
        base = base.transform_window(
            mean=f"mean({y.key})", frame=[1 - SMOOTHED_STEPS, 0], groupby=["row", "series"]
        ).transform_calculate(mean=f"datum.series == '{smoothed}' ? datum.mean : datum.{y.key}")
        mean = _height(y, [row[y.key] for row in rows], "mean")
    layers.append(base.mark_line(strokeWidth=2).encode(y=mean, opacity=bright).add_params(shown))
    layers.append(base.mark_point(filled=True, size=80).encode(y=mean, opacity=alt.value(0), strokeDash=alt.Undefined))
    if borders:
        begins = alt.Chart(alt.Data(values=list(borders))).encode(x="at:Q")
        layers.append(begins.mark_rule(strokeDash=[2, 3]))
        layers.append(begins.mark_text(align="left", dx=4, dy=8).encode(y=alt.value(0), text="label:N"))
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)


def bars(rows: Sequence[Row], x: Axis, y: Axis) -> Drawing:
    """Draw a bar for each whole number; every column appears in the tooltip."""
    place = alt.X("from:Q", title=x.label).scale(zero=False, nice=False).axis(tickMinStep=1, format=",d")
    height = alt.Y(f"{y.key}:Q", title=y.label)
    if all(isinstance(row[y.key], int) for row in rows):
        height = height.axis(tickMinStep=1)
    return (
        alt.Chart(alt.Data(values=list(rows)))
        .transform_calculate(**{"from": f"datum.{x.key} - 0.42", "to": f"datum.{x.key} + 0.42"})
        .mark_bar()
        .encode(x=place, x2="to:Q", y=height, y2=alt.datum(0), tooltip=_tooltip(rows[0]))
        .properties(width=WIDTH, height=HEIGHT)
    )


def grid(rows: Sequence[Row], x: Axis, y: Axis, value: str) -> Drawing:
    """Draw a small heat map of shares from 0 to 1, with the number in each cell."""
    base = alt.Chart(alt.Data(values=list(rows))).encode(
        x=alt.X(f"{x.key}:O", title=x.label, axis=alt.Axis(labelAngle=0, format=",")),
        y=alt.Y(f"{y.key}:O", title=y.label),
        tooltip=_tooltip(rows[0]),
    )
    color = alt.Color(f"{value}:Q", scale=alt.Scale(domain=[0, 1]), legend=None)
    contrast = alt.when(alt.datum[value] > 0.45).then(alt.value(alt.ExprRef("paper")))
    number = base.mark_text(fontSize=13).encode(
        text=alt.Text(f"{value}:Q", format=".2f"), color=contrast.otherwise(alt.value(alt.ExprRef("ink")))
    )
    height = max(36 * len({row[y.key] for row in rows}), 80)
    return alt.layer(base.mark_rect().encode(color=color), number).properties(width=WIDTH, height=height)


def recall_map(cells: Sequence[Row], texts: Sequence[Row]) -> Drawing:
    """Draw which segment recalls which; a click selects a cell.

    Args:
        cells: `segment`, `recalled`, `weight`.
        texts: `segment` and its `text`; both texts of a cell become fields of its datum, `text` and `recalled_text`.
    """
    lookup = alt.LookupData(alt.Data(values=list(texts)), "segment", ["text"])
    chosen = alt.selection_point(name="chosen", fields=["segment", "recalled"], toggle=False)
    left = alt.X("left:Q", title="recalled segment").scale(zero=False, nice=False).axis(tickMinStep=1, format=",d")
    top = alt.Y("top:Q", title="segment that recalls").axis(tickMinStep=1, format=",d")
    return (
        alt.Chart(alt.Data(values=list(cells)))
        .transform_lookup("recalled", lookup)
        .transform_calculate(recalled_text="datum.text")
        .transform_lookup("segment", lookup)
        .transform_calculate(
            left="datum.recalled - 0.5", right="datum.recalled + 0.5", top="datum.segment - 0.5",
            bottom="datum.segment + 0.5",
        )
        .mark_rect(cursor="pointer")
        .encode(
            x=left,
            x2="right:Q",
            y=top.scale(zero=False, nice=False, reverse=True),
            y2="bottom:Q",
            color=alt.Color("weight:Q", title="recall weight", scale=alt.Scale(type="sqrt", domainMin=0)),
            stroke=alt.when(chosen, empty=False).then(alt.value("#d55e00")).otherwise(alt.value(None)),
            strokeWidth=alt.value(3),
            tooltip=_tooltip(cells[0]),
        )
        .add_params(chosen)
        .properties(width=WIDTH, height=400)
    )  # fmt: skip


def _concatenate(charts: Sequence[Drawing], columns: int) -> alt.ConcatChart:
    """Join charts that keep colors, shapes and legends of their own."""
    with warnings.catch_warnings():  # charts of one measure share the selection of their legends, unused in a picture
        warnings.filterwarnings("ignore", "Automatically deduplicated selection parameter")
        joined = alt.concat(*charts, columns=columns)
    return joined.resolve_scale(color="independent", shape="independent", strokeDash="independent")


def _base(rows: Sequence[Row], y: Axis) -> tuple[alt.Chart, alt.Parameter]:
    """Return a chart with color, dashes and tooltip, and the selection that its legend makes."""
    shown = alt.selection_point(name=f"shown_{y.key}", fields=["row"], bind="legend")
    chart = alt.Chart(alt.Data(values=list(rows))).encode(tooltip=_tooltip(rows[0]))
    chart = chart.encode(color=_channel(alt.Color, "row", rows))
    if any(row.get("series") for row in rows):
        dashes = _channel(alt.StrokeDash, "series", rows, range=SERIES_DASHES)
        chart = chart.encode(strokeDash=dashes, detail="series:N")
    return chart, shown


def _channel(kind: Any, key: str, rows: Sequence[Row], **scale: Any) -> Any:
    """Return a channel of names in their order, with as many columns of its legend as fit a phone.

    The domain is explicit so that the legends of several channels of one key become one.
    """
    names = list(dict.fromkeys(str(row[key]) for row in rows))
    columns = max(1, 260 // (7 * max(map(len, names)) + 36))
    symbol = "stroke" if kind is alt.StrokeDash else alt.Undefined
    legend = alt.Legend(columns=columns, symbolType=symbol) if len(names) > 1 else None
    return kind(f"{key}:N", title=None).scale(domain=names, **scale).legend(legend)


def _height(y: Axis, values: Sequence[float], key: str = "") -> alt.Y:
    """Return the y channel; a logarithmic one has ticks at 1, 2 and 5 times powers of ten."""
    channel = alt.Y(f"{key or y.key}:Q", title=y.label)
    if not y.log:
        return channel.scale(zero=False)
    low, high = min(values), max(values)
    room = max((high / low) ** 1.1, 4.0) ** 0.5
    middle = (low * high) ** 0.5
    low, high = middle / room, middle * room
    powers = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)))]
    ticks = [factor * power for power in powers for factor in ((1, 2, 5) if len(powers) < 4 else (1,))]
    return channel.scale(type="log", domain=[low, high]).axis(values=[tick for tick in ticks if low <= tick <= high])


def _length_axis(places: Sequence[float]) -> alt.Axis:
    """Return ticks at the measured lengths; multiples of 1,024 tokens as 1k, 1M."""
    binary = all(place % 1024 == 0 for place in places if place >= 1024)
    short = (
        "datum.value >= 1048576 ? datum.value / 1048576 + 'M' : datum.value >= 1024 ? datum.value / 1024 + 'k' : "
        "datum.value"
    )
    return alt.Axis(values=list(places), labelExpr=short if binary else "format(datum.value, ',')")


def _tooltip(row: Row) -> list[alt.Tooltip]:
    """Return every column, numbers with four digits."""
    shown = []
    for key, value in row.items():
        tooltip = alt.Tooltip(f"{key}:{'Q' if isinstance(value, int | float) else 'N'}", title=key.replace("_", " "))
        shown.append(tooltip.format(",.4~g") if isinstance(value, float) else tooltip)
    return shown
