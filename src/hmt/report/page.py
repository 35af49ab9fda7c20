"""One HTML page of charts and tables that works without network and without files beside it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import altair as alt
import jinja2
import vl_convert

from hmt.report.drawing import Drawing, Panel, theme


def render(title: str, summary: str, sections: Mapping[str, Sequence[Panel]], origins: Mapping[str, str]) -> str:
    """Fill the template `page.html`.

    The content security policy of the page allows no address at all and only the scripts of the page itself.

    Args:
        title: Title of the page.
        summary: One sentence below it.
        sections: Panels by section title, in order; panel names are unique. Empty sections are left out.
        origins: How each source was made: title -> text.
    """
    specs = {
        panel.name: spec(panel.chart) for panels in sections.values() for panel in panels if panel.chart is not None
    }
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters["number"] = _number
    template = environment.from_string(resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(
        title=title,
        summary=summary,
        sections={title: panels for title, panels in sections.items() if panels},
        origins=origins,
        specs=specs,
        themes={"light": theme(), "dark": theme(dark=True)},
        download=_download,
        bundle=_bundle(),
        nonce=hashlib.sha256(json.dumps(specs).encode()).hexdigest()[:32],
    )


def spec(chart: Drawing) -> dict[str, Any]:
    """Return the Vega-Lite specification of a chart that is as wide as its container."""
    found = chart.properties(width="container").to_dict()
    del found["$schema"]  # an address, though nothing would be loaded from it
    return found


def _bundle() -> str:
    """Return Vega, Vega-Lite and Vega-Embed, of the version that Altair writes specifications for."""
    major, minor, _ = alt.SCHEMA_VERSION.lstrip("v").split(".")
    return vl_convert.javascript_bundle(vl_version=f"{major}.{minor}")  # type: ignore[call-arg]  # stub lacks the default


def _download(panel: Panel) -> str:
    return "data:text/csv;base64," + base64.b64encode(panel.csv().encode()).decode()


def _number(value: Any) -> str:
    """Format a table cell: integers with separators, other numbers with four digits."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
