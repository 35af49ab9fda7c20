"""Options of `hmt report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from hmt.options import OutputOptions


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
