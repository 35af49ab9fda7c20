"""Where and with what a figure was measured."""

from __future__ import annotations

import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers

HERE = Path(__file__).resolve()


def environment() -> dict[str, Any]:
    """Machine, versions and commit."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "hmt": _version(),
        "commit": commit(),
        "machine": platform.platform(),
        "processor": _processor(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def commit() -> str | None:
    """Commit of this program where it runs from a checkout, with a + where its source has changed since."""
    if _git("ls-files", "--error-unmatch", HERE.name) is None:  # installed, maybe below some other repository
        return None
    head = _git("rev-parse", "HEAD")
    return head and head + ("+" if _git("status", "--porcelain", str(HERE.parents[1])) else "")


def _processor() -> str:
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor()


def _version() -> str | None:
    try:
        return version("hmt")
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """What git says, or None where it is not there or refuses."""
    try:
        done = subprocess.run(["git", *arguments], cwd=HERE.parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
