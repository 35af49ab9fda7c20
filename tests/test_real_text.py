"""The bench of trials on real text trains what it says, scores the same targets, and compares them in pairs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import real_text


def test_two_trials_score_the_same_targets_and_are_compared(
    backbone_dir: Path, task_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept.jsonl"
    small = f'model_name="{backbone_dir}",dtype="float32",segment_length=40,lora_rank=2,mem_recall_hidden_dim=8'
    trials = (f"sensory:{small},num_sensory=8", f"hmt_near:{small},num_sensory=4,num_memory_tokens=2")
    options = real_text.Options(
        trials=trials, train=str(task_dir), score=(f"{task_dir}=validation", f"{task_dir}=test"), tokens=600,
        batch_size=2, lengths="200", target_tokens=60, spans_per_document=2, compile=False, kept=kept,
        checkpoints=tmp_path / "runs", compare=trials[0],
    )  # fmt: skip
    real_text.main(options)
    plain, near = (json.loads(line) for line in kept.read_text().splitlines())
    assert [row["row"] for row in plain["rows"]] == ["backbone", "native"]
    assert [row["row"] for row in near["rows"]] == ["hmt", "hmt_shuffled", "hmt_uniform", "native"]
    assert {row["tokens"] for row in plain["rows"] + near["rows"]} == {plain["rows"][0]["tokens"]}
    assert near["settings"]["recall_recency"] == 4.0
    assert min(plain["trained_tokens"], near["trained_tokens"]) >= 600
    assert "change %" in capsys.readouterr().out
    rows = real_text.compared(real_text.flat([plain, near]), trials[0])
    assert "change" not in rows[0]
    assert all(row["change"] == pytest.approx(100 * (row["ppl"] / rows[0]["ppl"] - 1)) for row in rows[1:])
