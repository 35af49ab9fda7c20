"""What a terminal is shown: text of files and models must not move its cursor, color it or change its title."""

from __future__ import annotations

import logging
import re

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters besides tab and line feed, and those that turn the direction of writing."""


def escaped(text: str) -> str:
    r"""A text with its control characters written out, as in \x1b."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


class EscapingFormatter(logging.Formatter):
    """Writes log lines with their control characters escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return escaped(super().format(record))
