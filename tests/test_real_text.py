"""The bench of trials on real text trains what it says, scores the same targets, and compares them in pairs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import real_text


def test_trials_score_the_same_targets_and_are_compared(
    backbone_dir: Path, task_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept.jsonl"
    small = f'model_name="{backbone_dir}",dtype="float32",segment_length=40,lora_rank=2,mem_recall_hidden_dim=8'
    trials = (f"sensory:{small},num_sensory=8", f"hmt:{small},num_sensory=4,num_memory_tokens=2",
              f"cache:{small},num_sinks=2")  # fmt: skip
    options = real_text.Options(
        trials=trials, train=str(task_dir), score=(f"{task_dir}=validation", f"{task_dir}=test"), tokens=600,
        batch_size=2, lengths="200", target_tokens=60, spans_per_document=2, compile=False, kept=kept,
        checkpoints=tmp_path / "runs", compare=trials[0],
    )  # fmt: skip
    real_text.main(options)
    plain, memory, cache = (json.loads(line) for line in kept.read_text().splitlines())
    assert [row["row"] for row in plain["rows"]] == ["backbone", "full"]
    assert [row["row"] for row in memory["rows"]] == ["hmt", "hmt_shuffled", "hmt_uniform", "full"]
    assert [row["row"] for row in cache["rows"]] == ["sinks", "full"]
    assert {row["tokens"] for row in plain["rows"] + memory["rows"] + cache["rows"]} == {plain["rows"][0]["tokens"]}
    assert memory["settings"]["recall_query"] == "previous"
    assert min(trial["trained_tokens"] for trial in (plain, memory, cache)) >= 600
    assert "change %" in capsys.readouterr().out
    rows = real_text.compared(real_text.flat([plain, memory, cache]), trials[0])
    assert "change" not in rows[0]
    assert all(row["change"] == pytest.approx(100 * (row["ppl"] / rows[0]["ppl"] - 1)) for row in rows[1:])
