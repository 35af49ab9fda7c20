"""The page of a run: everything that was measured, and nothing that a browser should not do."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hmt.report.data import Material, add_figures, gather
from hmt.report.publish import compose, render, write_report
from tests.report.figures import FIGURES, HOSTILE, SPANS


class Elements(HTMLParser):
    """Elements of a page in order: tag, attributes, text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes), []))

    def handle_data(self, data: str) -> None:
        if self.found:
            self.found[-1][2].append(data)

    def of(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        """Attributes and text of the elements of one kind."""
        return [(kept, "".join(texts).strip()) for name, kept, texts in self.found if name == tag]


def material(**figures: dict[str, Any]) -> Material:
    found = Material()
    for name, one in figures.items():
        assert add_figures(found, name, one)
    return found


@pytest.fixture(scope="module")
def page() -> str:
    """The page of one file of figures."""
    return render("A run", HOSTILE, compose(material(figures=FIGURES)), {HOSTILE: HOSTILE})


def specs(page: str) -> dict[str, Any]:
    """The Vega-Lite specifications that the page's own script draws."""
    *_, (_, script) = Elements(page).of("script")
    return json.loads(re.findall("const SPECS = (.*);", script)[0])


def test_the_page_draws_the_measured_numbers(page: str) -> None:
    panels = {panel.name: panel for panels in compose(material(figures=FIGURES)).values() for panel in panels}
    assert [kept["id"] for kept, _ in Elements(page).of("figure")] == list(panels)
    drawn = specs(page)
    assert set(drawn) == {name for name, panel in panels.items() if panel.chart is not None}
    for name, spec in drawn.items():
        data = spec.get("data") or spec["layer"][0]["data"]
        assert data["values"] == panels[name].rows
        assert spec["width"] == "container"
    assert {"perplexity", "peak-memory", "recall-book", "recall-distance", "loss"} <= set(drawn)


def test_the_page_loads_nothing_and_runs_only_its_own_scripts(page: str) -> None:
    found = Elements(page)
    for tag, kept, _ in found.found:
        for name, value in kept.items():
            assert name != "src", (tag, value)
            assert not name.startswith("on"), (tag, name)
            assert name != "href" or str(value).startswith(("#", "data:")), (tag, value)
    assert {tag for tag, _, _ in found.found}.isdisjoint({"img", "iframe", "object", "embed", "base", "form"})
    ((_, style),) = found.of("style")
    assert "url(" not in style
    assert "@import" not in style
    before, _, rest = page.partition("<script")
    own = before + rest.partition("</script>")[2]  # without the bundle of Vega, which names XML namespaces
    assert set(re.findall(r"https?://[\w./]+", own)) == {"https://example.org/x.png"}  # in quoted texts
    policy = next(str(kept["content"]) for kept, _ in found.of("meta") if "http-equiv" in kept)
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    nonces = {str(kept["nonce"]) for kept, _ in found.of("script")}
    assert re.findall(r"script-src ([^;]*)", policy) == [f"'nonce-{nonces.pop()}'"]
    assert not nonces


def test_texts_stay_texts(page: str) -> None:
    found = Elements(page)
    assert len(found.of("script")) == 2
    assert HOSTILE in [text for _, text in found.of("td")]
    assert HOSTILE in [text for _, text in found.of("summary")]
    assert HOSTILE in [text for _, text in found.of("pre")]
    texts = specs(page)["recall-book"]["transform"][0]["from"]["data"]["values"]
    assert texts[1]["text"] == f"text of segment 1 {HOSTILE}"


def test_the_same_figures_make_the_same_report(tmp_path: Path) -> None:
    part = {"rows": [{"row": "hmt", "context_tokens": n, "ppl": 3.5} for n in (64, 128)], "commit": "0123"}
    for name in ("a", "b"):
        write_report("A run", material(figures=json.loads(json.dumps(part))), tmp_path / name)
    files = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert files == ["perplexity.csv", "perplexity.png", "perplexity.svg", "report.html", "rows.csv"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_plot_that_was_not_measured_is_left_out() -> None:
    expected = {
        "rows": ["Quality against length", "Speed and memory", "All figures"], "recall": ["Recall"],
        "recall_distances": ["Recall"], "history": ["Training"],
    }  # fmt: skip
    for part, sections in expected.items():
        assert list(compose(material(figures={part: FIGURES[part]}))) == sections


def test_evaluations_of_the_same_targets_share_a_plot_and_others_do_not() -> None:
    rows = FIGURES["rows"]
    found = compose(
        material(
            before={"spans": SPANS, "rows": rows},
            after={"spans": SPANS, "rows": rows},
            elsewhere={"spans": [{"document": "other"}], "rows": rows},
        )
    )
    panels = {panel.name: panel for panel in found["Quality against length"]}
    together = panels["perplexity-before-after"].rows
    assert {(row["row"], row["series"]) for row in together} == {
        (row, series) for row in ("backbone", "hmt") for series in ("before", "after")
    }
    assert len(panels["perplexity-elsewhere"].rows) == 4


def test_curves_of_several_runs_share_a_plot() -> None:
    later = [entry | {"loss": 1.0} for entry in FIGURES["history"]]
    found = compose(material(first={"history": FIGURES["history"]}, second={"history": later}))
    loss, *_ = found["Training"]
    assert {row["row"] for row in loss.rows} == {"first", "second"}
    assert {row["loss"] for row in loss.rows if row["row"] == "second"} == {1.0}


def test_files_are_recognized_by_their_content(tmp_path: Path) -> None:
    record = tmp_path / "first.run"
    record.mkdir()
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "config.json").write_text('{"model_type": "hmt"}')
    (record / "run.json").write_text(json.dumps({"command": ["hmt", "train"], "options": {"seed": 1}}))
    steps = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "loss": 2.0, "validation_loss": 2.5}]
    (record / "metrics.jsonl").write_text("".join(f"{json.dumps(step)}\n" for step in steps) + '{"step": 3, "lo')
    (record / "broken.json").write_text("{")
    (tmp_path / "first-books.json").write_text(json.dumps({"rows": FIGURES["rows"]}))
    (tmp_path / "firstly.json").write_text(json.dumps({"rows": FIGURES["rows"]}))
    for paths in ([record], [tmp_path / "first"], [tmp_path / "first", tmp_path / "first-books.json", record]):
        material = gather(paths)
        assert list(material.figures) == ["first-books"]
        assert material.runs == {"first": {"command": ["hmt", "train"], "options": {"seed": 1}}}
        assert material.histories == {"first": [steps[0], steps[2]]}


def test_a_page_is_made_on_the_command_line(tmp_path: Path, run_cli: Any) -> None:
    (tmp_path / "figures.json").write_text(json.dumps({"recall_distances": {"1": 2}}))
    status, said, complaint = run_cli("report", tmp_path / "figures.json", "--json", tmp_path / "out.json")
    assert status == 0, complaint
    page = tmp_path / "figures.report" / "report.html"
    assert str(page) in said
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["page"] == str(page)
    assert sorted(Path(file).name for file in written["files"]) == [
        "recall-distance.csv", "recall-distance.png", "recall-distance.svg", "report.html",
    ]  # fmt: skip
    assert all(Path(file).stat().st_size > 10 for file in written["files"])
    assert run_cli("report", tmp_path, "--out", tmp_path / "r")[0] == 0
    assert (tmp_path / "r" / "report.html").is_file()


def test_the_report_of_a_checkpoint_survives_the_next_checkpoint(tmp_path: Path, run_cli: Any) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "first.run").mkdir()
    (tmp_path / "first.json").write_text(json.dumps({"recall_distances": {"1": 2}}))
    for name in ("first", "first.run"):
        status, said, complaint = run_cli("report", tmp_path / name)
        assert status == 0, complaint
        assert str(tmp_path / "first.run" / "report" / "report.html") in said


def test_without_the_extra_verbs_that_draw_name_it(
    tmp_path: Path, run_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "figures.json").write_text(json.dumps({"recall_distances": {"1": 2}}))
    monkeypatch.setitem(sys.modules, "altair", None)
    status, _, complaint = run_cli("report", tmp_path / "figures.json")
    assert status == 2
    assert "vl-convert-python" in complaint
    assert complaint.count("\n") == 1
