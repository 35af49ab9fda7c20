"""Pictures of training: what the figures did, step by step, and what is recalled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hmt.atomic import atomic_file
from hmt.model.outputs import RecallTrace
from hmt.report.plot import COLOURS

SMOOTHED = 0.9


def plot_training(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss, gradient norm and learning rates against the optimizer step.

    Args:
        history: One dictionary a step: `step`, `stage`, `loss`, `grad_norm`, `learning_rates`, `validation_loss` where
            there was a validation.
        path: The PNG file.
    """
    from matplotlib.ticker import NullFormatter

    plt = _pyplot()
    steps = [entry["step"] for entry in history]
    figure, (top, middle, bottom) = plt.subplots(
        3, 1, figsize=(8, 7), sharex=True, layout="constrained", height_ratios=(3, 1, 1)
    )
    losses = [entry["loss"] for entry in history]
    top.plot(steps, losses, color=COLOURS[0], alpha=0.25, linewidth=1)
    top.plot(steps, _smooth(losses), color=COLOURS[0], label=f"training, smoothed {SMOOTHED}")
    validated = [(entry["step"], entry["validation_loss"]) for entry in history if "validation_loss" in entry]
    if validated:
        top.plot(*zip(*validated, strict=True), marker="o", markersize=4, color=COLOURS[1], label="validation")
    top.set_ylabel("loss (nats per token)")
    middle.plot(steps, [entry["grad_norm"] for entry in history], color=COLOURS[5], linewidth=1)
    middle.set_ylabel("gradient norm")
    middle.set_yscale("log")
    middle.yaxis.set_minor_formatter(NullFormatter())
    for number, name in enumerate(dict.fromkeys(name for entry in history for name in entry["learning_rates"])):
        rates = [entry["learning_rates"].get(name, float("nan")) for entry in history]
        bottom.plot(steps, rates, color=COLOURS[number], label=name)
    bottom.set_ylabel("learning rate")
    bottom.set_yscale("log")
    bottom.set_xlabel("optimizer step")
    for axes in (top, middle, bottom):
        _mark_stages(axes, history)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (top, bottom):
        axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _write(figure, path)


def plot_recall(trace: RecallTrace, path: Path, row: int = 0) -> None:
    """How far back was recalled (segments), and which segment recalled which.

    Args:
        trace: Of a text that was read.
        path: The PNG file.
        row: Of the batch.
    """
    plt = _pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    distances = trace.distances
    left.hist(distances, bins=np.arange(0.5, max(distances) + 1.5), color=COLOURS[0])
    left.set_xlabel("recall distance of the strongest slot (segments)")
    left.set_ylabel("segments")
    last = int(max(segments[row].max() for segments in trace.segments)) + 1
    heat = np.full((len(trace.weights), last), np.nan)
    for number, (weights, segments) in enumerate(zip(trace.weights, trace.segments, strict=True)):
        heat[number, segments[row].numpy(force=True)] = weights[row].mean(dim=0).float().numpy(force=True)
    first = last - len(heat) + 1  # the segments that recalled stand at the end
    extent = (-0.5, last - 0.5, first + len(heat) - 0.5, first - 0.5)
    image = right.imshow(heat, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest", extent=extent)
    right.set_xlabel("recalled segment")
    right.set_ylabel("segment that recalls")
    figure.colorbar(image, ax=right, label="recall weight")
    left.spines[["top", "right"]].set_visible(False)
    _write(figure, path)


def _mark_stages(axes: Any, history: Sequence[dict[str, Any]]) -> None:
    stages = [entry["stage"] for entry in history]
    for index in range(1, len(stages)):
        if stages[index] != stages[index - 1]:
            step = history[index]["step"] - 0.5
            axes.axvline(step, color="#999999", linewidth=1, linestyle=":")
            axes.text(step, 0.98, f" stage {stages[index]}", transform=axes.get_xaxis_transform(), va="top", fontsize=8)


def _smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving average, corrected for its start."""
    smoothed, mean = [], 0.0
    for number, value in enumerate(values, start=1):
        mean = SMOOTHED * mean + (1 - SMOOTHED) * value
        smoothed.append(mean / (1 - SMOOTHED**number))
    return smoothed


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _write(figure: Any, path: Path) -> None:
    with atomic_file(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=150)
    _pyplot().close(figure)
