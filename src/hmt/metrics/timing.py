"""How long the parts of a step take, from torch's own profiler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile

PARTS = ("summary", "recall", "read", "head", "backward")
"""What is told apart; in the program these stretches are marked `hmt.` and the name."""


class PartTimes:
    """Adds up the time of marked stretches.

    Attributes:
        most: Stretches of time that are measured at most, since a profiler is a burden; the first is left out, for it
            warms up.
    """

    def __init__(self, most: int = 5) -> None:
        self.most = most
        self._begun = 0
        self._measured = 0
        self._host: Counter[str] = Counter()
        self._device: Counter[str] = Counter()

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Measure what runs in this block, such as a step."""
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
        """Seconds of each part per block that was measured, on the host and, where there is one, on the accelerator.

        What the backward pass computes again counts in `backward` and in its own part.
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
