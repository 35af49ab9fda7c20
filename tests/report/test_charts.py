"""Plots: their numbers are the measured ones, in the chart and in the CSV file."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hmt.report.charts import PLOTS, panels
from hmt.report.drawing import Panel, save
from tests.report.figures import FIGURES


def spec(panel: Panel) -> dict[str, Any]:
    assert panel.chart is not None
    return panel.chart.to_dict()


def data(chart: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that a chart draws."""
    return chart.get("data", chart.get("layer", [{}])[0].get("data"))["values"]


def drawn(section: str, figures: dict[str, Any] = FIGURES) -> dict[str, Panel]:
    return {panel.name: panel for panel in panels(figures, section)}


@pytest.mark.parametrize("section", PLOTS)
def test_chart_and_csv_hold_the_same_numbers(section: str) -> None:
    found = panels(FIGURES, section)
    assert len(found) >= len(PLOTS[section])
    assert panels({}, section) == []
    for panel in found:
        if panel.chart is not None:
            assert data(spec(panel)) == panel.rows
        columns, *rows = csv.reader(io.StringIO(panel.csv()))
        assert columns == list(panel.rows[0])
        assert rows == [["" if value is None else str(value) for value in row.values()] for row in panel.rows]


def test_measured_values_and_intervals_reach_the_plot() -> None:
    rows = drawn("Quality against length")["perplexity"].rows
    assert rows[0] == {"row": "backbone", "context_tokens": 1024, "ppl": 30.125, "low": 30, "high": 31}
    assert [(row["row"], row["context_tokens"]) for row in rows] == [
        ("backbone", 1024), ("backbone", 8192), ("hmt", 1024), ("hmt", 8192),
    ]  # fmt: skip
    peak = drawn("Speed and memory")["peak-memory"].rows[-1]
    assert peak == {"row": "hmt", "context_tokens": 8192, "peak_mb": 812.25}
    assert drawn("Recall")["recall-book"].rows[-1] == {"segment": 4, "recalled": 3, "weight": 0.125}
    assert drawn("Recall")["recall-distance"].rows == [{"distance": 1, "count": 1}, {"distance": 2, "count": 3}]


def test_rows_have_a_color_and_series_a_dash() -> None:
    rows = [
        {"row": row, "series": series, "context_tokens": tokens, "ppl": 20.0, "ppl_causal": None}
        for row in ("backbone", "hmt") for series in ("untrained", "trained") for tokens in (2048, 1024)
    ]  # fmt: skip
    panel = drawn("Quality against length", {"rows": rows})["perplexity"]
    line, *_ = spec(panel)["layer"]
    assert line["encoding"]["color"]["scale"]["domain"] == ["backbone", "hmt"]
    assert line["encoding"]["strokeDash"]["scale"]["domain"] == ["untrained", "trained"]
    assert [row["context_tokens"] for row in panel.rows[:2]] == [1024, 2048]


def test_a_measure_is_plotted_against_the_length_that_its_rows_have() -> None:
    profile = [{"row": "hmt", "length": n, "tokens_per_second": 9.0, "peak_mb": None} for n in (64, 128)]
    (speed,) = panels({"rows": profile}, "Speed and memory")
    assert "length" in speed.rows[0]
    assert panels({"rows": [{"row": "hmt", "ppl": 3.0}]}, "Quality against length") == []


def test_costs_that_span_a_factor_of_ten_have_a_logarithmic_axis() -> None:
    for most, kind in ((900.0, None), (9000.0, "log")):
        rows = [{"row": "hmt", "length": n, "peak_mb": value} for n, value in ((1, 800.0), (2, most))]
        line, *_ = spec(drawn("Speed and memory", {"rows": rows})["peak-memory"])["layer"]
        assert line["encoding"]["y"]["scale"].get("type") == kind


def test_missing_values_and_values_that_are_not_numbers_are_left_out() -> None:
    rows = [
        {"row": "hmt", "context_tokens": 64, "ppl": None},
        {"row": "hmt", "context_tokens": 128, "ppl": float("nan")},
        {"row": "hmt", "context_tokens": 256, "ppl": 3.5, "ppl_low": None, "ppl_high": None},
    ]
    (panel,) = panels({"rows": rows}, "Quality against length")
    assert panel.csv() == "row,context_tokens,ppl\nhmt,256,3.5\n"
    history = [
        {"step": 1, "stage": "a", "loss": 3.0},
        {"step": 2, "stage": "b", "loss": float("nan")},
        {"step": 3, "stage": "b", "loss": 2.0, "validation_loss": 2.5},
    ]
    (loss,) = panels({"history": history}, "Training")
    assert [(row["series"], row["step"], row["loss"]) for row in loss.rows] == [
        ("training", 1, 3.0), ("training", 3, 2.0), ("validation", 3, 2.5),
    ]  # fmt: skip
    begins = [layer["data"]["values"] for layer in spec(loss)["layer"] if layer["mark"]["type"] == "rule"]
    assert begins == [[{"at": 1.5, "label": "stage b"}]]


def test_a_recall_map_finds_both_texts_of_a_cell() -> None:
    chart = spec(drawn("Recall")["recall-book"])
    first, _, second, _ = chart["transform"][:4]
    assert (first["lookup"], second["lookup"]) == ("recalled", "segment")
    assert second["from"]["data"]["values"][1]["text"] == FIGURES["recall"][1]["text"]


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_pictures_show_every_chart(kind: str, tmp_path: Path) -> None:
    names = {"perplexity", "loss", "recall-distance", "recall-book"}  # one of each kind of chart
    found = [panel for section in PLOTS for panel in panels(FIGURES, section) if panel.name in names]
    assert len(found) == len(names)
    file = tmp_path / "deep" / f"all.{kind}"
    save(found, file, columns=2)
    if kind == "svg":
        assert all(panel.title in file.read_text() for panel in found)
        return
    with Image.open(file) as picture:
        width, height = picture.width // 2, picture.height // 2
        assert width > 1000
        for number in range(len(found)):
            left, top = number % 2 * width, number // 2 * height
            part = picture.convert("RGB").crop((left, top, left + width, top + height)).resize((96, 96))
            assert len(part.getcolors(1 << 14) or ()) > 20
