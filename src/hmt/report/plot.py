"""Plots as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hmt.atomic import atomic_file
from hmt.report.charts import COLOURS, BarChart, Chart, HeatMap, LineChart, tick_labels

MARKS = "os^Dvp<h"
PANEL = (6.4, 4.0)
"""Inches, across and down."""


def save_png(charts: Sequence[Chart], path: Path, across: int = 1) -> None:
    """Draw plots into one picture.

    Args:
        charts: At least one; line by line.
        path: The PNG file, which appears whole or not at all.
        across: Plots side by side.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    down = -(-len(charts) // across)
    size = (PANEL[0] * across + 1.2, PANEL[1] * down)
    figure, grid = plt.subplots(down, across, figsize=size, layout="constrained", squeeze=False)
    for axes, chart in zip(grid.flat, charts, strict=False):
        axes.set_title(chart.title, loc="left", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
        if isinstance(chart, LineChart):
            _lines(axes, chart)
        elif isinstance(chart, BarChart):
            _bars(axes, chart)
        elif isinstance(chart, HeatMap):
            _map(figure, axes, chart)
        axes.set_xlabel(chart.x.label)
        axes.set_ylabel(chart.y.label)
    for axes in grid.flat[len(charts) :]:
        axes.set_visible(False)
    with atomic_file(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=150)
    plt.close(figure)


def _lines(axes: Any, chart: LineChart) -> None:
    for line in sorted(chart.lines, key=lambda one: not one.faint):
        x, y = chart.places(line), [point.y for point in line.points]
        axes.plot(
            x,
            y,
            color=COLOURS[line.colour % len(COLOURS)],
            linestyle=(0, line.strokes) if line.strokes else "-",
            linewidth=1 if line.faint else 1.6,
            alpha=0.35 if line.faint else 1,
            marker=MARKS[(line.colour + line.colour // len(COLOURS)) % len(MARKS)] if line.marked else None,
            markersize=4.5,
            label=None if line.faint else line.name,
        )
        points = zip(x, line.points, strict=True)
        banded = [(place, p.low, p.high) for place, p in points if p.low is not None and p.high is not None]
        if len(banded) > 1:
            axes.fill_between(
                *zip(*banded, strict=True), color=COLOURS[line.colour % len(COLOURS)], alpha=chart.shade, lw=0
            )
        elif banded:
            axes.vlines(*zip(*banded, strict=True), color=COLOURS[line.colour % len(COLOURS)])
    _span(axes, chart)
    for place, label in chart.borders:
        axes.axvline(place, color="#999999", linewidth=1, linestyle=":")
        axes.text(place, 0.98, f" {label}", transform=axes.get_xaxis_transform(), va="top", fontsize=8)
    if len([line for line in chart.lines if not line.faint]) > 1 or any(line.faint for line in chart.lines):
        axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _bars(axes: Any, chart: BarChart) -> None:
    axes.bar(*zip(*chart.bars, strict=True), width=0.85, color=COLOURS[0])
    _span(axes, chart)


def _span(axes: Any, chart: LineChart | BarChart) -> None:
    """The ends of the axes, and the ticks, as the chart says."""
    for axis, own, ends in ((axes.xaxis, chart.x, chart.span[0]), (axes.yaxis, chart.y, chart.span[1])):
        axis.axes.set(**{f"{axis.axis_name}scale": own.scale})
        axis.axes.set(**{f"{axis.axis_name}lim": ends})
        ticks = own.ticks(*ends)
        axis.set_ticks(ticks, tick_labels(ticks))
        axis.set_ticks([], minor=True)
    axes.set_axisbelow(True)
    axes.grid(alpha=0.3)


def _map(figure: Any, axes: Any, chart: HeatMap) -> None:
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    rows, columns = chart.rows, chart.columns
    places = {row: index for index, row in enumerate(rows)}, {column: index for index, column in enumerate(columns)}
    heat = np.full((len(rows), len(columns)), np.nan)
    for row, column, value in chart.cells:
        heat[places[0][row], places[1][column]] = value
    shades = LinearSegmentedColormap.from_list("one colour", ["#f2f6fa", COLOURS[0]])
    norm = PowerNorm(chart.power, vmin=0, vmax=chart.top)
    image = axes.imshow(heat, aspect="auto", cmap=shades, norm=norm, interpolation="nearest")
    figure.colorbar(image, ax=axes, label=chart.value)
    for axis, values in ((axes.xaxis, columns), (axes.yaxis, rows)):
        step = -(-len(values) // 10)
        axis.set_ticks(range(0, len(values), step), tick_labels(values)[::step])
    if not chart.whole:
        for row, column, value in chart.cells:
            colour = "white" if chart.strength(value) > 0.8 else "black"
            place = (places[1][column], places[0][row])
            axes.text(*place, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=9)
