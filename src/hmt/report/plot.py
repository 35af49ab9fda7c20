"""Plots as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hmt.atomic import atomic_file

COLOURS = ("#3b6fb6", "#d1495b", "#2a9d6f", "#e09f3e", "#7d5ba6", "#5c6770")
STYLES = ("-", "--", ":")


def plot_perplexity(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Perplexity against context length, a line for each (`series`, `row`) of the rows.

    Args:
        rows: With `row` (what reads), `context_tokens`, `ppl`, and optionally `series`, drawn in another line style.
        path: The PNG file.
        title: Above the plot.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter

    names = list(dict.fromkeys(row["row"] for row in rows))
    series = list(dict.fromkeys(row.get("series", "") for row in rows))
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for style, part in zip(STYLES, series, strict=False):
        for number, name in enumerate(names):
            points = sorted(
                (row["context_tokens"], row["ppl"])
                for row in rows
                if row["row"] == name and row.get("series", "") == part
            )
            if points:
                label = f"{name}, {part}" if part else name
                colour = COLOURS[number % len(COLOURS)]
                axes.plot(*zip(*points, strict=True), style, marker="o", markersize=4, color=colour, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({row["context_tokens"] for row in rows}))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: f"{tokens:,.0f}"))
    axes.set_xlabel("context length (tokens)")
    axes.set_ylabel("perplexity of the same target tokens")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    with atomic_file(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=150)
    plt.close(figure)
