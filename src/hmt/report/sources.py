"""What a run left behind: its record, the figures of its evaluations, memory files.

Files are known by what is in them, so that a directory may hold others as well.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hmt.memory.state import MemoryState

logger = logging.getLogger(__name__)

LISTS = ("rows", "cells", "recall", "kept", "history")
"""Parts of figures that are lists of dictionaries."""


@dataclass
class Material:
    """What there is to show.

    Attributes:
        figures: What verbs wrote with `--json`, by the names of the files.
        runs: What was run (`run.json` of a record), by the names of the runs.
        histories: A dictionary a step, by the names of the runs.
        memories: By the names of the files.
        seen: Files that were read: none is shown twice, however it was named.
    """

    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    histories: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    memories: dict[str, MemoryState] = field(default_factory=dict)
    seen: set[Path] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.figures or self.runs or self.histories or self.memories)


def gather(paths: Sequence[Path]) -> Material:
    """Read what directories of runs and single files hold.

    Args:
        paths: Files of figures, memory files, and directories: of a record (`NAME.run`), of a checkpoint that has one
            beside it, or of anything else. Files beside a directory whose names begin with its own (`NAME.json`,
            `NAME-books.json`, `NAME.memory`) belong to it.

    Raises:
        FileNotFoundError: If a path leads nowhere.
        ValueError: If a file that was named holds nothing to show, or there is nothing at all.
    """
    material = Material()
    for path in paths:
        if path.is_dir():
            _read_directory(path.resolve(), material)
        elif path.exists():
            if not _read_file(path, material):
                raise ValueError(f"{path} holds nothing to show: no figures written with --json, and no memory")
        else:
            raise FileNotFoundError(f"no run directory or file at {path}")
    if not material:
        raise ValueError(
            f"there is nothing to show in {', '.join(map(str, paths))}: no record of a run, no figures written with "
            "--json, no memory file"
        )
    return material


def read_history(file: Path) -> list[dict[str, Any]]:
    """The steps of a `metrics.jsonl`: of one that was amended the last line, and none that its writer did not end."""
    steps: dict[int, dict[str, Any]] = {}
    for line in file.read_text().splitlines():
        try:
            entry = json.loads(line)
            steps[entry["step"]] = entry
        except (ValueError, KeyError, TypeError):
            continue
    return [entry for _, entry in sorted(steps.items())]


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
    """Add what a file holds; whether it holds anything."""
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


def add_figures(material: Material, name: str, figures: dict[str, Any]) -> bool:
    """Add what a verb measured, if there is anything to show in it; whether there is."""
    training = figures.get("training")
    nested = training if isinstance(training, dict) else {}
    history = records(figures, "history") or records(nested, "history")
    if not any(records(figures, key) for key in LISTS) and not history and not figures.get("recall_distances"):
        return False
    material.figures[_free(name, material.figures)] = figures
    if history and not any(history[-1] == other[-1] for other in material.histories.values()):
        material.histories[_free(name, material.histories)] = history
    return True


def records(figures: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """A part of figures that is a list of dictionaries; nothing where it is something else."""
    found = figures.get(key)
    return found if isinstance(found, list) and all(isinstance(one, dict) for one in found) else []


def _free(name: str, taken: dict[str, Any]) -> str:
    """A name like this one that is not taken."""
    number = 2
    free = name
    while free in taken:
        free, number = f"{name} {number}", number + 1
    return free
