"""Recalled text, plots and the page of a run (extra `report`), and the options of `hmt report`."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from hmt.options import OutputOptions


def check_installed() -> None:
    """Check that the packages that draw are installed.

    Raises:
        ImportError: If one is missing; names the extra.
    """
    if any(importlib.util.find_spec(name) is None for name in ("altair", "vl_convert", "PIL")):
        raise ImportError("plots need the extra report: pip install altair vl-convert-python pillow")


@dataclass(kw_only=True)
class ReportOptions(OutputOptions):
    """Plot the results of runs on one HTML page, and each plot as PNG, SVG and CSV."""

    sources: Positional[tuple[Path, ...]] = ()
    """Run directories (a checkpoint or its .run directory), or JSON files written with --json."""
    out: Path | None = None
    """Output directory. Default: `report` in the run directory, or FILE.report beside a file."""

    def check(self) -> None:
        """Check that at least one source is named.

        Raises:
            ValueError: If none is.
        """
        if not self.sources:
            raise ValueError("name the directory of a run, or files written with --json")
