"""`hmt report`: everything that runs left behind as one HTML page; each plot also as PNG, SVG and CSV."""

from __future__ import annotations

import dataclasses
import logging
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from hmt.atomic import atomic_file, check_output_file
from hmt.memory.state import MemoryState
from hmt.pretrained import load_tokenizer
from hmt.report import check_installed
from hmt.report.data import Figures, Material, gather
from hmt.report.kept import kept_segments
from hmt.report.options import ReportOptions

logger = logging.getLogger(__name__)

PAGE = "report.html"

ORIGIN = (
    "command", "commit", "date", "machine", "processor", "accelerator", "threads", "hmt", "python", "torch",
    "transformers", "environment", "model", "checkpoints", "matched", "seconds", "options", "config", "settings",
)  # fmt: skip
"""Keys of figures and records that say how they were made."""


def run(options: ReportOptions) -> tuple[dict[str, Any], str]:
    """Gather, draw and write.

    Returns:
        The files, and a closing line.

    Raises:
        ImportError: If the packages that draw are not installed.
        OSError: If a source is missing, or the report cannot be written.
        ValueError: If there is nothing to show.
    """
    check_installed()
    sources = options.paths
    first = sources[0]
    out = options.out or _beside(first)
    check_output_file(out / PAGE)
    material = gather(sources)
    for name, state in material.memories.items():
        material.figures[f"{name}.memory"] = {"kept": _kept(name, state, options, sources)}
    name = first.resolve().name.removesuffix(".run") if first.is_dir() else first.stem
    files = write_report(f"{name}: what was measured", material, out)
    drawn = sum(file.suffix == ".png" for file in files)
    figures = {"page": str(out / PAGE), "files": [str(file) for file in files]}
    return figures, f"{drawn} plots in {out / PAGE}, each beside it as .png, .svg and .csv"


def write_report(title: str, material: Material, out: Path) -> list[Path]:
    """Write the page, and each of its plots as PNG, SVG and CSV.

    Args:
        title: Title of the page.
        material: Everything to show.
        out: Directory for all files.

    Returns:
        The files.
    """
    from hmt.report.drawing import save
    from hmt.report.page import render

    sections = compose(material)
    origins = dict(_origins(material))
    texts = {out / PAGE: render(title, _summary(material), sections, origins)}
    pictures = []
    for panel in [panel for panels in sections.values() for panel in panels]:
        if panel.chart is not None:
            for kind in ("png", "svg"):
                pictures.append(out / f"{panel.name}.{kind}")
                save([panel], pictures[-1])
        texts[out / f"{panel.name}.csv"] = panel.csv()
    for file, text in texts.items():
        with atomic_file(file) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    return [*texts, *pictures]


def _beside(source: Path) -> Path:
    """Return the default directory: in the run's record, since a checkpoint is replaced whole, or beside a file."""
    if not source.is_dir():
        return source.with_name(f"{source.stem}.report")
    record = Path(f"{source.resolve()}.run")
    return (record if record.is_dir() else source) / "report"


def compose(material: Material) -> dict[str, list[Any]]:
    """Draw every section from every source; panels of the same name get the name of their source."""
    from hmt.report.charts import PLOTS, panels

    sources = material.sources()
    found = {section: [(name, panel) for name, one in sources for panel in panels(one, section)] for section in PLOTS}
    times = Counter(panel.name for drawn in found.values() for _, panel in drawn)
    taken: set[str] = set()
    for drawn in found.values():
        for number, (source, panel) in enumerate(drawn):
            name, title = panel.name, panel.title
            if times[name] > 1:
                name, title = f"{name}-{source}", f"{title} ({source})"
            drawn[number] = source, dataclasses.replace(panel, name=_file_name(name, taken), title=title)
    return {section: [panel for _, panel in drawn] for section, drawn in found.items()}


def _file_name(name: str, taken: set[str]) -> str:
    """Return the name as a file name that is not taken yet."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower())[:60].strip("-") or "plot"
    number, free = 2, plain
    while free in taken:
        free, number = f"{plain}-{number}", number + 1
    taken.add(free)
    return free


def _kept(name: str, state: MemoryState, options: ReportOptions, sources: Sequence[Path]) -> list[dict[str, Any]]:
    """Return what a memory keeps, with its text if its tokenizer is available."""
    checkpoints = [str(path.resolve()).removesuffix(".run") for path in sources if path.is_dir()]
    places = [options.model_name] if options.model_name else [*checkpoints, state.model.name]
    tokenizer = None
    for place in places:
        try:
            tokenizer = load_tokenizer(place)
            break
        except OSError as error:
            reason = error
    if tokenizer is None:
        logger.info("%s is shown without its texts: %s", name, reason)
    return [dataclasses.asdict(segment) for segment in kept_segments(state, tokenizer)]


def _origins(material: Material) -> Iterator[tuple[str, str]]:
    """Yield the title of each source and how it was made, as YAML."""
    for name, one in [*material.runs.items(), *material.figures.items()]:
        origin = {key: one[key] for key in ORIGIN if one.get(key) not in (None, [])}
        if isinstance(origin.get("command"), list):
            origin["command"] = shlex.join(map(str, origin["command"]))
        if origin:
            yield name, yaml.safe_dump(_plain(origin), sort_keys=False, allow_unicode=True, width=100)


def _plain(value: Any) -> Any:
    """Return a value that YAML can write: figures of a verb in this process may hold paths."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _summary(material: Material) -> str:
    """Return commit and versions of the first source that has them."""
    for one in [*material.runs.values(), *material.figures.values()]:
        said: Figures = {**one.get("environment", {}), **one}
        if parts := [f"{key} {str(said[key])[:12]}" for key in ("commit", "torch", "transformers") if said.get(key)]:
            return ", ".join(parts).capitalize()
    return ""
