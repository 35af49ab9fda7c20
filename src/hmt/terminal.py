"""The terminal: escaped control characters, interrupts as requests, progress of long work, tables."""

from __future__ import annotations

import logging
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType, TracebackType
from typing import Any

logger = logging.getLogger(__name__)

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters besides tab and line feed, and those that turn the direction of writing."""

LOG_SECONDS = 10
"""Time between two lines about work that goes on without a terminal."""


def escaped(text: str) -> str:
    r"""Write the control characters of a text out, as in \x1b, so that they cannot act on the terminal."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def say(text: str) -> None:
    """Write a line to standard output at once, its control characters escaped."""
    sys.stdout.write(f"{escaped(text)}\n")
    sys.stdout.flush()


class EscapingFormatter(logging.Formatter):
    """Formats log lines with their control characters escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        return escaped(super().format(record))


@contextmanager
def on_interrupt(act: Callable[[], None], signals: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)) -> Iterator[None]:
    """Call `act` at the first of these signals inside the block; raise KeyboardInterrupt at the second."""
    interrupted = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt
        interrupted = True
        act()

    before = {number: signal.signal(number, handle) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class ProgressBar:
    """A progress bar in a terminal; elsewhere a log line every 10 seconds. Both show rate, share done and time left.

    Args:
        unit: Name of what is counted, in the plural.
        total: Number of units in all, or None if it is not known.
        done: Number of units done before.
        hidden: Show nothing.
    """

    def __init__(self, unit: str, total: int | None = None, done: int = 0, hidden: bool = False) -> None:
        from tqdm import tqdm

        self.total = total
        self.done = done
        self._begun_at = done
        self._unit = unit
        self._bar = tqdm(total=total, initial=done, unit=f" {unit}", unit_scale=True, disable=True if hidden else None)
        self._logs = self._bar.disable and not hidden
        self._started = self._logged = time.monotonic()
        self._stack = ExitStack()

    def __enter__(self) -> ProgressBar:
        from tqdm.contrib.logging import logging_redirect_tqdm

        if not self._bar.disable:
            self._stack.enter_context(logging_redirect_tqdm())  # log lines stand above the bar
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._bar.close()

    def update(self, count: int, total: int | None = None, **figures: str) -> None:
        """Count more units.

        Args:
            count: Units done since the last call.
            total: A better estimate of the number of units in all.
            figures: Further figures to show, as text.
        """
        self.done += count
        self.total = total or self.total
        self._bar.total = self.total
        self._bar.set_postfix(figures, refresh=False)
        self._bar.update(count)
        now = time.monotonic()
        if self._logs and now - self._logged >= LOG_SECONDS:
            self._logged = now
            logger.info("%s", self._line(now - self._started, figures))

    def _line(self, seconds: float, figures: dict[str, Any]) -> str:
        """The state of the work as one log line."""
        rate = (self.done - self._begun_at) / seconds
        parts = [f"{self.done:,} {self._unit}", f"{rate:,.1f}/s"]
        if self.total:
            left = max(self.total - self.done, 0) / rate if rate else 0.0
            parts[0] += f" of about {self.total:,} ({self.done / self.total:.0%})"
            parts.append(f"{self._bar.format_interval(left)} left")
        return ", ".join([*parts, *(f"{name} {value}" for name, value in figures.items())])


def format_table(rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> str:
    """Format rows as aligned text.

    Args:
        rows: Values by key.
        columns: Key -> heading, in order. Numbers are right-aligned, a missing value is shown as "-".
    """
    cells = [[_cell(row.get(key)) for key in columns] for row in rows]
    headings = list(columns.values())
    widths = [max(len(line[i]) for line in [headings, *cells]) for i in range(len(headings))]
    numeric = [all(not isinstance(row.get(key), str) for row in rows) for key in columns]
    lines = [headings, ["-" * width for width in widths], *cells]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2f}"
