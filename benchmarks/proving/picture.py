"""Accuracy against distance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hmt.report.drawing import Axis, Panel, lines, save
from proving.tasks import KINDS, TASKS

SHUFFLED = ", shuffled"


def draw(summary: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw a plot for each task: the mean over seeds, and a band from the least to the greatest.

    Args:
        summary: Rows with `task`, `row`, `distance`, `mean`, `least`, `greatest`; shuffled memory only for hmt.
        path: The PNG file.
    """
    panels = []
    for task in [name for name in TASKS if any(row["task"] == name for row in summary)]:
        own = [row for row in summary if row["task"] == task]
        shown = [row for row in own if SHUFFLED not in row["row"] or row["row"] == f"hmt{SHUFFLED}"]
        rows = [
            {
                "row": row["row"].removesuffix(SHUFFLED),
                "series": "shuffled" if SHUFFLED in row["row"] else "own memory",
                "distance": row["distance"], "accuracy": row["mean"], "low": row["least"], "high": row["greatest"],
            }
            for row in shown
        ]  # fmt: skip
        for distance in sorted({row["distance"] for row in shown}):
            chance = {"distance": distance, "accuracy": 1 / KINDS, "low": None, "high": None}
            rows.append({"row": "chance", "series": "own memory", **chance})
        x = Axis("distance", "segments from the last fact to the question")
        panels.append(Panel(task, task, "", rows, lines(rows, x, Axis("accuracy", "share of right answers"))))
    save(panels, path)
