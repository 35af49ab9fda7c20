"""Tables and plots."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from hmt.report.plot import plot_perplexity
from hmt.report.table import format_table


def test_a_table_lines_up() -> None:
    rows = [{"name": "a", "n": 1, "x": 2.5}, {"name": "longer", "n": 12345, "x": None}]
    assert format_table(rows, {"name": "row", "n": "count", "x": "value"}).splitlines() == [
        "row      count  value",
        "------  ------  -----",
        "a            1   2.50",
        "longer  12,345      -",
    ]


def test_a_plot_is_a_picture(tmp_path: Path) -> None:
    rows = [
        {"row": row, "series": series, "context_tokens": n, "ppl": 20 + i}
        for i, row in enumerate(("backbone", "hmt"))
        for series in ("untrained", "trained")
        for n in (1024, 2048)
    ]
    plot_perplexity(rows, tmp_path / "deep" / "plot.png", "title")
    with Image.open(tmp_path / "deep" / "plot.png") as picture:
        assert picture.width > 800
        assert len(set(picture.convert("RGB").resize((64, 64)).getdata())) > 10
