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
    """Write one HTML page of what runs left behind, with each plot as PNG and SVG and its numbers as CSV."""

    sources: Positional[tuple[Path, ...]] = ()
    """Run directories (a checkpoint, or its .run), files written with --json."""
    run_dir: Path | None = None
    """Run directory; same as a positional argument."""
    out: Path | None = None
    """Output directory; by default `report` in the run directory, or FILE.report beside a file."""

    def check(self) -> None:
        """Check that at least one source is named.

        Raises:
            ValueError: If none is.
        """
        if not self.paths:
            raise ValueError("name the directory of a run, or files written with --json")

    @property
    def paths(self) -> list[Path]:
        """All sources, in order."""
        return [*([self.run_dir] if self.run_dir else []), *self.sources]
