"""Training as plots: what the figures did, step by step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from hmt.report.charts import Axis, Chart, Line, LineChart, Point

SMOOTHED = 0.9


def training_charts(history: Sequence[dict[str, Any]]) -> list[Chart]:
    """Loss, gradient norm and learning rates against the optimizer step.

    Args:
        history: One dictionary a step: `step`, `stage`, `loss`, `grad_norm`, `learning_rates`, `validation_loss` where
            there was a validation.

    Returns:
        The plots; one without numbers is left out.
    """
    names = list(dict.fromkeys(name for entry in history for name in entry.get("learning_rates", {})))
    rates = [
        _line(name, history, [entry.get("learning_rates", {}).get(name) for entry in history], colour=number)
        for number, name in enumerate(names)
    ]
    norms = [_line("gradient norm", history, [entry.get("grad_norm") for entry in history], colour=7)]
    step = Axis("optimizer step", key="step")
    panels = (
        ("loss", "Loss in training", f"The faint line is each step, the other its mean, smoothed {SMOOTHED}.",
         Axis("loss (nats per token)", key="loss"), _losses(history)),
        ("gradient-norm", "Gradient norm", "Before clipping.", Axis("gradient norm", "log", key="grad_norm"), norms),
        ("learning-rates", "Learning rates", "Of each group of parameters.",
         Axis("learning rate", "log", key="learning_rate", least=4.0), rates),
    )  # fmt: skip
    borders = tuple(_stages(history))
    drawn = [(*panel[:4], tuple(line for line in panel[4] if line.points)) for panel in panels]
    return [
        LineChart(name, title, note, step, axis, lines, borders) for name, title, note, axis, lines in drawn if lines
    ]


def _losses(history: Sequence[dict[str, Any]]) -> list[Line]:
    losses = [entry.get("loss") for entry in history]
    lines = [
        _line("each step", history, losses, faint=True),
        _line("training, smoothed", history, _smooth(losses)),
    ]
    validated = _line("validation", history, [entry.get("validation_loss") for entry in history], colour=1, marked=True)
    return [*lines, validated]


def _line(
    name: str, history: Sequence[dict[str, Any]], values: Sequence[float | None], marked: bool = False, **more: Any
) -> Line:
    """The steps that have a value; a value that is not above 0 has no place on a logarithmic axis."""
    points = tuple(
        Point(entry["step"], value)
        for entry, value in zip(history, values, strict=True)
        if value is not None and math.isfinite(value) and value > 0
    )
    return Line(name, points, marked=marked, **more)


def _stages(history: Sequence[dict[str, Any]]) -> Iterator[tuple[float, str]]:
    for before, entry in pairwise(history):
        if before.get("stage") != entry.get("stage"):
            yield entry["step"] - 0.5, f"stage {entry['stage']}"


def _smooth(values: Sequence[float | None]) -> list[float | None]:
    """Exponential moving average, corrected for its start; nothing where a step has no loss."""
    smoothed: list[float | None] = []
    mean, count = 0.0, 0
    for value in values:
        if value is None or not math.isfinite(value):
            smoothed.append(None)
            continue
        count += 1
        mean = SMOOTHED * mean + (1 - SMOOTHED) * value
        smoothed.append(mean / (1 - SMOOTHED**count))
    return smoothed
