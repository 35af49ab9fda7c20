"""`hmt profile`: speed and memory against length, each row and length in a process of its own."""

from __future__ import annotations

import logging
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from typing import Any, TypeVar

from hmt.evaluation.options import ProfileOptions
from hmt.evaluation.speed import Material, measure, prepare
from hmt.metrics.machine import commit, environment
from hmt.report import check_installed
from hmt.terminal import format_table

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

COLUMNS = {
    "row": "method",
    "length": "tokens",
    "tokens_per_second": "tok/s",
    "seconds_to_first_token": "s to first",
    "seconds_after_reading": "s once read",
    "ms_per_token": "ms/token",
    "peak_mb": "MB",
    "kb_kept": "kB kept",
    "mflops": "MFLOP/token",
    "fraction_of_floor": "of floor",
    "remark": "",
}
"""Columns of the table; the figures have more."""


def run(options: ProfileOptions) -> tuple[dict[str, Any], str]:
    """Measure every row at every length.

    Returns:
        The figures: `rows` with the result of `measure`, or `skipped` and why; `matmul_flops_per_second`; and where and
        with what it was measured. And the same as a table.

    Raises:
        ImportError: If there is to be a picture, and the packages that draw are not installed.
        OSError: If there is no such model, tokenizer or text.
        ValueError: If they do not fit.
    """
    if options.plot is not None:
        check_installed()
    material = _alone(prepare, options)
    rows: list[dict[str, Any]] = []
    try:
        for length in options.text_lengths:
            for row in options.rows:
                rows.append(_measured(options, row, length, material, rows))
                logger.info("%s", _progress(rows[-1]))
    except KeyboardInterrupt:
        logger.info("interrupted: keeping what was measured")
    figures = {
        "model": options.load_from_ckpt or options.model_name,
        "command": sys.argv,
        "commit": commit(),
        "environment": environment(),
        "config": asdict(options),
        "matmul_flops_per_second": material.rate,
        "rows": rows,
    }
    if options.plot is not None:
        from hmt.report.charts import panels
        from hmt.report.drawing import save

        if drawn := panels(figures, "Speed and memory"):
            save(drawn, options.plot, columns=2)
    return figures, describe(figures)


def predicted_seconds(row: str, length: int, rows: Sequence[dict[str, Any]]) -> float | None:
    """Predict the seconds of a row at a length from its two longest so far: a * n + b * n^2.

    A first guess from one length is linear, or quadratic for full attention.

    Args:
        row: Its name.
        length: Longer than those measured.
        rows: Figures so far.

    Returns:
        Seconds, or None if nothing was measured.
    """
    points = [(one["length"], one["seconds"]) for one in rows if one["row"] == row and one.get("seconds")]
    if not points:
        return None
    longest, seconds = points[-1]
    if len(points) == 1:
        return seconds * (length / longest) ** (2 if row == "full" else 1)
    before, took = points[-2]
    growth = (seconds / longest - took / before) / (longest - before)
    return length * (seconds / longest + max(growth, 0.0) * (length - longest))


def describe(figures: dict[str, Any]) -> str:
    """Format the figures as a table, with the machine's rate above."""
    rows = [
        row
        | {"kb_kept": row["bytes_kept"] / 1e3 if "bytes_kept" in row else None}
        | {"mflops": row["flops_per_token"] / 1e6 if row.get("flops_per_token") else None}
        | {"remark": row.get("skipped") or row.get("note") or ""}
        for row in figures["rows"]
    ]
    columns = {key: name for key, name in COLUMNS.items() if any(row.get(key) not in (None, "") for row in rows)}
    lines = [f"matrix products here: {figures['matmul_flops_per_second'] / 1e9:,.0f} GFLOP/s"]
    return "\n".join([*lines, format_table(rows, columns)])


def _measured(
    options: ProfileOptions, row: str, length: int, material: Material, rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Figures of a row at a length, or the reason why there are none."""
    skipped = [one for one in rows if one["row"] == row and "skipped" in one]
    if skipped:
        return {"row": row, "length": length, "skipped": skipped[0]["skipped"]}
    predicted = predicted_seconds(row, length, rows)
    if predicted is not None and predicted > options.max_minutes * 60:
        reason = f"left out: about {predicted / 60:.1f} min at {length:,}, above --max_minutes {options.max_minutes:g}"
        return {"row": row, "length": length, "skipped": reason}
    try:
        return _alone(measure, options, row, length, material)
    except BrokenProcessPool:
        return {"row": row, "length": length, "skipped": f"ended by the system at {length:,}, maybe for its memory"}
    except (ValueError, MemoryError, IndexError) as error:
        return {"row": row, "length": length, "skipped": f"{error}".splitlines()[0]}


def _alone(work: Callable[..., Result], *arguments: Any) -> Result:
    """Run work in a process of its own, so that its memory is its own too."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def _progress(row: dict[str, Any]) -> str:
    if "skipped" in row:
        return f"{row['row']} at {row['length']:,}: {row['skipped']}"
    return f"{row['row']} at {row['length']:,}: {row['tokens_per_second']:,.0f} tokens/s"
