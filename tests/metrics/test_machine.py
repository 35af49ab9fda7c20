"""A figure says where it was measured; time and memory are those of the block."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
import torch
from torch.autograd.profiler import record_function

from hmt.metrics import machine
from hmt.metrics.machine import STATUS, Meter, PartTimes, commit, environment

ROOT = Path(__file__).parents[2]


def test_machine_and_versions_are_named() -> None:
    found = environment()
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["processor"]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_the_commit_is_that_of_the_program_wherever_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    monkeypatch.chdir(tmp_path)
    assert (commit() or "").rstrip("+") == head.stdout.strip()


def test_a_program_that_is_installed_below_another_repository_has_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    installed = tmp_path / "environment.py"
    installed.touch()
    monkeypatch.setattr(machine, "HERE", installed)
    assert commit() is None


def test_marked_stretches_are_told_apart_and_the_first_block_only_warms_up() -> None:
    times = PartTimes(most=2)
    assert str(times) == "nothing was measured"
    for seconds in (0.5, 0.02, 0.04, 0.5):
        with times.measure():
            for part in ("read", "head"):
                with record_function(f"hmt.{part}"):
                    time.sleep(seconds / (1 if part == "read" else 2))
            with record_function("hmt.something else"):
                time.sleep(0.01)
    found = times.result()
    assert found["measured"] == 2
    assert found["read_seconds"] == pytest.approx(0.03, rel=0.5)
    assert found["head_seconds"] < found["read_seconds"]
    assert set(found) == {"measured", "read_seconds", "head_seconds"}
    assert str(times).startswith("read ")


@pytest.mark.skipif(not STATUS.exists(), reason="the system does not report peak memory")
def test_the_meter_sees_what_a_block_takes() -> None:
    with Meter(torch.device("cpu")) as small:
        pass
    with Meter(torch.device("cpu")) as large:
        torch.ones(50_000_000).sum()
    assert large.seconds > small.seconds >= 0
    assert large.peak_mb - small.peak_mb > 150
