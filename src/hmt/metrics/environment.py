"""Machine, versions and commit that a figure was measured with."""

from __future__ import annotations

import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import transformers

import hmt

HERE = Path(__file__).resolve()


def environment() -> dict[str, Any]:
    """Return machine, versions and commit."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "hmt": hmt.__version__,
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
    """Return the commit of this program if it runs from a checkout, with a + if its source has changed since."""
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


def _git(*arguments: str) -> str | None:
    """Output of git, or None if it is not installed or refuses."""
    try:
        done = subprocess.run(["git", *arguments], cwd=HERE.parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
