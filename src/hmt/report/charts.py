"""What a plot shows, as plain values: the page, the PNG and the CSV of a plot are made of the same one.

Units are in the labels of the axes.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

COLOURS = ("#0072b2", "#d55e00", "#008f68", "#a64d79", "#b07d00", "#3d8fc4", "#7a4fb5", "#5c6770")
"""Of lines on white, in order; after those of Okabe and Ito, which colour-blind people can tell apart."""

DARK_COLOURS = ("#56b4e9", "#f0813a", "#35c99a", "#e08cb8", "#e6b93c", "#9ccdf0", "#b39ae6", "#a9b4bd")
"""The same on black."""

DASHES = ((), (6.0, 4.0), (2.0, 3.0))
"""Of lines, in order: lengths of strokes and gaps."""

Number = int | float
Cell = int | float | str | None


@dataclass(frozen=True)
class Axis:
    """One direction of a plot.

    Attributes:
        label: What it counts, with the unit.
        scale: How values are spread.
        at: Where ticks stand; by default at round numbers.
        key: Its column in the CSV; by default the label.
        least: How many times the lower end the upper end of a logarithmic axis is at least, so that what hardly differs
            looks alike.
    """

    label: str
    scale: Literal["linear", "log"] = "linear"
    at: tuple[Number, ...] = ()
    key: str = ""
    least: float = 1.0

    def ticks(self, low: float, high: float) -> list[Number]:
        """Where ticks stand between two values, and at them."""
        inside = [value for value in self.at if low <= value <= high]
        if inside:
            return inside
        if self.scale == "log" and (found := _round_numbers(low, high)):
            return found
        return _even_numbers(low, high)

    def limits(self, values: Sequence[float]) -> tuple[float, float]:
        """The ends of the axis, a little beyond the values."""
        low, high = min(values), max(values)
        if self.scale == "log":
            room = max((high / low) ** 1.12, self.least, 1.02) ** 0.5
            middle = (low * high) ** 0.5
            return middle / room, middle * room
        room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
        return low - room, high + room


@dataclass(frozen=True)
class Point:
    """A point of a line, and the ends of its interval where it has one."""

    x: Number
    y: Number
    low: Number | None = None
    high: Number | None = None


@dataclass(frozen=True)
class Line:
    """Points by ascending x, drawn as one line.

    Attributes:
        name: In the legend.
        points: At least one.
        colour: Index of its colour; lines that belong together share it.
        dash: Index of its dashes.
        marked: Draw a mark at each point.
        faint: Draw it behind the others, without a place in the legend.
    """

    name: str
    points: tuple[Point, ...]
    colour: int = 0
    dash: int = 0
    marked: bool = True
    faint: bool = False

    @property
    def strokes(self) -> tuple[float, ...]:
        """Lengths of strokes and gaps; other ones where the colours begin again. None for an unbroken line."""
        return DASHES[(self.dash + self.colour // len(COLOURS)) % len(DASHES)]


@dataclass(frozen=True)
class Chart:
    """What all plots have.

    Attributes:
        name: Of its files, and of its place on the page.
        title: Above it.
        note: What is to be known to read it.
        x: To the right.
        y: Upwards (of a heat map downwards).
    """

    name: str
    title: str
    note: str
    x: Axis
    y: Axis

    def table(self) -> tuple[list[str], list[list[Cell]]]:
        """Its numbers: the columns, and the rows."""
        raise NotImplementedError

    def csv(self) -> str:
        """Its numbers as CSV."""
        return as_csv(*self.table())


@dataclass(frozen=True)
class LineChart(Chart):
    """Lines.

    Attributes:
        lines: At least one.
        borders: Positions on x where something begins, and what.
    """

    lines: tuple[Line, ...]
    borders: tuple[tuple[Number, str], ...] = ()

    @property
    def shade(self) -> float:
        """Opacity of a band: many of them, one over the other, are to stay lighter than the lines."""
        banded = sum(any(point.low is not None for point in line.points) for line in self.lines)
        return min(0.15, 0.5 / max(banded, 1))

    def table(self) -> tuple[list[str], list[list[Cell]]]:
        """One row a point; the interval only where there is one."""
        points = [(line.name, point) for line in self.lines for point in line.points]
        columns = ["line", self.x.key or self.x.label, self.y.key or self.y.label]
        rows: list[list[Cell]] = [[name, point.x, point.y] for name, point in points]
        if any(point.low is not None for _, point in points):
            columns += ["low", "high"]
            rows = [[*row, point.low, point.high] for row, (_, point) in zip(rows, points, strict=True)]
        return columns, rows

    def places(self, line: Line) -> list[Number]:
        """Where the points of a line stand on x: where they are, but side by side where all have the same."""
        if len(self.lines) < 2 or len({point.x for one in self.lines for point in one.points}) > 1:
            return [point.x for point in line.points]
        left, right = self.span[0]
        share = (self.lines.index(line) + 1) / (len(self.lines) + 1)
        between = left * (right / left) ** share if self.x.scale == "log" else left + (right - left) * share
        return [between] * len(line.points)

    @property
    def span(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The ends of x and of y."""
        points = [point for line in self.lines for point in line.points]
        heights = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
        return self.x.limits([point.x for point in points]), self.y.limits(heights)


@dataclass(frozen=True)
class BarChart(Chart):
    """Counts of whole numbers.

    Attributes:
        bars: Number and count, by ascending number.
    """

    bars: tuple[tuple[int, Number], ...]

    def table(self) -> tuple[list[str], list[list[Cell]]]:
        """One row a bar."""
        return [self.x.key or self.x.label, self.y.key or self.y.label], [list(bar) for bar in self.bars]

    @property
    def span(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The ends of x and of y."""
        numbers = [number for number, _ in self.bars]
        return (min(numbers) - 0.6, max(numbers) + 0.6), (0.0, max(count for _, count in self.bars) * 1.06)


@dataclass(frozen=True)
class HeatMap(Chart):
    """A value for each pair of a row and a column, as the strength of one colour.

    Attributes:
        cells: Row, column and value.
        value: What the values are.
        top: The value of full colour.
        power: Of the colour: value / top to this power.
        whole: Rows and columns are whole numbers, drawn in scale; else each has the same room, with the value in it.
        texts: Of the rows and columns of a whole-numbered map, by their number.
    """

    cells: tuple[tuple[Number, Number, Number], ...]
    value: str
    top: float
    power: float = 1.0
    whole: bool = False
    texts: tuple[tuple[int, str], ...] = ()

    def table(self) -> tuple[list[str], list[list[Cell]]]:
        """One row a cell."""
        return [self.y.key or self.y.label, self.x.key or self.x.label, self.value], [list(cell) for cell in self.cells]

    @property
    def rows(self) -> list[Number]:
        """Rows from top to bottom."""
        return self._places([cell[0] for cell in self.cells])

    @property
    def columns(self) -> list[Number]:
        """Columns from left to right."""
        return self._places([cell[1] for cell in self.cells])

    def strength(self, value: Number) -> float:
        """How much colour a value has, 0 to 1."""
        return float(min(max(value / self.top, 0.0), 1.0) ** self.power) if self.top else 0.0

    def _places(self, values: list[Number]) -> list[Number]:
        return list(range(int(min(values)), int(max(values)) + 1)) if self.whole else sorted(set(values))


def as_csv(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Rows as CSV, numbers in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def short(value: Number | None) -> str:
    """A number as people read it."""
    if value is None:
        return "-"
    if value == 0 or (isinstance(value, float) and not math.isfinite(value)):
        return f"{value:g}"
    if abs(value) >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 1e-3 else f"{value:.2e}"


def tick_labels(ticks: Sequence[Number]) -> list[str]:
    """Ticks with as few digits as tell them apart; token counts that are whole powers of 1,024 as 1k and 1M."""
    kilo = [tick for tick in ticks if tick >= 1024]
    if kilo and all(tick % 1024 == 0 for tick in kilo) and all(tick == int(tick) for tick in ticks):
        return [_binary(int(tick)) for tick in ticks]
    return [_decimal(tick) for tick in ticks]


def _decimal(tick: Number) -> str:
    if abs(tick) >= 1000:
        return f"{tick:,.0f}"
    return f"{tick:.3e}".replace(".000", "").replace("e-0", "e-") if 0 < abs(tick) < 1e-3 else f"{tick:.6g}"


def _binary(tick: int) -> str:
    if tick >= 1 << 20 and tick % (1 << 20) == 0:
        return f"{tick >> 20}M"
    return f"{tick >> 10}k" if tick >= 1024 else str(tick)


def _even_numbers(low: float, high: float, count: int = 5) -> list[Number]:
    """About `count` multiples of 1, 2 or 5 times a power of ten."""
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    ticks = [round(number * step, digits) for number in range(first, last + 1)]
    return [int(tick) if tick == int(tick) else tick for tick in ticks]


def _round_numbers(low: float, high: float, count: int = 6) -> list[Number]:
    """Powers of ten, with their halves and fifths where there is room; nothing where they do not tell a range."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1,)):
        ticks = [factor * 10.0**power for power in powers for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if 2 < len(ticks) <= count:
            break
    else:
        ticks = ticks[:: math.ceil(len(ticks) / count)] if len(ticks) > count else []
    return [int(tick) if tick >= 1 else tick for tick in ticks]
