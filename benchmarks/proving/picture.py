"""Accuracy against distance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hmt.atomic import atomic_file
from hmt.report.plot import COLOURS
from proving.tasks import KINDS, TASKS

SHUFFLED = ", shuffled"


def draw(summary: Sequence[dict[str, Any]], path: Path) -> None:
    """A plot for each task: mean over the seeds, and between the least and the greatest a shade.

    Args:
        summary: Rows with `task`, `row`, `distance`, `mean`, `least`, `greatest`; shuffled memory only for hmt.
        path: The PNG file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter

    tasks = [name for name in TASKS if any(row["task"] == name for row in summary)]
    figure, plots = plt.subplots(len(tasks), 1, figsize=(8, 3.2 * len(tasks)), layout="constrained", squeeze=False)
    colours: dict[str, str] = {}  # the same in every plot
    for axes, task in zip(plots[:, 0], tasks, strict=True):
        own = [row for row in summary if row["task"] == task]
        names = [n for n in dict.fromkeys(row["row"] for row in own) if SHUFFLED not in n or n == f"hmt{SHUFFLED}"]
        for number, name in enumerate(names):
            colour = colours.setdefault(name, COLOURS[len(colours) % len(COLOURS)])
            line = sorted((row for row in own if row["row"] == name), key=lambda row: row["distance"])
            distances = [row["distance"] for row in line]
            style = ":" if SHUFFLED in name else "-"
            width = max(4 - 0.6 * number, 1)  # lines that fall together stay visible
            means = [row["mean"] for row in line]
            axes.plot(distances, means, style, linewidth=width, marker="o", markersize=3, color=colour, label=name)
            shade = [[row[key] for row in line] for key in ("least", "greatest")]
            axes.fill_between(distances, *shade, color=colour, alpha=0.15, linewidth=0)
        axes.axhline(1 / KINDS, color="#999999", linewidth=1, linestyle="--", label="chance")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda segments, _: f"{segments:,.0f}"))
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f}%"))
        axes.set_title(task, loc="left", fontsize=11)
        axes.set_ylabel("right answers")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    plots[-1, 0].set_xlabel("segments from the last fact to the question")
    with atomic_file(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=150)
    plt.close(figure)
