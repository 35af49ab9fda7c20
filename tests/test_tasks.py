"""`hmt tasks` answers at once: what there is, where it is read from, and what one looks like."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hmt.text.tasks import TASKS


def test_the_list_needs_no_torch_and_names_every_task(tmp_path: Path) -> None:
    code = (
        "import sys, hmt_cli\n"
        "from hmt.cli.command import run\n"
        "status = run(['tasks']) or run(['tasks', '--task_name', 'needle', '--context_lengths', '512'])\n"
        "heavy = {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "sys.exit(status)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, task in TASKS.items():
        line = next(line for line in done.stdout.splitlines() if line.startswith(f"{name} "))
        assert task.licence in line
    assert "needle test: 50 questions about 50 documents" in done.stdout


def test_a_copy_is_shown_where_it_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: Any) -> None:
    monkeypatch.setenv("HMT_HUB_MAP", "")
    status, said, _ = run_cli("tasks", "--hub_map", f"Salesforce/wikitext={tmp_path}", "--json", tmp_path / "t.json")
    assert status == 0
    (line,) = [line for line in said.splitlines() if line.startswith("wikitext ") and "CC BY" in line]
    assert str(tmp_path) in line
    tasks = {row["name"]: row for row in json.loads((tmp_path / "t.json").read_text())["tasks"]}
    assert tasks["wikitext"]["from"] == str(tmp_path)
    assert tasks["pg19"]["from"] == "hub: emozilla/pg19"
    assert tasks["qmsum"]["from"] == "give --hub_map qmsum=DIR"
    assert tasks["needle"]["from"] == "made here"


def test_one_task_is_shown_with_its_first_sample(task_dir: Path, tmp_path: Path, run_cli: Any) -> None:
    status, said, _ = run_cli("tasks", "--task_name", task_dir, "--split", "train")
    assert status == 0
    assert f"{task_dir} train: 1 documents, " in said
    assert "train.txt: item 0 is stored in box 0." in said
    row = {"context": "The sky is blue.", "prompt": "\nColour?", "answers": ["blue"], "supporting": [[0, 16]]}
    (tmp_path / "asked.jsonl").write_text(json.dumps(row) + "\n")
    status, said, _ = run_cli("tasks", "--task_name", tmp_path / "asked.jsonl", "--json", tmp_path / "t.json")
    assert status == 0
    assert "1 questions about 1 documents, 16 characters of context" in said
    figures = json.loads((tmp_path / "t.json").read_text())
    assert (figures["first"]["answer"], figures["first"]["supporting"]) == ("blue", "The sky is blue.")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ("--task_name eda_qa", "eda_qa is on no hub: give a copy with --hub_map eda_qa=DIR (ORD-QA.jsonl"),
        ("--task_name needle --depths 2", "depths must be numbers from 0 to 1 with commas between them, got '2'"),
        ("--task_name needle --context_lengths ,", "context_lengths must be numbers of tokens"),
        ("--fuse_size 0", "fuse_size must be above 0"),
        ("--task_name babi --task_subset qa7", "task_subset of babi must be one of qa1"),
        ("--task_name babilong --task_subset 3k/qa2", "must be LENGTH/TASK, of 0k, 1k, 2k, 4k, 8k, 16k, 32k, 64k"),
        ("--task_name babilong --task_subset qa2", "512k, 1M and qa1 to qa20, as in 4k/qa1; got 'qa2'"),
    ],
)
def test_a_mistake_is_one_line(flags: str, complaint: str, run_cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HMT_HUB_MAP", "")
    status, said, told = run_cli("tasks", *flags.split())
    assert (status, said) == (2, "")
    assert complaint in told
    assert told.count("\n") == 1
