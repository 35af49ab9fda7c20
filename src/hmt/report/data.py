"""Read what runs left behind: records of training, and figures written with `--json`.

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

logger = logging.getLogger(__name__)

Figures = dict[str, Any]

LISTS = ("rows", "recall", "history")
"""Keys of figures that hold lists of dictionaries."""


@dataclass
class Material:
    """Everything that a report shows.

    Attributes:
        figures: Figures of verbs, by file name.
        runs: Records of runs (`run.json`), by run name.
        histories: One dictionary per optimizer step, by run name.
        seen: Files already read, so that none is shown twice.
    """

    figures: dict[str, Figures] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    histories: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    seen: set[Path] = field(default_factory=set)

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
        found += [
            (name, {key: one[key] for key in one if key not in ("rows", "history")})
            for name, one in self.figures.items()
        ]
        several = len(self.histories) > 1
        steps = [
            step | {"run": name if several else ""} for name, history in self.histories.items() for step in history
        ]
        return [*found, ("training", {"history": steps})]

    def _joined(self, names: Sequence[str]) -> list[dict[str, Any]]:
        rows = [(name, row) for name in names for row in records(self.figures[name], "rows")]
        if len(names) == 1:
            return [row for _, row in rows]
        return [row | {"series": ", ".join(filter(None, (name, str(row.get("series") or ""))))} for name, row in rows]


def gather(paths: Sequence[Path]) -> Material:
    """Read run directories and single files.

    Args:
        paths: Files of figures, and directories: a record (`NAME.run`), a checkpoint with a record beside it, or any
            other. Files beside a directory whose names begin with its own (`NAME.json`,
            `NAME-books.json`) belong to it.

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
            raise ValueError(f"{path} holds no figures; give a directory of a run, or a file written with --json")
    if not (material.figures or material.runs or material.histories):
        raise ValueError(
            f"there is no record of a run and no figures in {', '.join(map(str, paths))}; give a directory of a run, "
            "or a file written with --json"
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


def _read_directory(path: Path, material: Material) -> None:
    name = path.name.removesuffix(".run")
    belongs = re.compile(re.escape(name) + r"([._-].*)?\.json")
    beside = [file for file in sorted(path.parent.iterdir()) if file.is_file() and belongs.fullmatch(file.name)]
    folders = dict.fromkeys((path, path.with_name(f"{name}.run")))
    inside = [file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir()) if file.is_file()]
    for file in (*inside, *beside):
        try:
            _read_file(file, material, name)
        except ValueError as error:
            logger.warning("left out: %s", error)


def _read_file(file: Path, material: Material, run: str | None = None) -> bool:
    """Add the content of a file, once; return False if it holds nothing to show."""
    if file.resolve() in material.seen:
        return True
    name = run or file.parent.name.removesuffix(".run")
    found: Any = None
    if file.name == "metrics.jsonl":
        found = read_history(file)
        if found:
            material.histories[_free(name, material.histories)] = found
    elif file.suffix == ".json":
        try:
            found = json.loads(file.read_text())
        except ValueError as error:
            raise ValueError(f"{file} is not JSON: {error}") from error
        if isinstance(found, dict) and file.name == "run.json" and "options" in found:
            material.runs[_free(name, material.runs)] = found
        elif not isinstance(found, dict) or not add_figures(material, file.stem, found):
            return False
    if not found:
        return False
    material.seen.add(file.resolve())
    return True


def _free(name: str, taken: dict[str, Any]) -> str:
    """The name, numbered if it is taken."""
    number, free = 2, name
    while free in taken:
        free, number = f"{name} {number}", number + 1
    return free
