"""Runs that show what other runs left behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from hmt.options.base import OutputOptions


@dataclass(kw_only=True)
class ReportOptions(OutputOptions):
    """Write one HTML page of what a run left behind, with each plot as PNG and its numbers as CSV."""

    sources: Positional[tuple[Path, ...]] = ()
    """Directories of runs (a checkpoint, or its .run), files written with --json, memory files."""
    run_dir: Path | None = None
    """Directory of a run, as if named without a flag."""
    out: Path | None = None
    """Directory of the report; by default `report` in the run's directory, or FILE.report beside a file."""
    model_name: str | None = None
    """Model whose tokenizer the texts of memory files need; by default that of the run, or the one that wrote them."""

    def check(self) -> None:
        """Check that there is something to show.

        Raises:
            ValueError: If nothing was named.
        """
        if not self.paths:
            raise ValueError("name the directory of a run, or files written with --json")

    @property
    def paths(self) -> list[Path]:
        """All that was named, in order."""
        return [*([self.run_dir] if self.run_dir else []), *self.sources]
