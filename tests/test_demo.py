"""`hmt demo`, the whole story in small: figures, picture and a checkpoint that loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from hmt import HMTForCausalLM


def test_the_demo_scores_trains_scores_and_draws(
    backbone_dir: Path, task_dir: Path, tmp_path: Path, run_cli: Any
) -> None:
    out = tmp_path / "report"
    status, said, complaint = run_cli(
        "demo", "--model_name", backbone_dir, "--task_name", task_dir, "--lengths", "400,800", "--training_step", 2,
        "--out", out,
    )  # fmt: skip
    assert status == 0, complaint
    assert f"report in {out}" in said
    figures = json.loads((out / "results.json").read_text())
    assert {(row["series"], row["row"]) for row in figures["rows"]} == {
        *(("untrained", row) for row in ("backbone", "rmt", "short_term", "hmt")),
        *(("trained", row) for row in ("rmt", "short_term", "hmt")),
    }
    assert {row["tokens"] for row in figures["rows"]} == {300}
    assert figures["training"]["steps"] > 0
    with Image.open(out / "perplexity.png") as picture:
        assert picture.width > 800
    assert "trained" in (out / "perplexity.csv").read_text()
    page = (out / "report.html").read_text()
    assert all(f'<figure id="{name}">' in page for name in ("perplexity", "speed", "loss"))
    assert HMTForCausalLM.from_pretrained(out / "checkpoint").config.segment_length == 256
