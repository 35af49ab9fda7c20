"""Machine and versions behind a figure; time and peak memory of a block, time of tokens and of the parts of a step."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

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


CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")

PARTS = ("summary", "recall", "read", "head", "backward")
"""Parts of a step; the program marks them with `hmt.` and the name."""


class Meter:
    """Measures a block: `with Meter(device) as meter: ...`.

    Attributes:
        seconds: Wall time.
        peak_bytes: Highest memory in use: of the accelerator, else resident memory of the process; None if the system
            does not report it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0
        self.peak_bytes: int | None = None

    @property
    def peak_mb(self) -> float | None:
        """Peak memory in megabytes."""
        return None if self.peak_bytes is None else self.peak_bytes / 1e6

    def __enter__(self) -> Meter:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        elif CLEAR_REFS.exists():
            _return_freed_memory()
            with contextlib.suppress(PermissionError):
                CLEAR_REFS.write_text("5")  # restarts the high-water mark, see proc(5)
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.peak_bytes = torch.cuda.max_memory_allocated(self.device)
        elif STATUS.exists():
            (mark,) = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
            self.peak_bytes = int(mark.split()[1]) * 1024
        self.seconds = time.perf_counter() - self._start


def _return_freed_memory() -> None:
    """Hand freed memory back to the system, so that the high-water mark is that of the block to come."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
    if trim is not None:
        trim(0)


class Clock:
    """A streamer that notes the time of each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        """Take a token, or the prompt, once it is on the host."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """End the text."""

    @property
    def gaps(self) -> list[float]:
        """Seconds between tokens, the prompt left out."""
        return [later - earlier for earlier, later in pairwise(self.times[1:])]


class PartTimes:
    """Adds up the time of the marked parts of a step, by torch's profiler.

    Attributes:
        most: Maximum number of steps measured, since a profiler slows them down; the first is left out as a warm-up.
    """

    def __init__(self, most: int = 5) -> None:
        self.most = most
        self._begun = 0
        self._measured = 0
        self._host: Counter[str] = Counter()
        self._device: Counter[str] = Counter()

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Measure a block, such as a step."""
        self._begun += 1
        if not 1 < self._begun <= self.most + 1:
            yield
            return
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        with profile(activities=activities) as profiler:
            yield
        self._measured += 1
        for event in profiler.key_averages():
            name = event.key.removeprefix("hmt.")
            if name != event.key and name in PARTS:
                self._host[name] += event.cpu_time_total
                self._device[name] += event.device_time_total

    def result(self) -> dict[str, float | int]:
        """Return the seconds of each part per measured block, on the host and, if there is one, on the accelerator.

        Forward passes that are repeated for the backward pass count in `backward` and in their own part.
        """
        found: dict[str, float | int] = {"measured": self._measured}
        for kind, times in (("", self._host), ("device_", self._device)):
            for name in PARTS:
                if times[name]:
                    found[f"{kind}{name}_seconds"] = times[name] / 1e6 / self._measured
        return found

    def __str__(self) -> str:
        parts = [f"{name} {self._host[name] / 1e3 / self._measured:.1f} ms" for name in PARTS if self._host[name]]
        return ", ".join(parts) or "nothing was measured"
