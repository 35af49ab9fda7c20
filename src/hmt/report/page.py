"""Plots and tables as one HTML page that needs nothing but itself: no network, no file beside it.

`page.html` is its frame, `page.css` its looks and `page.js` what happens when one points and clicks.
Whatever comes from a text or a file is escaped, and the page forbids its reader's browser every other script and every
address (a content security policy that names the digest of `page.js`).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib import resources
from string import Template
from typing import Any

from hmt.report.charts import COLOURS, DARK_COLOURS, Cell, Chart, HeatMap, Line, LineChart, short
from hmt.report.svg import dashes, draw, mark

PREVIEW_CHARACTERS = 160
"""What is seen of a long text before it is opened."""


@dataclass(frozen=True)
class Table:
    """Values as rows of a page.

    Attributes:
        name: Of its CSV file; "" for none.
        title: Above it.
        note: What is to be known to read it.
        columns: Headings.
        rows: As long as the columns.
        folded: Show it only when it is opened.
    """

    name: str
    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: Of it.
        charts: Plots, by names that are unique on the page.
        tables: Below them.
    """

    title: str
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()


def render(title: str, summary: str, sections: Sequence[Section]) -> str:
    """The page.

    Args:
        title: Of the page.
        summary: One sentence below it.
        sections: In order; those without plots and tables are left out.
    """
    sections = [section for section in sections if section.charts or section.tables]
    style = Template(_resource("page.css")).substitute(
        colours=_palette(COLOURS),
        dark_colours=_palette(DARK_COLOURS),
        classes="\n".join(f".c{number} {{ --c: var(--c{number}); }}" for number in range(len(COLOURS))),
    )
    script = _resource("page.js")
    policy = (
        f"default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    )
    places = [f"section-{number}" for number in range(1, len(sections) + 1)]
    return Template(_resource("page.html")).substitute(
        title=escape(title),
        summary=escape(summary),
        policy=policy,
        style=style,
        script=script,
        contents="".join(
            f'<li><a href="#{place}">{escape(section.title)}</a></li>'
            for place, section in zip(places, sections, strict=True)
        ),
        sections="\n".join(map(_section, places, sections)),
    )


def _section(place: str, section: Section) -> str:
    charts = "\n".join(map(_figure, section.charts))
    tables = "\n".join(map(_table, section.tables))
    return (
        f'<section aria-labelledby="{place}"><h2 id="{place}">{escape(section.title)}</h2>\n'
        + (f'<div class="charts">\n{charts}\n</div>\n' if charts else "")
        + f"{tables}\n</section>"
    )


def _figure(chart: Chart) -> str:
    columns, rows = chart.table()
    data: dict[str, Any] = {"columns": columns, "rows": rows}
    legend, panel = "", ""
    if isinstance(chart, LineChart):
        legend = _legend(chart.lines)
    elif isinstance(chart, HeatMap):
        top = escape(f"{short(chart.top)} {chart.value}")
        legend = f'<p class="scale"><span>0</span><span class="ramp"></span><span>{top}</span></p>'
    if isinstance(chart, HeatMap) and chart.whole:
        data["texts"] = [list(pair) for pair in chart.texts]
        panel = (
            '<div class="panel" aria-live="polite"><p class="what">Point at a cell of the map, or walk it with the '
            'arrow keys.</p><h4></h4><p class="text" tabindex="0" hidden></p><h4></h4>'
            '<p class="text" tabindex="0" hidden></p></div>\n'
        )
    return (
        f'<figure id="{escape(chart.name)}"{" class=read" if panel else ""}>\n'
        f"<figcaption><h3>{escape(chart.title)}</h3><p>{escape(chart.note)}</p></figcaption>\n"
        f"{draw(chart)}\n{legend}\n{panel}"
        '<details class="numbers"><summary>Numbers</summary>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(chart.title)}: numbers"></div>'
        '<button type="button" class="save">Save as CSV</button></details>\n'
        f'<script type="application/json" class="data">{_inert(data)}</script>\n</figure>'
    )


def _legend(lines: Sequence[Line]) -> str:
    """A button for each line; nothing where there is but one."""
    shown = [(number, line) for number, line in enumerate(lines)]
    if len(shown) < 2:
        return ""
    items = []
    for number, line in shown:
        drawn = f"{mark(line.colour, 17, 7)}/>" if line.marked else ""
        classes = f"c{line.colour % len(COLOURS)}{' faint' if line.faint else ''}"
        swatch = (
            f'<svg viewBox="0 0 34 14" aria-hidden="true"><g class="{classes}">'
            f'<path class="stroke" d="M1 7H33"{dashes(line)}/>{drawn}</g></svg>'
        )
        items.append(
            f'<li><button type="button" aria-pressed="true" data-line="{number}">{swatch}{escape(line.name)}'
            "</button></li>"
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _table(table: Table) -> str:
    numeric = [all(not isinstance(row[i], str) for row in table.rows) for i in range(len(table.columns))]
    heads = "".join(
        f'<th scope="col"{" class=number" if number else ""}>{escape(column)}</th>'
        for column, number in zip(table.columns, numeric, strict=True)
    )
    wordy = [any(isinstance(row[i], str) and len(str(row[i])) > 40 for row in table.rows) for i in range(len(numeric))]
    body = "\n".join(f"<tr>{''.join(map(_cell, row, table.columns, wordy))}</tr>" for row in table.rows)
    scroll = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}">'
        f"<table{' class=wordy' if any(wordy) and any(table.columns) else ''}>"
        f"<thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    if table.folded:
        return f'<details class="table"><summary>{escape(table.title)}</summary>{note}{scroll}</details>'
    return f'<div class="table"><h3>{escape(table.title)}</h3>{note}{scroll}</div>'


def _cell(value: Cell, column: str, wordy: bool) -> str:
    if not wordy:
        said = escape(value) if isinstance(value, str) else _number(value)
        return f'<td data-of="{escape(column)}"{"" if isinstance(value, str) else " class=number"}>{said}</td>'
    text = "-" if value is None else str(value)
    if len(text) <= PREVIEW_CHARACTERS or not column:
        return f'<td class="long">{escape(text)}</td>'
    preview = " ".join(text[:PREVIEW_CHARACTERS].split())
    return (
        f'<td class="long"><details><summary>{escape(preview)} ...</summary>'
        f'<div class="text">{escape(text)}</div></details></td>'
    )


def _number(value: float | None) -> str:
    """A number as a column of numbers has it: four digits, those that are 0 too."""
    return f"{value:#.4g}" if isinstance(value, float) and abs(value) < 1000 else short(value)


def _inert(data: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _palette(colours: Iterable[str]) -> str:
    return " ".join(f"--c{number}: {colour};" for number, colour in enumerate(colours))


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
