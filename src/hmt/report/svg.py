"""Plots as SVG for the page: no colours of their own (page.css has them), one size that suits a phone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from hmt.report.charts import (
    COLOURS,
    Axis,
    BarChart,
    Chart,
    HeatMap,
    Line,
    LineChart,
    Number,
    short,
    tick_labels,
)

WIDTH, HEIGHT = 480, 320
LEFT, RIGHT, TOP, BOTTOM = 70, 14, 12, 48

MAP_HEIGHT = 400
"""Of a heat map in scale, which is as high as it is wide, or less."""

Scale = Callable[[float], float]


def draw(chart: Chart) -> str:
    """A plot as an `svg` element, which names itself to those who cannot see it."""
    if isinstance(chart, LineChart):
        body, height = _lines(chart), HEIGHT
    elif isinstance(chart, BarChart):
        body, height = _bars(chart), HEIGHT
    elif isinstance(chart, HeatMap):
        body, height = _map(chart) if chart.whole else _cells(chart)
    else:
        raise TypeError(f"no drawing of {type(chart).__name__}")
    name = escape(chart.name)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="{"group" if isinstance(chart, HeatMap) else "img"}" '
        f'aria-labelledby="{name}-title {name}-desc"><title id="{name}-title">{escape(chart.title)}</title>'
        f'<desc id="{name}-desc">{escape(_description(chart))}</desc>{body}</svg>'
    )


def mark(number: int, x: float, y: float) -> str:
    """The mark of a colour: a second way to tell lines apart."""
    shapes = (
        "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z", "M-3.6-3.6h7.2v7.2h-7.2z", "M0-4.8 4.6 3.4h-9.2z", "M0-5 5 0 0 5-5 0z",
        "M0 4.8-4.6-3.4h9.2z", "M-4.5-1.5h3v-3h3v3h3v3h-3v3h-3v-3h-3z", "M-5.5 0 0-3.5 5.5 0 0 3.5z",
        "M-2.4-5h4.8v10h-4.8z",
    )  # fmt: skip
    shape = shapes[(number + number // len(COLOURS)) % len(shapes)]  # another one where the colours begin again
    return f'<path class="mark" transform="translate({_n(x)} {_n(y)})" d="{shape}"'


def dashes(line: Line) -> str:
    """The attribute of a line's dashes."""
    lengths = line.strokes
    return f' stroke-dasharray="{" ".join(map(_n, lengths))}"' if lengths else ""


def _description(chart: Chart) -> str:
    columns, rows = chart.table()
    return f"{chart.note} {len(rows)} values of {', '.join(columns)}; the numbers are below the plot.".strip()


def _lines(chart: LineChart) -> str:
    (left, right), (low, high) = chart.span
    x, y = _horizontal(chart.x, left, right), _vertical(chart.y, low, high, HEIGHT)
    parts = [_grid(chart, x, y, HEIGHT, chart.x.ticks(left, right), chart.y.ticks(low, high))]
    for place, label in chart.borders:
        parts.append(f'<path class="border" d="M{_n(x(place))} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text class="small" x="{_n(x(place) + 4)}" y="{TOP + 10}">{escape(label)}</text>')
    for line in sorted(chart.lines, key=lambda one: not one.faint):
        parts.append(_line(chart, line, x, y))
    return "".join(parts)


def _line(chart: LineChart, line: Line, x: Scale, y: Scale) -> str:
    across = [_n(x(place)) for place in chart.places(line)]
    points = list(zip(across, line.points, strict=True))
    banded = [(place, p.low, p.high) for place, p in points if p.low is not None and p.high is not None]
    upper = [f"{place} {_n(y(high))}" for place, _, high in banded]
    lower = [f"{place} {_n(y(low))}" for place, low, _ in banded]
    classes = f"line c{line.colour % len(COLOURS)}{' faint' if line.faint else ''}"
    parts = [f'<g class="{classes}" data-line="{chart.lines.index(line)}">']
    if len(banded) > 1:
        parts.append(f'<path class="band" fill-opacity="{_n(chart.shade, 3)}" d="M{"L".join(upper + lower[::-1])}z"/>')
    elif banded:
        parts.append(f'<path class="whisker" d="M{upper[0]}L{lower[0]}"/>')
    if len(points) > 1:
        places = "L".join(f"{place} {_n(y(point.y))}" for place, point in points)
        parts.append(f'<path class="stroke" d="M{places}"{dashes(line)}/>')
    if line.marked:
        for place, point in points:
            interval = f" ({short(point.low)} to {short(point.high)})" if point.low is not None else ""
            said = escape(f"{line.name}, {short(point.x)}: {short(point.y)}{interval}")
            parts.append(f"{mark(line.colour, float(place), y(point.y))}><title>{said}</title></path>")
    return "".join([*parts, "</g>"])


def _bars(chart: BarChart) -> str:
    (left, right), (low, high) = chart.span
    x, y = _horizontal(chart.x, left, right), _vertical(chart.y, low, high, HEIGHT)
    whole = [tick for tick in chart.x.ticks(left, right) if tick == int(tick)]
    parts = [_grid(chart, x, y, HEIGHT, whole, chart.y.ticks(low, high))]
    width = max((x(1) - x(0)) * 0.85, 0.8)
    for number, count in chart.bars:
        top = y(count)
        said = escape(f"{number}: {short(count)}")
        parts.append(
            f'<rect class="bar c0" x="{_n(x(number) - width / 2)}" y="{_n(top)}" width="{_n(width)}" '
            f'height="{_n(y(0) - top)}"><title>{said}</title></rect>'
        )
    return "".join(parts)


def _cells(chart: HeatMap) -> tuple[str, int]:
    """A small map: each cell with its value."""
    rows, columns = chart.rows, chart.columns
    height = TOP + BOTTOM + max(26 * len(rows), 60)
    width, depth = (WIDTH - LEFT - RIGHT) / len(columns), (height - TOP - BOTTOM) / len(rows)
    parts = []
    for row, column, value in chart.cells:
        x, y = LEFT + columns.index(column) * width, TOP + rows.index(row) * depth
        strength = chart.strength(value)
        said = escape(f"{short(row)}, {short(column)}: {short(value)}")
        parts.append(
            f'<g class="cell"><rect class="c0" x="{_n(x)}" y="{_n(y)}" width="{_n(width - 1)}" '
            f'height="{_n(depth - 1)}" fill-opacity="{_n(strength, 3)}"/><title>{said}</title>'
            f'<text class="middle{_over(strength)}" x="{_n(x + width / 2)}" '
            f'y="{_n(y + depth / 2 + 4)}">{value:.2f}</text></g>'
        )
    for label, place in zip(tick_labels(rows), range(len(rows)), strict=True):
        parts.append(f'<text class="end" x="{LEFT - 8}" y="{_n(TOP + (place + 0.5) * depth + 4)}">{label}</text>')
    step = math.ceil(len(columns) / 9)
    for place, label in list(enumerate(tick_labels(columns)))[::step]:
        parts.append(_x_label(LEFT + (place + 0.5) * width, height, label))
    return "".join([*parts, _titles(chart, height)]), height


def _over(strength: float) -> str:
    """Classes of a text over a colour: the page turns it round where it would not be read, on white and on black."""
    return f"{' on-white' if strength > 0.8 else ''}{' on-black' if strength > 0.55 else ''}"


def _map(chart: HeatMap) -> tuple[str, int]:
    """A large map in scale: cells of one unit in a scaled group, which the page's script finds by x and y."""
    rows, columns = chart.rows, chart.columns
    shape = len(rows) / len(columns)
    height = TOP + BOTTOM + round(max(min(MAP_HEIGHT, (WIDTH - LEFT - RIGHT) * shape), 120))
    first_row, first_column = int(rows[0]), int(columns[0])
    across, down = (WIDTH - LEFT - RIGHT) / len(columns), (height - TOP - BOTTOM) / len(rows)
    x: Scale = lambda column: LEFT + (column - first_column + 0.5) * across  # noqa: E731
    y: Scale = lambda row: TOP + (row - first_row + 0.5) * down  # noqa: E731
    parts = [
        _grid(chart, x, y, height, _whole(columns), _whole(rows)),
        f'<g class="map" data-map="{escape(chart.name)}" transform="translate({_n(LEFT - first_column * across, 4)} '
        f'{_n(TOP - first_row * down, 4)}) scale({_n(across, 5)} {_n(down, 5)})">',
    ]
    for row, column, value in chart.cells:
        strength = max(chart.strength(value), 0.03)
        parts.append(f'<rect x="{column}" y="{row}" width="1" height="1" fill-opacity="{_n(strength, 2)}"/>')
    return "".join([*parts, "</g>"]), height


def _whole(values: Sequence[Number]) -> list[Number]:
    low, high = values[0], values[-1]
    ticks = Axis("").ticks(low, high) if high > low else [low]
    return [tick for tick in ticks if tick == int(tick)]


def _grid(chart: Chart, x: Scale, y: Scale, height: int, across: list[Number], up: list[Number]) -> str:
    parts = []
    for tick, label in zip(up, tick_labels(up), strict=True):
        parts.append(f'<path class="grid" d="M{LEFT} {_n(y(tick))}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="end" x="{LEFT - 8}" y="{_n(y(tick) + 4)}">{label}</text>')
    last = -math.inf
    for tick, label in zip(across, tick_labels(across), strict=True):
        parts.append(f'<path class="grid" d="M{_n(x(tick))} {TOP}V{height - BOTTOM}"/>')
        width = 7.5 * len(label) + 8
        if x(tick) - last >= width:  # labels do not touch
            parts.append(_x_label(x(tick), height, label))
            last = x(tick)
    return "".join([*parts, _titles(chart, height)])


def _x_label(x: float, height: int, label: str) -> str:
    return f'<text class="middle" x="{_n(x)}" y="{height - BOTTOM + 18}">{label}</text>'


def _titles(chart: Chart, height: int) -> str:
    middle, centre = (LEFT + WIDTH - RIGHT) / 2, (TOP + height - BOTTOM) / 2
    return (
        f'<text class="middle label" x="{_n(middle)}" y="{height - 8}">{escape(chart.x.label)}</text>'
        f'<text class="middle label" transform="translate(14 {_n(centre)}) rotate(-90)">{escape(chart.y.label)}</text>'
    )


def _horizontal(axis: Axis, low: float, high: float) -> Scale:
    return _scale(axis, low, high, LEFT, WIDTH - RIGHT)


def _vertical(axis: Axis, low: float, high: float, height: int) -> Scale:
    return _scale(axis, low, high, height - BOTTOM, TOP)


def _scale(axis: Axis, low: float, high: float, start: float, end: float) -> Scale:
    if axis.scale == "log":
        first, length = math.log(low), math.log(high / low)
        return lambda value: start + (end - start) * (math.log(value) - first) / length
    return lambda value: start + (end - start) * (value - low) / (high - low)


def _n(value: float, digits: int = 1) -> str:
    """A coordinate, short."""
    return f"{round(value, digits):g}" if digits < 4 else f"{value:.{digits}f}"
