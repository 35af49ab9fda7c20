"""`hmt profile`: every row at every length, in processes of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hmt.cli import profile
from hmt.cli.profile import predicted_seconds
from hmt.evaluation import speed
from hmt.evaluation.options import ProfileOptions
from hmt.evaluation.speed import Material
from tests.conftest import byte_tokenizer, make_backbone

FLAGS = ("--segment_length", 40, "--mem_recall_hidden_dim", 16, "--mem_recall_context", 5)
MEASURED = (
    "tokens_per_second", "seconds_to_first_token", "seconds_after_reading", "ms_per_token",
    "peak_mb", "bytes_kept", "flops", "fraction_of_floor", "seconds",
)  # fmt: skip


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the test the processes."""
    monkeypatch.setattr(profile, "_alone", lambda work, *arguments: work(*arguments))
    monkeypatch.setattr(speed, "matmul_rate", lambda *_: 1e12)


@pytest.mark.usefixtures("in_this_process")
def test_every_row_is_measured_at_every_length_and_shown(
    backbone_dir: Path, task_dir: Path, tmp_path: Path, run_cli: Any
) -> None:
    status, _, complaint = run_cli(
        "profile", "--model_name", backbone_dir, "--task_name", task_dir, *FLAGS, "--lengths", "60,100,140",
        "--modes", "sinks,recall,hmt,rmt,full", "--new_tokens", 4, "--json", tmp_path / "p.json",
        "--plot", tmp_path / "p.png",
    )  # fmt: skip
    assert status == 0, complaint
    figures = json.loads((tmp_path / "p.json").read_text())
    names = ["sinks", "recall", "hmt", "rmt", "full"]
    assert [(row["row"], row["length"]) for row in figures["rows"]] == [(n, t) for t in (60, 100, 140) for n in names]
    for row in figures["rows"]:
        assert all(row[name] > 0 for name in MEASURED)
        assert row["seconds_to_first_token"] == pytest.approx(
            row["length"] / row["tokens_per_second"] + row["seconds_after_reading"]
        )
    held = {(row["row"], row["length"]): row["bytes_kept"] for row in figures["rows"]}
    assert held["full", 140] == 140 / 60 * held["full", 60]
    assert held["hmt", 140] < held["full", 60]
    assert figures["environment"]["torch"]
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    status, _, complaint = run_cli("report", tmp_path / "p.json", "--out", tmp_path / "report")
    assert status == 0, complaint
    page = (tmp_path / "report" / "report.html").read_text()
    for title in ("Speed", "Peak memory", "Time to the first token", "Time per token", "full"):
        assert title in page


def test_a_row_has_a_process_and_its_memory_to_itself(backbone_dir: Path, task_dir: Path) -> None:
    options = ProfileOptions(
        model_name=str(backbone_dir), task_name=str(task_dir), lengths="40", modes="recall", new_tokens=2,
        segment_length=20,
    )  # fmt: skip
    figures, _ = profile.run(options)
    assert figures["matmul_flops_per_second"] > 0
    (row,) = figures["rows"]
    assert row["tokens_per_second"] > 0
    assert row["peak_mb"] > 50


def test_a_process_that_is_ended_leaves_a_gap_and_not_nothing(
    backbone_dir: Path, task_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(work: Any, options: ProfileOptions, *rest: Any) -> Any:
        if work is profile.prepare:
            return Material([1, 2], 1e9)
        raise profile.BrokenProcessPool

    monkeypatch.setattr(profile, "_alone", ended)
    figures, said = profile.run(ProfileOptions(lengths="40,80", modes="hmt"))
    assert ["ended by the system at 40" in row["skipped"] for row in figures["rows"]] == [True, True]
    assert "ended by the system" in said


def rows_of(row: str, **seconds: float) -> list[dict[str, Any]]:
    """Figures of a row: seconds by length."""
    return [{"row": row, "length": int(n[1:]), "seconds": s} for n, s in seconds.items()]


def test_longer_texts_are_predicted_from_shorter_ones() -> None:
    assert predicted_seconds("hmt", 4000, []) is None
    assert predicted_seconds("hmt", 4000, rows_of("rmt", n1000=2.0)) is None
    assert predicted_seconds("hmt", 4000, rows_of("hmt", n1000=2.0)) == 8.0
    assert predicted_seconds("full", 4000, rows_of("full", n1000=2.0)) == 32.0
    measured = rows_of("full", n1000=1 + 0.5, n2000=2 + 2.0)  # n / 1000 + (n / 1000)^2 / 2
    assert predicted_seconds("full", 8000, measured) == pytest.approx(8 + 32)
    assert predicted_seconds("hmt", 8000, rows_of("hmt", n1000=3.0, n2000=4.0)) == pytest.approx(16)


@pytest.mark.usefixtures("in_this_process")
def test_what_would_take_too_long_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measure(options: ProfileOptions, row: str, length: int, material: Material) -> dict[str, Any]:
        asked.append((row, length))
        return {"row": row, "length": length, "seconds": 10.0 * length / 1000, "tokens_per_second": 100.0}

    monkeypatch.setattr(profile, "prepare", lambda options: Material([], 1e9))
    monkeypatch.setattr(profile, "measure", measure)
    figures, said = profile.run(ProfileOptions(lengths="1000,2000,8000,16000", modes="hmt,full", max_minutes=1.0))
    assert asked == [("hmt", 1000), ("full", 1000), ("hmt", 2000), ("full", 2000)]
    assert "about 1.3 min at 8,000, above --max_minutes 1" in said
    assert [row.get("skipped", "") for row in figures["rows"]][4:6] == [said.splitlines()[-1].split("  ")[-1]] * 2


@pytest.mark.usefixtures("in_this_process")
def test_a_backbone_whose_positions_end_leaves_longer_texts_out(tmp_path: Path, task_dir: Path) -> None:
    make_backbone("gpt2").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    options = ProfileOptions(
        model_name=str(tmp_path), task_name=str(task_dir), lengths="600", modes="hmt,full,sinks",
        new_tokens=2, segment_length=40,
    )  # fmt: skip
    material = speed.prepare(options)
    hmt, full, sinks = (profile._measured(options, row, 600, material, []) for row in options.rows)
    assert hmt["tokens_per_second"] > 0
    assert "skipped" in full  # learned positions end at 512
    assert "skipped" in sinks  # and cannot be moved
