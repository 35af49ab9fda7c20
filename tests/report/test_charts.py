"""Plots as values: their numbers, ticks and ends."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from PIL import Image

from hmt.report.charts import Axis, BarChart, Chart, HeatMap, Line, LineChart, Point, short, tick_labels
from hmt.report.curves import training_charts
from hmt.report.maps import MOST_CELLS, recall_charts
from hmt.report.measured import COST, QUALITY, measured_charts, needle_charts
from hmt.report.plot import save_png
from hmt.report.svg import draw


def lines(**more: object) -> LineChart:
    """A plot of two lines, one with an interval."""
    points = (Point(1024, 20.5, 19.0, 22.0), Point(2048, 20.25, 18.5, 21.75))
    parts = (Line("hmt", points), Line("backbone", (Point(1024, 30.0),), colour=1, dash=1))
    axes = {"x": Axis("context", "log", (1024, 2048)), "y": Axis("perplexity")} | more
    return LineChart("perplexity", "Perplexity", "", lines=parts, **axes)  # type: ignore[arg-type]


EVERY_KIND: list[Chart] = [
    lines(),
    BarChart("bars", "Bars", "", Axis("distance"), Axis("segments"), ((1, 3), (7, 1))),
    HeatMap("cells", "Cells", "", Axis("length"), Axis("depth"), ((0.0, 1024, 0.5), (1.0, 1024, 1.0)), "accuracy", 1.0),
    HeatMap("map", "Map", "", Axis("recalled"), Axis("segment"), ((1, 0, 0.7), (5, 3, 0.2)), "weight", 0.7, 0.5, True),
]


def test_a_csv_has_the_intervals_and_gaps_where_there_are_none() -> None:
    rows = list(csv.reader(io.StringIO(lines().csv())))
    assert rows == [
        ["line", "context", "perplexity", "low", "high"],
        ["hmt", "1024", "20.5", "19.0", "22.0"],
        ["hmt", "2048", "20.25", "18.5", "21.75"],
        ["backbone", "1024", "30.0", "", ""],
    ]


@pytest.mark.parametrize("chart", EVERY_KIND, ids=lambda chart: chart.name)
def test_every_kind_is_drawn_as_svg_and_as_png(chart: Chart, tmp_path: Path) -> None:
    assert draw(chart).startswith("<svg ")
    save_png([chart, chart], tmp_path / "deep" / "plot.png", across=2)
    with Image.open(tmp_path / "deep" / "plot.png") as picture:
        assert picture.width > 1500
        assert len(picture.convert("RGB").resize((64, 64)).getcolors(1 << 12) or ()) > 5


@pytest.mark.parametrize(
    ("axis", "low", "high", "ticks"),
    [
        (Axis(""), 11.9, 20.3, [12, 14, 16, 18, 20]),
        (Axis(""), 0.0, 0.23, [0, 0.05, 0.1, 0.15, 0.2]),
        (Axis("", "log"), 900, 110_000, [1000, 10_000, 100_000]),
        (Axis("", "log"), 90, 1100, [100, 200, 500, 1000]),
        (Axis("", "log"), 510, 560, [510, 520, 530, 540, 550, 560]),
        (Axis("", "log", (512, 1024, 4096)), 500, 3000, [512, 1024]),
    ],
)
def test_ticks_are_round_numbers_or_those_asked_for(axis: Axis, low: float, high: float, ticks: list[float]) -> None:
    assert axis.ticks(low, high) == ticks


def test_an_axis_of_one_value_has_room_on_both_sides() -> None:
    for axis in (Axis(""), Axis("", "log"), Axis("", "log", least=4.0)):
        low, high = axis.limits([512.0])
        assert low < 512 < high
        assert len(axis.ticks(low, high)) >= 1
    low, high = Axis("", "log", least=4.0).limits([800.0, 820.0])
    assert high / low == pytest.approx(4.0)  # what hardly grows looks as if it hardly grew


def test_numbers_are_written_short() -> None:
    assert [short(value) for value in (None, 0, 3, 2048, 28.0234, 0.00012)] == [
        "-",
        "0",
        "3",
        "2,048",
        "28.02",
        "1.20e-04",
    ]
    assert tick_labels([512, 1024, 10240, 1 << 20]) == ["512", "1k", "10k", "1M"]
    assert tick_labels([1000, 2500]) == ["1,000", "2,500"]
    assert tick_labels([0.0001, 0.5]) == ["1e-4", "0.5"]


def test_lines_are_told_apart_by_row_and_series() -> None:
    rows = [
        {"row": row, "series": series, "context_tokens": tokens, "ppl": 20.0, "ppl_causal": None}
        for row in ("backbone", "hmt")
        for series in ("untrained", "trained")
        for tokens in (2048, 1024)
    ]
    (chart,) = measured_charts(QUALITY, rows)
    assert isinstance(chart, LineChart)
    assert [(line.name, line.colour, line.dash) for line in chart.lines] == [
        ("backbone, untrained", 0, 0),
        ("hmt, untrained", 1, 0),
        ("backbone, trained", 0, 1),
        ("hmt, trained", 1, 1),
    ]
    assert [point.x for point in chart.lines[0].points] == [1024, 2048]
    assert chart.table()[0] == ["line", "context_tokens", "ppl"]  # no interval was measured


def test_a_measure_is_plotted_against_whatever_length_its_rows_have() -> None:
    profile = [
        {"row": "hmt", "length": n, "tokens_per_second": 9.0, "ms_per_token": 70.0, "peak_mb": None} for n in (64, 128)
    ]
    distances = [{"row": "hmt", "distance": n, "accuracy": 0.5} for n in (1, 2)]
    assert [chart.name for chart in measured_charts(COST, profile)] == ["tokens_per_second", "ms_per_token"]
    (chart,) = measured_charts(QUALITY, distances)
    assert chart.x.key == "distance"
    assert measured_charts(QUALITY, [{"row": "hmt", "ppl": 3.0}]) == []


def test_rows_of_a_single_length_stand_side_by_side() -> None:
    rows = [{"row": f"row {n}", "context_tokens": 1024, "ppl": 9.0, "ppl_low": 8.5, "ppl_high": 9.5} for n in range(10)]
    (chart,) = measured_charts(QUALITY, rows)
    assert isinstance(chart, LineChart)
    places = [place for line in chart.lines for place in chart.places(line)]
    left, right = chart.span[0]
    assert places == sorted(set(places))
    assert left < places[0] < places[-1] < right
    assert {row[1] for row in chart.table()[1]} == {1024}  # the numbers stay what they are
    assert draw(chart).count('class="whisker"') == 10
    looks = [(line.colour % 8, line.strokes) for line in chart.lines]
    assert len(set(looks)) == 10


def test_each_row_has_a_map_of_needles() -> None:
    cells = [
        {"row": row, "length": n, "depth": d, "accuracy": 0.25, "count": 4}
        for row in ("hmt", "rmt") for n in (64, 128) for d in (1.0, 0.0)
    ]  # fmt: skip
    charts = needle_charts(cells)
    assert [chart.name for chart in charts] == ["needle-hmt", "needle-rmt"]
    assert charts[0].table() == (
        ["depth", "length", "accuracy"], [[0.0, 64, 0.25], [0.0, 128, 0.25], [1.0, 64, 0.25], [1.0, 128, 0.25]],
    )  # fmt: skip


@pytest.mark.parametrize("histogram", [{"1": 2, "3": 1}, [[3, 1], [1, 2], [0, 9]], [1, 3, 1, 0]])
def test_distances_are_counted_however_they_are_written(histogram: object) -> None:
    (chart,) = recall_charts([], histogram)
    assert chart.csv() == "distance,count\n1,2\n3,1\n"


def test_a_long_text_keeps_the_strongest_of_each_segment() -> None:
    records = [
        {"segment": n, "weights": [[slot, (slot + 1) / 1000] for slot in range(n)], "distance": 1} for n in range(200)
    ]
    chart = recall_charts(records)[0]
    assert isinstance(chart, HeatMap)
    assert len(chart.cells) <= MOST_CELLS
    assert (199, 198, 0.199) in chart.cells
    assert (199, 0, 0.001) not in chart.cells
    assert "weaker ones are left out" in chart.note


def test_a_step_without_a_number_leaves_a_gap_in_the_curves() -> None:
    history = [
        {"step": 1, "stage": "a", "loss": 3.0, "grad_norm": 0.0, "learning_rates": {"memory": 1e-3}},
        {"step": 2, "stage": "b", "loss": float("nan"), "grad_norm": 0.5, "learning_rates": {"memory": 1e-3}},
        {"step": 3, "stage": "b", "loss": 2.0, "validation_loss": 2.5, "learning_rates": {"memory": 1e-3}},
    ]
    loss, norm, rates = training_charts(history)
    assert loss.table()[1][:2] == [["each step", 1, 3.0], ["each step", 3, 2.0]]
    assert loss.table()[1][-1] == ["validation", 3, 2.5]
    assert norm.table()[1] == [["gradient norm", 2, 0.5]]
    assert len(rates.table()[1]) == 3
    assert isinstance(loss, LineChart)
    assert loss.borders == ((1.5, "stage b"),)
    assert training_charts([{"step": 1}]) == []
