"""Plots: their numbers are the measured ones, in the chart and in the CSV file."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hmt.report import charts
from hmt.report.charts import PLOTS, panels
from hmt.report.drawing import Panel, save
from tests.report.figures import FIGURES


def spec(panel: Panel) -> dict[str, Any]:
    assert panel.chart is not None
    return panel.chart.to_dict()


def data(chart: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that a chart draws."""
    return chart.get("data", chart.get("layer", [{}])[0].get("data"))["values"]


def channel(chart: dict[str, Any], name: str, layer: int = -1) -> dict[str, Any]:
    return chart["layer"][layer]["encoding"][name]


def drawn(section: str, figures: dict[str, Any] = FIGURES) -> dict[str, Panel]:
    return {panel.name: panel for panel in panels(figures, section)}


@pytest.mark.parametrize("section", PLOTS)
def test_chart_and_csv_hold_the_same_numbers(section: str) -> None:
    found = panels(FIGURES, section)
    assert found
    for panel in found:
        if panel.chart is not None:
            assert data(spec(panel)) == panel.rows
        columns, *rows = csv.reader(io.StringIO(panel.csv()))
        assert columns == list(panel.rows[0])
        assert rows == [["" if value is None else str(value) for value in row.values()] for row in panel.rows]


def test_every_registered_plot_draws_something() -> None:
    names = [panel.name for section in PLOTS for panel in panels(FIGURES, section)]
    for plots in PLOTS.values():
        assert all(any(name.startswith(plot) for name in names) for plot in plots if plot not in ("f1", "rouge-l"))
    assert all(panels({}, section) == [] for section in PLOTS)


def test_measured_values_and_intervals_reach_the_plot() -> None:
    rows = drawn("Quality against length")["perplexity"].rows
    assert rows[0] == {"row": "backbone", "context_tokens": 1024, "ppl": 30.125, "low": 30, "high": 31}
    assert [(row["row"], row["context_tokens"]) for row in rows] == [
        ("backbone", 1024), ("backbone", 8192), ("hmt", 1024), ("hmt", 8192),
    ]  # fmt: skip
    assert drawn("Speed and memory")["peak-mb"].rows[-1] == {"row": "hmt", "context_tokens": 8192, "peak_mb": 812.25}
    assert drawn("Needles")["needle-hmt"].rows[0] == {"depth": 0, "length": 64, "accuracy": 0.75}
    assert drawn("Recall")["recall-book-"].rows[-1] == {"segment": 4, "recalled": 3, "weight": 0.125}
    assert drawn("Recall")["recall-distance"].rows == [{"distance": 1, "count": 1}, {"distance": 2, "count": 3}]


def test_rows_have_a_color_and_series_a_dash() -> None:
    rows = [
        {"row": row, "series": series, "context_tokens": tokens, "ppl": 20.0, "ppl_causal": None}
        for row in ("backbone", "hmt") for series in ("untrained", "trained") for tokens in (2048, 1024)
    ]  # fmt: skip
    chart = spec(drawn("Quality against length", {"rows": rows})["perplexity"])
    assert channel(chart, "color", 0)["scale"]["domain"] == ["backbone", "hmt"]
    assert channel(chart, "strokeDash", 0)["scale"]["domain"] == ["untrained", "trained"]
    assert channel(chart, "shape")["scale"]["domain"] == ["backbone", "hmt"]
    assert [row["context_tokens"] for row in data(chart)[:2]] == [1024, 2048]
    assert all("low" not in row for row in data(chart))


def test_a_measure_is_plotted_against_the_length_that_its_rows_have() -> None:
    profile = [{"row": "hmt", "length": n, "tokens_per_second": 9.0, "peak_mb": None} for n in (64, 128)]
    (speed,) = panels({"rows": profile}, "Speed and memory")
    assert channel(spec(speed), "x")["field"] == "length"
    (accuracy,) = panels(
        {"rows": [{"row": "hmt", "distance": n, "accuracy": 0.5} for n in (1, 2)]}, "Quality against length"
    )
    assert channel(spec(accuracy), "x")["field"] == "distance"
    assert panels({"rows": [{"row": "hmt", "ppl": 3.0}]}, "Quality against length") == []


def test_small_differences_look_small_on_a_logarithmic_axis() -> None:
    rows = [{"row": "hmt", "length": n, "peak_mb": 800.0 + n} for n in (1, 2)]
    low, high = channel(spec(drawn("Speed and memory", {"rows": rows})["peak-mb"]), "y")["scale"]["domain"]
    assert high / low == pytest.approx(4.0)
    assert low < 801 < 802 < high


def test_rows_of_a_single_length_stand_side_by_side() -> None:
    rows = [{"row": f"row {n}", "context_tokens": 1024, "ppl": 9.0, "ppl_low": 8.5, "ppl_high": 9.5} for n in range(3)]
    chart = spec(drawn("Quality against length", {"rows": rows})["perplexity"])
    assert channel(chart, "x")["field"] == "row"
    assert [layer["mark"]["type"] for layer in chart["layer"]] == ["rule", "point"]


def test_missing_values_and_values_that_are_not_numbers_are_left_out() -> None:
    rows = [
        {"row": "hmt", "context_tokens": 64, "ppl": None},
        {"row": "hmt", "context_tokens": 128, "ppl": float("nan")},
        {"row": "hmt", "context_tokens": 256, "ppl": 3.5, "ppl_low": None, "ppl_high": None},
    ]
    assert (
        drawn("Quality against length", {"rows": rows})["perplexity"].csv() == "row,context_tokens,ppl\nhmt,256,3.5\n"
    )
    history = [
        {"step": 1, "stage": "a", "loss": 3.0, "grad_norm": 0.0},
        {"step": 2, "stage": "b", "loss": float("nan"), "grad_norm": 0.5},
        {"step": 3, "stage": "b", "loss": 2.0, "validation_loss": 2.5},
    ]
    training = drawn("Training", {"history": history})
    assert [(row["series"], row["step"], row["loss"]) for row in training["loss"].rows] == [
        ("training", 1, 3.0), ("training", 3, 2.0), ("validation", 3, 2.5),
    ]  # fmt: skip
    assert [row["grad_norm"] for row in training["gradient-norm"].rows] == [0.5]
    begins = [layer["data"]["values"] for layer in spec(training["loss"])["layer"] if layer["mark"]["type"] == "rule"]
    assert begins == [[{"at": 1.5, "label": "stage b"}]]


@pytest.mark.parametrize("histogram", [{"1": 2, "3": 1}, [[3, 1], [1, 2], [0, 9]], [1, 3, 1, 0]])
def test_distances_are_counted_however_they_are_written(histogram: object) -> None:
    assert drawn("Recall", {"recall_distances": histogram})["recall-distance"].csv() == "distance,count\n1,2\n3,1\n"


def test_a_long_text_keeps_the_strongest_cells_of_each_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "MOST_CELLS", 100)
    entries = [
        {"segment": n, "weights": [[slot, (slot + 1) / 100] for slot in range(n)], "distance": 1} for n in range(20)
    ]
    panel = drawn("Recall", {"recall": entries})["recall--"]
    assert len(panel.rows) <= 100
    cells = {(row["segment"], row["recalled"]): row["weight"] for row in panel.rows}
    assert cells[19, 18] == 0.19
    assert (19, 0) not in cells


def test_a_recall_map_finds_both_texts_of_a_cell() -> None:
    chart = spec(drawn("Recall")["recall-book-"])
    first, _, second, _ = chart["transform"][:4]
    assert (first["lookup"], second["lookup"]) == ("recalled", "segment")
    assert second["from"]["data"]["values"][1]["text"] == FIGURES["recall"][1]["text"]


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_pictures_show_every_chart(kind: str, tmp_path: Path) -> None:
    names = {"perplexity", "loss", "recall-distance", "needle-hmt", "recall-book-"}  # one of each kind of chart
    found = [panel for section in PLOTS for panel in panels(FIGURES, section) if panel.name in names]
    assert len(found) == len(names)
    file = tmp_path / "deep" / f"all.{kind}"
    save(found, file, columns=3)
    if kind == "svg":
        assert all(panel.title in file.read_text() for panel in found)
        return
    with Image.open(file) as picture:
        width, height = picture.width // 3, picture.height // -(-len(found) // 3)
        assert width > 1000
        for number in range(len(found)):
            left, top = number % 3 * width, number // 3 * height
            part = picture.convert("RGB").crop((left, top, left + width, top + height)).resize((96, 96))
            assert len(part.getcolors(1 << 14) or ()) > 20
