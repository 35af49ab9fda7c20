"""A figure says where it was measured."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from hmt.metrics import environment as module
from hmt.metrics.environment import commit, environment

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
    monkeypatch.setattr(module, "HERE", installed)
    assert commit() is None
