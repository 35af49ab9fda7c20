"""`hmt report`: everything a run left behind as one HTML page, each plot also as PNG and its numbers as CSV."""

from __future__ import annotations

import dataclasses
import logging
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hmt.atomic import atomic_file, check_output_file
from hmt.memory.state import MemoryState
from hmt.options import ReportOptions
from hmt.pretrained import load_tokenizer
from hmt.report.charts import Cell, Chart, as_csv
from hmt.report.curves import training_charts
from hmt.report.kept import kept_segments
from hmt.report.maps import recall_charts
from hmt.report.measured import COST, QUALITY, measured_charts, needle_charts
from hmt.report.page import Section, Table, render
from hmt.report.plot import save_png
from hmt.report.sources import Material, gather, records

logger = logging.getLogger(__name__)

PAGE = "report.html"

ORIGIN = (
    "command", "commit", "date", "machine", "processor", "accelerator", "threads", "hmt", "python", "torch",
    "transformers", "environment", "model", "checkpoints", "matched", "seconds",
)  # fmt: skip
"""What figures and records may say of how they were made, besides their settings."""

FIRST = (
    "series", "row", "context_tokens", "length", "distance", "ppl", "ppl_low", "ppl_high", "ppl_causal",
    "bits_per_byte", "questions", "accuracy", "accuracy_low", "accuracy_high", "tokens", "tokens_per_second", "peak_mb",
)  # fmt: skip
"""Columns of the table of all figures that come first."""

SETTINGS = ("options", "config", "settings")


def run(options: ReportOptions) -> tuple[dict[str, Any], str]:
    """Gather, draw and write.

    Returns:
        What was written, and a closing line.

    Raises:
        OSError: If a source is missing, or the report cannot be written.
        ValueError: If there is nothing to show.
    """
    sources = options.paths
    first = sources[0]
    out = options.out or _beside(first)
    check_output_file(out / PAGE)
    material = gather(sources)
    kept = {name: _kept(name, state, options, sources) for name, state in material.memories.items()}
    name = first.resolve().name.removesuffix(".run") if first.is_dir() else first.stem
    files = write_report(f"{name}: what was measured", material, out, kept)
    figures = {"page": str(out / PAGE), "files": [str(file) for file in files]}
    drawn = sum(file.suffix == ".png" for file in files)
    return figures, f"{drawn} plots in {out / PAGE}, each beside it as .png and .csv"


def _beside(source: Path) -> Path:
    """Where the report of a source goes: into its directory; of a checkpoint, which is replaced whole, its record."""
    if not source.is_dir():
        return source.with_name(f"{source.stem}.report")
    record = Path(f"{source.resolve()}.run")
    return (record if record.is_dir() else source) / "report"


def write_report(
    title: str, material: Material, out: Path, kept: dict[str, list[dict[str, Any]]] | None = None
) -> list[Path]:
    """Write the page, and each of its plots as PNG and CSV.

    Args:
        title: Of the page.
        material: What there is to show.
        out: Directory for all of it.
        kept: What memories keep, by the name of each: `segment`, `usage`, `score`, `tokens`, `text`.

    Returns:
        The files.
    """
    sections = _compose(material, kept or {})
    files = [out / PAGE]
    with atomic_file(files[0]) as unfinished:
        unfinished.write_text(render(title, _summary(material), sections), encoding="utf-8")
    for section in sections:
        for chart in section.charts:
            files += [out / f"{chart.name}.png", out / f"{chart.name}.csv"]
            save_png([chart], files[-2])
            _write(files[-1], chart.csv())
        for table in section.tables:
            if table.name:
                files.append(out / f"{table.name}.csv")
                _write(files[-1], as_csv(table.columns, table.rows))
    return files


def _compose(material: Material, kept: dict[str, list[dict[str, Any]]]) -> list[Section]:
    groups = _same_targets(material.figures)
    kept = {name: records(one, "kept") for name, one in material.figures.items() if records(one, "kept")} | kept
    quality: list[Chart] = []
    cost: list[Chart] = []
    needles: list[Chart] = []
    recalled: list[Chart] = []
    for name, rows in groups.items():
        quality += _of(name, groups, measured_charts(QUALITY, rows))
        cost += _of(name, groups, measured_charts(COST, rows))
    found = {name: records(one, "cells") for name, one in material.figures.items() if records(one, "cells")}
    for name, cells in found.items():
        needles += _of(name, found, needle_charts(cells))
    traces = {name: one for name, one in material.figures.items() if one.get("recall") or one.get("recall_distances")}
    for name, one in traces.items():
        recalled += _of(name, traces, recall_charts(records(one, "recall"), one.get("recall_distances")))
    curves = [
        chart
        for name, history in material.histories.items()
        for chart in _of(name, material.histories, training_charts(history))
    ]
    sections = [
        Section("Quality against length", tuple(quality)),
        Section("Needles", tuple(needles)),
        Section("Recall", tuple(recalled)),
        Section("What is kept", (), tuple(_kept_table(name, segments) for name, segments in kept.items())),
        Section("Speed and memory", tuple(cost)),
        Section("Training", tuple(curves)),
        Section("All figures", (), tuple(_rows_table(name, rows) for name, rows in groups.items())),
        Section("How it was made", (), tuple(_origins(material))),
    ]
    return _named(sections)


def _same_targets(figures: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of evaluations; those that scored the same targets stand together, told apart by `series`."""
    groups: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for name, one in figures.items():
        if records(one, "rows"):
            key = str(one["spans"]) if one.get("spans") else name
            groups.setdefault(key, []).append((name, one))
    together = {}
    for members in groups.values():
        rows = [
            row
            if len(members) == 1
            else row | {"series": ", ".join(filter(None, (name, str(row.get("series") or ""))))}
            for name, one in members
            for row in records(one, "rows")
        ]
        together[", ".join(name for name, _ in members)] = rows
    return together


def _of(name: str, names: Sequence[str] | dict[str, Any], charts: Sequence[Chart]) -> list[Chart]:
    """Plots of one of several sources, which say of which."""
    if len(names) < 2:
        return list(charts)
    return [
        dataclasses.replace(chart, name=f"{chart.name}-{name}", title=f"{chart.title} ({name})") for chart in charts
    ]


def _named(sections: Sequence[Section]) -> list[Section]:
    """The sections, with names of plots and tables that can be names of files, each once."""
    taken: set[str] = set()

    def free(name: str) -> str:
        plain = re.sub(r"[^a-z0-9]+", "-", name.lower())[:60].strip("-") or "plot"
        number, found = 2, plain
        while found in taken:
            found, number = f"{plain}-{number}", number + 1
        taken.add(found)
        return found

    return [
        Section(
            section.title,
            tuple(dataclasses.replace(chart, name=free(chart.name)) for chart in section.charts),
            tuple(dataclasses.replace(one, name=free(one.name)) if one.name else one for one in section.tables),
        )
        for section in sections
    ]


def _rows_table(name: str, rows: Sequence[dict[str, Any]]) -> Table:
    columns = list(dict.fromkeys(key for row in rows for key, value in row.items() if isinstance(value, Cell)))
    columns.sort(key=lambda key: FIRST.index(key) if key in FIRST else len(FIRST))
    values = [[row.get(key) if isinstance(row.get(key), Cell) else None for key in columns] for row in rows]
    return Table(f"rows-{name}", name, "", [column.replace("_", " ") for column in columns], values)


def _kept_table(name: str, segments: Sequence[dict[str, Any]]) -> Table:
    columns = list(dict.fromkeys(key for segment in segments for key in segment))
    if all(segment.get("score") is None for segment in segments):
        columns = [name for name in columns if name != "score"]
    note = (
        "Segments that are still in the bank, oldest first. Usage is what they were recalled, summed over segments and "
        "fading with age; score is what the retention policy thinks they are worth, empty where it does not say."
    )
    rows = [[segment.get(key) for key in columns] for segment in segments]
    return Table(f"kept-{name}", f"{name}: {len(segments)} segments", note, columns, rows)


def _kept(name: str, state: MemoryState, options: ReportOptions, sources: Sequence[Path]) -> list[dict[str, Any]]:
    """What a memory keeps, with its text where its tokenizer is at hand."""
    checkpoints = [str(path.resolve()).removesuffix(".run") for path in sources if path.is_dir()]
    places = [options.model_name] if options.model_name else [*checkpoints, state.model.name]
    tokenizer = None
    for place in places:
        try:
            tokenizer = load_tokenizer(place)
            break
        except OSError as error:
            reason = error
    if tokenizer is None:
        logger.info("%s is shown without its texts: %s", name, reason)
    return [dataclasses.asdict(segment) for segment in kept_segments(state, tokenizer)]


def _origins(material: Material) -> list[Table]:
    """Command, commit, versions and settings of each source that tells them."""
    tables = []
    for name, one in [*material.runs.items(), *material.figures.items()]:
        if rows := list({str(row[0]): row for row in _flat(_origin(one))}.values()):
            tables.append(Table("", name, "", ["", ""], rows))
        settings = [
            (key, value) for part in SETTINGS if isinstance(one.get(part), dict) for key, value in one[part].items()
        ]
        if settings:
            tables.append(
                Table("", f"Settings of {name}", "", ["setting", "value"], list(_flat(settings)), folded=True)
            )
    return tables


def _summary(material: Material) -> str:
    """Commit and versions, of the first source that tells them."""
    for one in [*material.runs.values(), *material.figures.values()]:
        said = {str(key): value for key, value in _flat(_origin(one))}
        if parts := [f"{key} {str(said[key])[:12]}" for key in ("commit", "torch", "transformers") if said.get(key)]:
            return ", ".join(parts).capitalize()
    return ""


def _origin(source: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(key, source[key]) for key in ORIGIN if source.get(key) not in (None, [])]


def _flat(pairs: Sequence[tuple[str, Any]]) -> list[list[Cell]]:
    """Nested values as rows of a name and a word."""
    rows: list[list[Cell]] = []
    for key, value in pairs:
        if isinstance(value, dict):
            rows += _flat([(f"{key} {inner}".replace("environment ", ""), one) for inner, one in value.items()])
        elif key == "command" and isinstance(value, list):
            rows.append([key, shlex.join(map(str, value))])
        else:
            rows.append([key, value if isinstance(value, str) else "" if value is None else str(value)])
    return rows


def _write(file: Path, text: str) -> None:
    with atomic_file(file) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
