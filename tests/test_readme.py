"""The README tells the truth: its commands parse, its files exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from hmt import cli
from hmt.cli.command import parse

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line.split("  #")[0].strip()
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("hmt ")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_flags_that_exist(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(cli, "checkpoint_settings", lambda name: {})  # of a checkpoint that an earlier line makes
    _, verb, *flags = shlex.split(command)
    assert parse(verb, flags) is not None


def test_every_file_it_names_exists() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_tree_is_the_tree() -> None:
    tree = README.split("src/hmt/\n")[1].split("```")[0]
    for folder in re.findall(r"^  (\w+)/ ", tree, flags=re.MULTILINE):
        assert (ROOT / "src/hmt" / folder).is_dir(), folder
    for file in re.findall(r"\b(\w+\.py)\b", tree):
        assert (ROOT / "src/hmt" / file).is_file(), file


def test_make_targets_it_names_exist() -> None:
    targets = re.findall(r"^make (\w+)", README, flags=re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert {"demo", "test"} <= set(targets)
    assert all(f"\n{target}:" in makefile for target in targets)
