"""Tables for the screen."""

from __future__ import annotations

from hmt.report.table import format_table


def test_a_table_lines_up() -> None:
    rows = [{"name": "a", "n": 1, "x": 2.5}, {"name": "longer", "n": 12345, "x": None}]
    assert format_table(rows, {"name": "row", "n": "count", "x": "value"}).splitlines() == [
        "row      count  value",
        "------  ------  -----",
        "a            1   2.50",
        "longer  12,345      -",
    ]
