"""What is written appears whole, where it was asked for, for its user alone, by one process at a time."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hmt import HMTForCausalLM, atomic
from hmt.atomic import atomic_directory, atomic_file, locked_directory, open_log
from hmt.pretrained import locate
from tests.conftest import make_model

FLAGS = ("--segment_length", 20, "--num_sensory", 4, "--mem_recall_hidden_dim", 16, "--mem_recall_context", 5)

KILLED = """
import os, sys
import hmt_cli
from pathlib import Path
from hmt import atomic
rename = Path.rename
def killed(self, target):
    if self.suffix == ".new":
        os._exit(9)
    return rename(self, target)
if sys.argv[2] == "plain":
    atomic._exchange = lambda one, other: False
    Path.rename = killed
else:
    atomic._flush = lambda file: os._exit(9)
with atomic.atomic_directory(Path(sys.argv[1])) as folder:
    (folder / "config.json").write_text('{"model_type": "hmt", "new": true}')
"""


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize("moment", ["plain", "flush"])
def test_a_writer_that_is_killed_leaves_a_checkpoint_for_every_reader(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ckpt"
    make_model().save_pretrained(path)
    assert python(KILLED, path, moment).returncode == 9
    assert path.is_dir() == (moment == "flush")
    assert HMTForCausalLM.from_pretrained(path).config.segment_length == 20
    with atomic_directory(path) as folder:
        (folder / "config.json").write_text("{}")
    assert [entry.name for entry in tmp_path.iterdir()] == ["ckpt"]


def test_a_directory_is_there_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ckpt"
    with atomic_directory(path) as folder:
        (folder / "config.json").write_text('{"model_type": "hmt"}')
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda *_: pytest.fail("the directory was away for a moment"))
    with atomic_directory(path) as folder:
        (folder / "two").write_text("2")
    assert [entry.name for entry in path.iterdir()] == ["two"]
    monkeypatch.setattr(Path, "rename", rename)
    (path / "config.json").write_text('{"model_type": "hmt"}')
    monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    with atomic_directory(path) as folder:
        (folder / "three").write_text("3")
    assert [entry.name for entry in path.iterdir()] == ["three"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["ckpt"]


def test_only_one_process_writes_a_checkpoint(tmp_path: Path, task_dir: Path, backbone_dir: Path, run_cli: Any) -> None:
    path = tmp_path / "ckpt"
    code = """
import sys, hmt_cli
from pathlib import Path
from hmt.atomic import locked_directory
with locked_directory(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""
    command = ("train", "--task_name", task_dir, "--model_name", backbone_dir, *FLAGS, "--save_ckpt", path)
    command += ("--training_step", 1, "--stage_1_step", 0, "--batch_size", 1, "--bptt_depth", 2)
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        status, _, complaint = run_cli(*command)
        assert (status, complaint.count("\n")) == (2, 1)
        assert str(path) in complaint
        other.kill()  # the system releases what it held
    status, _, complaint = run_cli(*command)
    assert status == 0, complaint
    with locked_directory(path), locked_directory(path):
        pass
    assert {entry.name for entry in tmp_path.iterdir()} == {"ckpt", "ckpt.run"}


def test_names_of_others_are_left_alone(tmp_path: Path) -> None:
    names = {"ckpt", "ckpt.v2", ".ckpt.old", ".ckpt.backup", ".ckpt.12345.old", f".ckpt.v2.{'0' * 16}.old"}
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / f".ckpt.{'0' * 16}.new").mkdir()
    with atomic_directory(tmp_path / "ckpt"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == names
    (tmp_path / "ckpt").rmdir()
    (tmp_path / f".ckpt.{'0' * 16}.old").mkdir()
    assert locate(str(tmp_path / "ckpt"), "model").source == str(tmp_path / "ckpt")


def test_a_device_or_a_pipe_is_written_to_and_never_replaced(tmp_path: Path, backbone_dir: Path, run_cli: Any) -> None:
    command = ("generate", "--prompt", "hello", "--max_new_tokens", 2, "--model_name", backbone_dir, *FLAGS)
    status, _, complaint = run_cli(*command, "--json", "/dev/full")
    assert status == 2
    assert complaint.splitlines()[-1].startswith("hmt generate: ")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)
    with atomic_file(Path("/dev/null")) as file:
        assert file == Path("/dev/null")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with atomic_file(pipe) as file:
        file.write_text("figures")
    assert os.read(reader, 100) == b"figures"
    assert stat.S_ISFIFO(os.stat(pipe).st_mode)
    os.close(reader)


def test_names_of_unfinished_files_cannot_be_told_and_links_are_not_followed(tmp_path: Path) -> None:
    path, precious = tmp_path / "a.json", tmp_path / "precious"
    precious.write_text("precious")
    names = set()
    for _ in range(2):
        with atomic_file(path) as file:
            names.add(file.name)
            file.write_text("new")
    assert len(names) == 2
    for name in ("train.log", "metrics.jsonl"):
        (tmp_path / name).symlink_to(precious)
        with pytest.raises(OSError, match=name):
            open_log(tmp_path / name)
    path.unlink()
    path.symlink_to(precious)
    with atomic_file(path) as file:
        file.write_text("new")
    assert (precious.read_text(), path.read_text(), path.is_symlink()) == ("precious", "new", False)


def test_files_with_the_users_text_are_for_him_alone(tmp_path: Path, backbone_dir: Path, run_cli: Any) -> None:
    text, memory, figures = tmp_path / "a.txt", tmp_path / "a.memory", tmp_path / "a.json"
    text.write_text("a secret " * 20)
    command = ("remember", text, "--model_name", backbone_dir, *FLAGS, "--out", memory, "--json", figures)
    before = os.umask(0)
    try:
        assert run_cli(*command, "--explain")[0] == 0
        os.close(open_log(tmp_path / "log"))
    finally:
        os.umask(before)
    for file in (memory, figures, tmp_path / "log"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


@pytest.mark.parametrize("arguments", [("tasks",), ("--help",), ("train", "--help")])
def test_a_full_standard_output_is_a_failure_and_one_line(arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        run = subprocess.run([sys.executable, "-m", "hmt", *arguments], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (run.returncode, run.stderr.count("\n")) == (2, 1), run.stderr
