"""Time and peak memory of a piece of work."""

from __future__ import annotations

import ctypes
import gc
import time
from pathlib import Path
from types import TracebackType

import torch

CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")


class Meter:
    """Measures a block: `with Meter(device) as meter: ...`.

    Attributes:
        seconds: Wall time.
        peak_bytes: Highest memory in use meanwhile: of the device where it is an accelerator, else resident memory of
            the process; None where the system does not tell.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0
        self.peak_bytes: int | None = None

    def __enter__(self) -> Meter:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        elif CLEAR_REFS.exists():
            _return_freed_memory()
            try:
                CLEAR_REFS.write_text("5")  # restarts the high-water mark, see proc(5)
            except PermissionError:
                pass
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds = time.perf_counter() - self._start
        self.peak_bytes = self._peak()

    def _peak(self) -> int | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if STATUS.exists():
            for line in STATUS.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return None


def _return_freed_memory() -> None:
    """Hand freed memory back to the system, so that the mark is of the block to come and not of what was before it."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
