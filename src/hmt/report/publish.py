"""`hmt report`: everything that runs left behind as one HTML page; each plot also as PNG, SVG and CSV."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hmt.atomic import atomic_file, check_output_file
from hmt.report import ReportOptions, check_installed
from hmt.report.data import Material, gather

if TYPE_CHECKING:
    from hmt.report.drawing import Panel

PAGE = "report.html"

ORIGIN = (
    "command", "commit", "date", "machine", "processor", "accelerator", "threads", "hmt", "python", "torch",
    "transformers", "environment", "model", "checkpoints", "seconds", "options", "config", "settings",
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
    first = options.sources[0]
    out = options.out or _beside(first)
    check_output_file(out / PAGE)
    material = gather(options.sources)
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

    sections = compose(material)
    texts = {out / PAGE: render(title, _summary(material), sections, dict(_origins(material)))}
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
    """The default directory: in the run's record, since a checkpoint is replaced whole, or beside a file."""
    if not source.is_dir():
        return source.with_name(f"{source.stem}.report")
    record = Path(f"{source.resolve()}.run")
    return (record if record.is_dir() else source) / "report"


def compose(material: Material) -> dict[str, list[Panel]]:
    """Draw every section from every source; panels of the same name get the name of their source."""
    from hmt.report.charts import PLOTS, panels

    sources = material.sources()
    found = {section: [(name, panel) for name, one in sources for panel in panels(one, section)] for section in PLOTS}
    times = Counter(panel.name for drawn in found.values() for _, panel in drawn)
    taken: set[str] = set()
    sections: dict[str, list[Panel]] = {}
    for section, drawn in found.items():
        for source, panel in drawn:
            name, title = panel.name, panel.title
            if times[name] > 1:
                name, title = f"{name}-{source}", f"{title} ({source})"
            named = dataclasses.replace(panel, name=_file_name(name, taken), title=title)
            sections.setdefault(section, []).append(named)
    return sections


def _file_name(name: str, taken: set[str]) -> str:
    """The name as a file name that is not taken yet."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower())[:60].strip("-") or "plot"
    number, free = 2, plain
    while free in taken:
        free, number = f"{plain}-{number}", number + 1
    taken.add(free)
    return free


def render(title: str, summary: str, sections: Mapping[str, Sequence[Panel]], origins: Mapping[str, str]) -> str:
    """Fill the template `page.html`: one page that works without network and without files beside it.

    The content security policy of the page allows no address at all and only the scripts of the page itself.

    Args:
        title: Title of the page.
        summary: One sentence below it.
        sections: Panels by section title, in order; panel names are unique.
        origins: Command and settings of each source: title -> text.
    """
    import altair
    import jinja2
    import vl_convert

    from hmt.report.drawing import theme

    specs = {}
    for panel in [panel for panels in sections.values() for panel in panels]:
        if panel.chart is not None:
            specs[panel.name] = panel.chart.properties(width="container").to_dict()
            del specs[panel.name]["$schema"]  # an address, though nothing would be loaded from it
    major, minor, _ = altair.SCHEMA_VERSION.lstrip("v").split(".")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters["number"] = _number
    template = environment.from_string(resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(
        title=title,
        summary=summary,
        sections=sections,
        origins=origins,
        specs=specs,
        themes={"light": theme(), "dark": theme(dark=True)},
        download=lambda panel: "data:text/csv;base64," + base64.b64encode(panel.csv().encode()).decode(),
        bundle=vl_convert.javascript_bundle(vl_version=f"{major}.{minor}"),  # type: ignore[call-arg]  # in the stub
        nonce=hashlib.sha256(json.dumps(specs).encode()).hexdigest()[:32],
    )


def _number(value: Any) -> str:
    """A table cell: integers with separators, other numbers with four digits."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _origins(material: Material) -> Iterator[tuple[str, str]]:
    """Title of each source and how it was made, as YAML."""
    for name, one in [*material.runs.items(), *material.figures.items()]:
        origin = {key: one[key] for key in ORIGIN if one.get(key) not in (None, [])}
        if isinstance(origin.get("command"), list):
            origin["command"] = shlex.join(map(str, origin["command"]))
        if origin:  # figures of a verb in this process may hold paths, which JSON writes as text
            plain = json.loads(json.dumps(origin, default=str))
            yield name, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)


def _summary(material: Material) -> str:
    """Commit and versions of the first source that has them."""
    for one in [*material.runs.values(), *material.figures.values()]:
        said = {**one.get("environment", {}), **one}
        if parts := [f"{key} {str(said[key])[:12]}" for key in ("commit", "torch", "transformers") if said.get(key)]:
            return ", ".join(parts).capitalize()
    return ""
