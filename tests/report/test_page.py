"""The page of a run: everything that was measured, and nothing that its reader's browser should not do."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hmt.report.publish import write_report
from hmt.report.sources import Material, add_figures, gather

SPANS = [{"document": "book", "first": 0, "end": 64}]
HOSTILE = '</script><script>alert("x")</script><img src="https://example.org/x.png"> & "$title"'
FIGURES: dict[str, Any] = {
    "spans": SPANS,
    "rows": [
        {"row": row, "context_tokens": n, "ppl": ppl + 0.125, "ppl_low": ppl, "ppl_high": ppl + 1, "ppl_causal": None,
         "tokens_per_second": 400.5, "peak_mb": 812.25}
        for row, ppl in (("backbone", 30), ("hmt", 28)) for n in (1024, 8192)
    ],
    "recall": [
        {"document": "book", "segment": n, "text": f"text of segment {n} {HOSTILE}", "distance": min(n, 2),
         "weights": [[slot, 0.5 / (slot + 1)] for slot in range(n)]}
        for n in range(5)
    ],
    "recall_distances": {"1": 1, "2": 3},
    "cells": [{"row": "hmt", "length": n, "depth": d, "accuracy": 0.75, "count": 4} for n in (64, 128) for d in (0, 1)],
    "history": [
        {"step": n, "stage": "hmt", "loss": 3.5 - n / 8, "grad_norm": 0.5, "learning_rates": {"memory": 1e-3}}
        for n in range(1, 5)
    ],
    "kept": [{"segment": 3, "usage": 0.625, "tokens": 14, "text": HOSTILE}],
    "command": ["hmt", "evaluate", "--task_name", HOSTILE],
    "commit": "0123456789abcdef",
    "environment": {"torch": "2.13.0"},
    "config": {"segment_length": 128, "note": HOSTILE},
}  # fmt: skip


class Elements(HTMLParser):
    """The elements of a page, their attributes, and the text of its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[int, str] = {}
        self._open = True
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))
        self._open = True

    def handle_endtag(self, tag: str) -> None:
        self._open = False

    def handle_data(self, data: str) -> None:
        if self._open:
            place = len(self.found) - 1
            self.texts[place] = self.texts.get(place, "") + data

    def of(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        """Attributes and text of the elements of one kind."""
        return [(kept, self.texts.get(place, "")) for place, (name, kept) in enumerate(self.found) if name == tag]


def made(figures: dict[str, Any], out: Path) -> str:
    """The page of one file of figures."""
    material = Material()
    assert add_figures(material, "figures", figures)
    write_report("A run", material, out)
    return (out / "report.html").read_text()


def test_every_number_of_a_csv_is_in_the_data_of_its_plot(tmp_path: Path) -> None:
    page = Elements(made(FIGURES, tmp_path))
    names = [kept["id"] for kept, _ in page.of("figure")]
    assert names == [
        "perplexity", "needle-hmt", "recall-book", "recall-distance", "tokens-per-second", "peak-mb", "loss",
        "gradient-norm", "learning-rates",
    ]  # fmt: skip
    data = [json.loads(text) for kept, text in page.of("script") if kept.get("type") == "application/json"]
    assert len(data) == len(names)
    for name, shown in zip(names, data, strict=True):
        columns, *rows = csv.reader((tmp_path / f"{name}.csv").open())
        assert columns == shown["columns"]
        assert rows == [["" if cell is None else str(cell) for cell in row] for row in shown["rows"]]
        assert rows
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    assert (tmp_path / "kept-figures.csv").read_text().startswith("segment,usage,tokens,text\n3,0.625,14,")
    assert len(list(csv.reader((tmp_path / "rows-figures.csv").open()))) == 5


def test_the_page_loads_nothing_and_runs_only_its_own_script(tmp_path: Path) -> None:
    text = made(FIGURES, tmp_path)
    page = Elements(text)
    for tag, kept in page.found:
        for name, value in kept.items():
            assert name != "src", (tag, value)
            assert not name.startswith("on"), (tag, name)
            if name == "href":
                assert value is not None
                assert value.startswith("#") or value == "data:,", (tag, value)
    assert {tag for tag, _ in page.found}.isdisjoint({"img", "iframe", "object", "embed", "base", "form"})
    scripts = page.of("script")
    (own,) = [text for kept, text in scripts if kept.get("type") != "application/json"]
    assert "alert" not in own
    (style,) = [text for _, text in page.of("style")]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(kept["content"] for kept, _ in page.of("meta") if "http-equiv" in kept)
    assert policy is not None
    assert "default-src 'none'" in policy
    for part in (own, style):
        assert base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() in policy


def test_texts_are_shown_as_they_are(tmp_path: Path) -> None:
    text = made(FIGURES, tmp_path)
    page = Elements(text)
    data = [json.loads(text) for kept, text in page.of("script") if kept.get("type") == "application/json"]
    assert [1, f"text of segment 1 {HOSTILE}"] in data[2]["texts"]
    assert any(HOSTILE in shown for _, shown in page.of("td"))
    assert text.count("<script") == len(data) + 1


def test_the_same_figures_make_the_same_report(tmp_path: Path) -> None:
    made(FIGURES, tmp_path / "a")
    made(json.loads(json.dumps(FIGURES)), tmp_path / "b")
    files = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "b").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.parametrize("part", ["rows", "recall", "cells", "history", "kept", "recall_distances"])
def test_what_was_not_measured_is_left_out(part: str, tmp_path: Path) -> None:
    alone = made({part: FIGURES[part]}, tmp_path / "alone")
    titles = re.findall(r"<h2[^>]*>([^<]*)", alone)
    expected = {
        "rows": ["Quality against length", "Speed and memory", "All figures"], "recall": ["Recall"],
        "recall_distances": ["Recall"], "cells": ["Needles"], "history": ["Training"], "kept": ["What is kept"],
    }  # fmt: skip
    assert titles == expected[part]
    others = re.findall(
        r"<h2[^>]*>([^<]*)", made({key: value for key, value in FIGURES.items() if key != part}, tmp_path / "others")
    )
    assert len(others) >= 5


def test_a_figure_may_be_missing_or_no_number(tmp_path: Path) -> None:
    rows = [
        {"row": "hmt", "context_tokens": 64, "ppl": None},
        {"row": "hmt", "context_tokens": 128, "ppl": float("nan")},
        {"row": "hmt", "context_tokens": 256, "ppl": 3.5, "ppl_low": None, "ppl_high": None, "peak_mb": None},
    ]
    made({"rows": rows}, tmp_path)
    assert (tmp_path / "perplexity.csv").read_text() == "line,context_tokens,ppl\nhmt,256,3.5\n"


def test_every_plot_has_a_name_and_a_description(tmp_path: Path) -> None:
    page = Elements(made(FIGURES, tmp_path))
    ids = {kept.get("id") for _, kept in page.found}
    drawings = [kept for kept, _ in page.of("svg") if "aria-hidden" not in kept]
    assert len(drawings) == 9
    for kept in drawings:
        assert set(str(kept["aria-labelledby"]).split()) <= ids
    assert len([kept for kept in ids if kept]) == len([1 for _, kept in page.found if kept.get("id")])  # each once


def test_evaluations_of_the_same_targets_share_a_plot_and_others_do_not(tmp_path: Path) -> None:
    material = Material()
    add_figures(material, "before", {"spans": SPANS, "rows": FIGURES["rows"]})
    add_figures(material, "after", {"spans": SPANS, "rows": FIGURES["rows"]})
    add_figures(material, "elsewhere", {"spans": [{"document": "other"}], "rows": FIGURES["rows"]})
    write_report("Runs", material, tmp_path)
    lines = [row[0] for row in csv.reader((tmp_path / "perplexity-before-after.csv").open())][1:]
    assert list(dict.fromkeys(lines)) == ["backbone, before", "hmt, before", "backbone, after", "hmt, after"]
    assert len((tmp_path / "perplexity-elsewhere.csv").read_text().splitlines()) == 5


def test_files_are_known_by_what_is_in_them(tmp_path: Path) -> None:
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
    (tmp_path / "figures.json").write_text(json.dumps(FIGURES))
    status, said, complaint = run_cli("report", tmp_path / "figures.json", "--json", tmp_path / "out.json")
    assert status == 0, complaint
    page = tmp_path / "figures.report" / "report.html"
    assert said == f"9 plots in {page}, each beside it as .png and .csv\n"
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["page"] == str(page)
    assert all(Path(file).is_file() for file in written["files"])
    assert run_cli("report", "--run_dir", tmp_path, "--out", tmp_path / "r")[0] == 0
    assert (tmp_path / "r" / "report.html").is_file()


def test_the_report_of_a_checkpoint_is_not_lost_with_the_next_checkpoint(tmp_path: Path, run_cli: Any) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "first.run").mkdir()
    (tmp_path / "first.json").write_text(json.dumps(FIGURES))
    for name in ("first", "first.run"):
        status, said, complaint = run_cli("report", tmp_path / name)
        assert status == 0, complaint
        assert str(tmp_path / "first.run" / "report" / "report.html") in said


def test_what_a_memory_keeps_is_shown_with_its_text_where_its_model_is_found(
    backbone_dir: Path, tmp_path: Path, run_cli: Any
) -> None:
    (tmp_path / "book.txt").write_text("".join(f"Line {n} of the book.\n" for n in range(20)))
    flags = ("--segment_length", 20, "--num_sensory", 4, "--mem_recall_hidden_dim", 16, "--mem_recall_context", 3)
    model = shutil.copytree(backbone_dir, tmp_path / "model")
    run_cli("remember", tmp_path / "book.txt", "--model_name", model, *flags, "--out", tmp_path / "book.memory")

    def kept(*more: object) -> list[list[str]]:
        status, _, complaint = run_cli("report", tmp_path / "book.memory", *more, "--out", tmp_path / "report")
        assert status == 0, complaint
        columns, *rows = csv.reader((tmp_path / "report" / "kept-book.csv").open())
        assert columns == ["segment", "usage", "tokens", "text"]
        assert len(rows) == 3
        assert {row[2] for row in rows} == {"14"}
        return rows

    with_text = kept()
    assert "".join(row[3] for row in with_text) in (tmp_path / "book.txt").read_text()
    assert with_text[0][3]
    shutil.rmtree(model)
    assert [row[3] for row in kept()] == [""] * 3
    assert kept("--model_name", backbone_dir) == with_text
