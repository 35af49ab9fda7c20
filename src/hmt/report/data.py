"""Read what runs left behind: records of training, figures written with `--json`, memory files.

Files are recognized by their content, so a directory may hold others as well.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hmt.memory.state import MemoryState
from hmt.model.outputs import RecallTrace

logger = logging.getLogger(__name__)

Figures = dict[str, Any]

LISTS = ("rows", "cells", "recall", "kept", "history")
"""Keys of figures that hold lists of dictionaries."""


@dataclass
class Material:
    """Everything that a report shows.

    Attributes:
        figures: Figures of verbs, by file name.
        runs: Records of runs (`run.json`), by run name.
        histories: One dictionary per optimizer step, by run name.
        memories: Memory files, by file name.
        seen: Files already read, so that none is shown twice.
    """

    figures: dict[str, Figures] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    histories: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    memories: dict[str, MemoryState] = field(default_factory=dict)
    seen: set[Path] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.figures or self.runs or self.histories or self.memories)

    def sources(self) -> list[tuple[str, Figures]]:
        """Return named figures to draw from.

        Rows that scored the same targets are drawn together, told apart by `series`; so are the histories of all runs,
        told apart by `run`.
        """
        groups: dict[str, list[str]] = {}
        for name, one in self.figures.items():
            if records(one, "rows"):
                groups.setdefault(str(one.get("spans") or name), []).append(name)
        found = [(", ".join(names), {"rows": self._joined(names)}) for names in groups.values()]
        found += [(name, {key: one[key] for key in one if key not in ("rows", "history")})
                  for name, one in self.figures.items()]  # fmt: skip
        several = len(self.histories) > 1
        steps = [
            step | {"run": name if several else ""} for name, history in self.histories.items() for step in history
        ]
        return [*found, ("training", {"history": steps})]

    def _joined(self, names: Sequence[str]) -> list[dict[str, Any]]:
        if len(names) == 1:
            return records(self.figures[names[0]], "rows")
        return [
            row | {"series": ", ".join(filter(None, (name, str(row.get("series") or ""))))}
            for name in names
            for row in records(self.figures[name], "rows")
        ]


def gather(paths: Sequence[Path]) -> Material:
    """Read run directories and single files.

    Args:
        paths: Files of figures, memory files, and directories: a record (`NAME.run`), a checkpoint with a record beside
            it, or any other. Files beside a directory whose names begin with its own (`NAME.json`, `NAME-books.json`,
            `NAME.memory`) belong to it.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If a named file, or everything together, holds nothing to show.
    """
    material = Material()
    for path in paths:
        if path.is_dir():
            _read_directory(path.resolve(), material)
        elif not path.exists():
            raise FileNotFoundError(f"no run directory or file at {path}")
        elif not _read_file(path, material):
            raise ValueError(f"{path} holds nothing to show: no figures written with --json, and no memory")
    if not material:
        raise ValueError(
            f"there is nothing to show in {', '.join(map(str, paths))}: no record of a run, no figures written with "
            "--json, no memory file"
        )
    return material


def read_history(file: Path) -> list[dict[str, Any]]:
    """Read a `metrics.jsonl`: the last line of each step, without a line that its writer did not finish."""
    steps: dict[int, dict[str, Any]] = {}
    for line in file.read_text().splitlines():
        try:
            entry = json.loads(line)
            steps[entry["step"]] = entry
        except (ValueError, KeyError, TypeError):
            continue
    return [entry for _, entry in sorted(steps.items())]


def add_figures(material: Material, name: str, figures: Figures) -> bool:
    """Add the figures of a verb; return False if they hold nothing to show."""
    training = figures.get("training")
    nested = training if isinstance(training, dict) else {}
    history = records(figures, "history") or records(nested, "history")
    if not any(records(figures, key) for key in LISTS) and not history and not figures.get("recall_distances"):
        return False
    material.figures[_free(name, material.figures)] = figures
    if history and not any(history[-1] == other[-1] for other in material.histories.values()):
        material.histories[_free(name, material.histories)] = history
    return True


def records(figures: Figures, key: str) -> list[dict[str, Any]]:
    """Return the list of dictionaries at a key, or an empty list if something else is there."""
    found = figures.get(key)
    return found if isinstance(found, list) and all(isinstance(one, dict) for one in found) else []


def is_number(value: Any) -> bool:
    """Return True for a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def trace_records(trace: RecallTrace, row: int = 0) -> list[dict[str, Any]]:
    """Return the `recall` figures of a trace for one row of its batch, without texts."""
    first = len(trace.by_segment) - len(trace.weights)  # before it there was nothing to recall
    found = []
    for number, (weights, segments) in enumerate(zip(trace.weights, trace.segments, strict=True), start=first):
        shares = weights[row].mean(dim=0).tolist()
        pairs = [pair for pair in zip(segments[row].tolist(), shares, strict=True) if pair[1] > 0]
        found.append({"segment": number, "weights": pairs, "distance": int(trace.by_segment[number][row])})
    return found


def _read_directory(path: Path, material: Material) -> None:
    name = path.name.removesuffix(".run")
    belongs = re.compile(re.escape(name) + r"([._-].*)?\.(json|memory)")
    beside = [file for file in sorted(path.parent.iterdir()) if file.is_file() and belongs.fullmatch(file.name)]
    folders = dict.fromkeys((path, path.with_name(f"{name}.run")))
    inside = [file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir()) if file.is_file()]
    for file in (*inside, *beside):
        try:
            _read_file(file, material, name)
        except ValueError as error:
            logger.warning("left out: %s", error)


def _read_file(file: Path, material: Material, run: str | None = None) -> bool:
    """Add what a file holds; return False if it holds nothing to show."""
    if file.resolve() in material.seen:
        return True
    found = _add_file(file, material, run)
    if found:
        material.seen.add(file.resolve())
    return found


def _add_file(file: Path, material: Material, run: str | None) -> bool:
    name = run or file.parent.name.removesuffix(".run")
    if file.name == "metrics.jsonl":
        if history := read_history(file):
            material.histories[_free(name, material.histories)] = history
        return bool(history)
    if file.suffix == ".memory":
        material.memories[_free(file.stem, material.memories)] = MemoryState.load(file)
        return True
    if file.suffix != ".json":
        return False
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(found, dict):
        return False
    if file.name == "run.json" and "options" in found:
        material.runs[_free(name, material.runs)] = found
        return True
    return add_figures(material, file.stem, found)


def _free(name: str, taken: dict[str, Any]) -> str:
    """Return the name, numbered if it is taken."""
    number = 2
    free = name
    while free in taken:
        free, number = f"{name} {number}", number + 1
    return free
