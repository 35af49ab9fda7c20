"""Where a figure was measured."""

from __future__ import annotations

import json
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import transformers

from hmt.atomic import atomic_file

HERE = Path(__file__).parent


def environment() -> dict[str, Any]:
    """Machine, versions and commit."""
    processor = platform.processor()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", ":/src") else ""),
        "processor": processor,
        "accelerator": accelerator,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def write(name: str, figures: dict[str, Any]) -> Path:
    """Keep figures under results/, with where they were measured."""
    path = HERE / "results" / f"{name}.json"
    with atomic_file(path) as file:
        file.write_text(json.dumps({"environment": environment(), **figures}, indent=1) + "\n")
    return path


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True, check=False)
    return done.stdout.strip()
