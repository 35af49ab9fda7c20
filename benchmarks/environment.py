"""Keeps the figures of the benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hmt.atomic import atomic_file
from hmt.metrics.machine import environment

HERE = Path(__file__).parent


def write(name: str, figures: dict[str, Any]) -> Path:
    """Keep figures under results/, with where they were measured."""
    path = HERE / "results" / f"{name}.json"
    with atomic_file(path) as file:
        file.write_text(json.dumps({"environment": environment(), **figures}, indent=1) + "\n")
    return path
