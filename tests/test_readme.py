"""README and docs tell the truth: every command and every program in them runs, and every link leads somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hmt.cli.parser import parse

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "NOTES.md"]

BOOK = "".join(f"The captain of ship {number} is called Ada {number}.\n" for number in range(60))

SMALL: dict[str, str] = {
    "train": "--training_step 1 --stage_1_step 1 --segment_length 40 --num_sensory 4 --task_name {task}",
    "evaluate": "--lengths 80 --target_tokens 40 --max_new_tokens 2",
    "demo": "--text_tokens 800 --lengths 200,400",
    "generate": "--max_new_tokens 2",
}
"""Flags that make a command small; they come last and win."""

WITHOUT_MODEL = ("report", "tasks")
ELSEWHERE = {
    "accelerate": "tests/training/test_launchers.py",
    "ACCELERATE_USE_CPU=true": "tests/training/test_launchers.py",
    "chat": "tests/test_chat.py",
    "curl": "tests/serving",
    "make": "Makefile",
    "pip": "Makefile",
    "profile": "tests/test_profile.py",
    "python": "tests/harness",
    "serve": "tests/serving",
}
"""Commands that are only parsed here, and where they are run."""


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def commands(page: Path) -> Iterator[str]:
    """Yield the commands of a page in order; a continued line is one command, and so is one with a here-document."""
    for block in blocks(page, "bash"):
        yield from re.findall(r"(?:.*\\\n)*.*<<END\n(?:.*\n)*?END$|(?:.*\\\n)*.+", block, flags=re.MULTILINE)


def arguments(command: str, environment: dict[str, str]) -> list[str]:
    """Let a shell split and expand a command as it would for a user."""
    script = f"printf '%s\\0' {command}"
    found = subprocess.run(["bash", "-ec", script], env=environment, capture_output=True, text=True, check=True)
    return found.stdout.split("\0")[:-1]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a book in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text(BOOK)
    return tmp_path


SLOW = {"README": 10, "report": 10}
"""Pages whose commands take more than a few seconds, and about how many on 2 cores."""


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem in SLOW else [])
        for page in PAGES
        if blocks(page, "bash")
    ],
)
def test_every_command_runs(
    page: Path, desk: Path, backbone_dir: Path, task_dir: Path, run_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands of a page run one after the other, with a tiny model and tiny settings."""
    environment = dict(os.environ, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    for command in commands(page):
        program = shlex.split(command, comments=True)[0] if "<<" not in command else "cat"
        if program in ELSEWHERE:
            continue
        if program == "export":
            name, value = arguments(command.removeprefix("export "), environment)[0].split("=", 1)
            monkeypatch.setenv(name, value)
            environment[name] = value
        elif program == "hmt":
            _run_hmt(arguments(command, environment)[1:], backbone_dir, task_dir, run_cli)
        else:
            assert subprocess.run(["bash", "-ec", command], env=environment).returncode == 0, command


def _run_hmt(typed: list[str], backbone_dir: Path, task_dir: Path, run_cli: Any) -> None:
    verb, *flags = typed
    if "--load_from_ckpt" not in flags and verb not in WITHOUT_MODEL:
        flags += ["--model_name", str(backbone_dir)]
    if verb == "evaluate" and "--task_name" not in flags:
        flags += ["--task_name", str(task_dir)]
    flags += SMALL.get(verb, "").format(task=task_dir).split()
    if verb in ELSEWHERE:
        parse(verb, flags)
        return
    status, _, complaint = run_cli(verb, *flags)
    assert status == 0, f"hmt {shlex.join(typed)}: {complaint}"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_every_program_runs(page: Path, desk: Path, backbone_dir: Path) -> None:
    """Programs of a page run one after the other, with a tiny model."""
    for program in blocks(page, "python"):
        for name in ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m"):
            program = program.replace(f'"{name}"', repr(str(backbone_dir)))
        exec(compile(program, str(page), "exec"), {})


def test_links_lead_to_files() -> None:
    for page in LINKED:
        for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page in LINKED:
        for target in re.findall(r"(?:^|`)make (\w+)", page.read_text(), flags=re.MULTILINE):
            assert f"\n{target}:" in makefile, f"{page.name}: make {target}"
