"""The converted model in the user's cache: whole or made again, made once by whoever needs it, or kept elsewhere."""

from __future__ import annotations

import errno
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hmt import pretrained
from hmt.pretrained import BUILT_INS, converted, load_backbone, load_tokenizer
from tests.conftest import byte_tokenizer, make_backbone

NAME = "smollm2-135m"

TWICE = """
import sys, time
import hmt_cli
from pathlib import Path
from hmt import pretrained
def convert(name, gguf, folder):
    print("converting", flush=True)
    time.sleep(0.5)
    (folder / "config.json").write_text("{}")
pretrained._convert = convert
print(pretrained.converted("smollm2-135m", Path(sys.argv[1])).name)
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Conversions that have taken place, of a tiny model instead of the real one."""
    done: list[Path] = []

    def convert(name: str, gguf: Path, folder: Path) -> None:
        done.append(folder)
        make_backbone().save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)

    monkeypatch.setenv("HMT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pretrained, "_convert", convert)
    monkeypatch.setattr(pretrained, "DIGESTED_BYTES", 50_000)
    return done


def test_a_damaged_conversion_is_made_again(made: list[Path]) -> None:
    gguf = BUILT_INS[NAME].gguf_path()
    assert gguf is not None
    folder = converted(NAME, gguf)
    assert converted(NAME, gguf) == folder
    assert len(made) == 1
    for name, content in (
        ("model.safetensors", (folder / "model.safetensors").read_bytes()[:-100]),
        ("config.json", b"{}"),
        ("tokenizer.json", None),
        ("contents.json", None),
        ("contents.json", b"[]"),
    ):
        before = len(made)
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
        load_backbone(NAME)
        load_tokenizer(NAME)
        assert len(made) == before + 1, name
    for file in folder.iterdir():
        file.unlink()
    load_backbone(NAME)
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]


def test_two_first_uses_at_once_convert_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HMT_CACHE", str(tmp_path / "cache"))
    command = [sys.executable, "-c", TWICE, __file__]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = "".join(run.communicate()[0] for run in runs)
    assert [run.returncode for run in runs] == [0, 0]
    assert said.count("converting") == 1
    assert said.count(NAME) == 2


def test_a_cache_that_cannot_be_written_is_named(
    made: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: Any
) -> None:
    @contextmanager
    def refused(path: Path, wait: bool) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))
        yield

    monkeypatch.setattr(pretrained, "locked_directory", refused)
    status, _, complaint = run_cli("generate", "--prompt", "x")
    assert (status, complaint.count("\n")) == (2, 1)
    assert "HMT_CACHE" in complaint
    assert "HF_HOME" not in complaint
