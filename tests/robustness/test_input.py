"""What is read from files: opened once, whatever it is, however it is named, marked or compressed."""

from __future__ import annotations

import gzip
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hmt import MemoryState
from hmt.files import read_json, read_text, read_yaml
from hmt.text.documents import table_rows
from hmt.text.tasks import load_documents
from hmt.training.testing import read_prompt

FLAGS = ("--segment_length", 20, "--num_sensory", 4, "--mem_recall_hidden_dim", 16, "--mem_recall_context", 5)


@pytest.fixture
def pipe(tmp_path: Path) -> Callable[[bytes], Path]:
    """A pipe by name that gives some bytes once."""

    def make(content: bytes) -> Path:
        path = tmp_path / f"pipe{len(list(tmp_path.glob('pipe*')))}"
        os.mkfifo(path)
        threading.Thread(target=path.write_bytes, args=(content,), daemon=True).start()
        return path

    return make


def test_a_pipe_is_read_like_a_file(pipe: Any, backbone_dir: Path, tmp_path: Path, run_cli: Any) -> None:
    for length in (6, 1000):
        out = tmp_path / "book.memory"
        text = pipe(b"x" * length)
        status, _, complaint = run_cli("remember", text, "--model_name", backbone_dir, *FLAGS, "--out", out)
        assert status == 0, complaint
        assert int(MemoryState.load(out).tokens_read) == length


def test_a_prompt_and_settings_come_from_pipes(pipe: Any, backbone_dir: Path, tmp_path: Path, run_cli: Any) -> None:
    figures = tmp_path / "figures.json"
    settings = pipe(f"model_name: {backbone_dir}\nmax_new_tokens: 3\nsegment_length: 80\n".encode())
    status, _, complaint = run_cli("generate", "--config", settings, "--prompt_file", pipe(b"hello"), "--json", figures)
    assert status == 0, complaint
    assert '"prompt_tokens": 5' in figures.read_text()


def test_a_prompt_of_the_published_program_comes_from_a_pipe(pipe: Any) -> None:
    assert read_prompt(str(pipe(b"hello"))) == "hello"
    assert read_prompt("a prompt\0 " * 1000) == "a prompt\0 " * 1000


def test_a_memory_that_is_a_pipe_is_refused(pipe: Any, backbone_dir: Path, run_cli: Any) -> None:
    command = ("generate", "--prompt", "hello", "--model_name", backbone_dir, *FLAGS)
    status, _, complaint = run_cli(*command, "--memory", pipe(b"x" * 100))
    assert (status, complaint.count("\n")) == (2, 1)


MARK = b"\xef\xbb\xbf"


def test_a_byte_order_mark_is_no_part_of_any_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for reader, content, expected in (
        (read_text, b"caf\xc3\xa9\r\n", "café\n"),
        (read_json, b'{"a": 1}', {"a": 1}),
        (read_yaml, b"a: 1", {"a": 1}),
    ):
        file.write_bytes(MARK + content)
        assert reader(file) == expected  # type: ignore[operator]
    for name, content in (("t.jsonl", b'{"a": "1"}\n{"a": "2"}'), ("t.json", b'[{"a": "1"}]'), ("t.csv", b"a\n1")):
        (tmp_path / name).write_bytes(MARK + content)
        assert next(table_rows(tmp_path / name)) == (1, {"a": "1"})


def test_suffixes_may_be_in_capitals_and_files_compressed(tmp_path: Path) -> None:
    files = {
        "train/A.TXT": b"one",
        "train/b.txt.gz": gzip.compress(MARK + b"two"),
        "train/c.JSONL.GZ": gzip.compress(b'{"text": "three"}'),
        "train/d.Txt.gz": b"four, not compressed",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    found = [document.text for document in load_documents(str(tmp_path), "train")]
    assert found == ["one", "two", "three", "four, not compressed"]
    assert load_documents(str(tmp_path / "train" / "b.txt.gz"), "train")[0].text == "two"


def test_hidden_files_and_folders_are_no_documents(tmp_path: Path) -> None:
    for name in ("train/a.txt", "train/._a.txt", "train/.git/b.txt", ".train.txt", ".hidden.train.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{no json")
    assert [document.name for document in load_documents(str(tmp_path), "train")] == ["train/a.txt"]
    shown = tmp_path / ".cache"  # a hidden folder that the user names himself
    (shown / "train").mkdir(parents=True)
    (shown / "train" / "a.txt").write_text("seen")
    assert load_documents(str(shown), "train")[0].text == "seen"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.txt", b"caf\xe9"),
        ("train.txt.gz", gzip.compress(b"text" * 100, mtime=0)[:-10]),
        ("train.txt.gz", b"\x1f\x8b of another kind"),
        ("train.jsonl", b'{"text": "a"}\n{"text": '),
        ("train.jsonl", b"[" * 20_000),
        ("train.jsonl", b'{"text": ' + b"9" * 5000 + b"}"),
        ("train.parquet", b"PAR1 is no table PAR1"),
        ("train.parquet", b""),
    ],
)
def test_a_damaged_file_is_named(name: str, content: bytes, tmp_path: Path, backbone_dir: Path, run_cli: Any) -> None:
    (tmp_path / name).write_bytes(content)
    command = ("train", "--task_name", tmp_path, "--model_name", backbone_dir, *FLAGS, "--save_ckpt", tmp_path / "out")
    status, _, complaint = run_cli(*command)
    assert (status, complaint.count("\n")) == (2, 1), complaint
    assert str(tmp_path / name) in complaint


def test_long_texts_of_a_csv_file_are_rows(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text\n" + "x" * 200_000)
    assert next(table_rows(tmp_path / "t.csv"))[1] == {"text": "x" * 200_000}


def test_a_task_comes_from_a_pipe_by_any_name(pipe: Any, backbone_dir: Path, tmp_path: Path, run_cli: Any) -> None:
    text = "item 1 is in box 3.\n" * 40
    figures = tmp_path / "figures.json"
    sizes = ("--segment_length", 80, "--lengths", 100, "--target_tokens", 20)
    command = ("evaluate", "--modes", "hmt", "--model_name", backbone_dir, *sizes)
    spans = []
    for name in (tmp_path / "text.txt", pipe(text.encode())):
        if not name.exists():
            name.write_text(text)
        status, _, complaint = run_cli(*command, "--task_name", name, "--json", figures)
        assert status == 0, complaint
        spans.append([span["end"] for span in json.loads(figures.read_text())["spans"]])
    assert spans[0] == spans[1] != []
    out = tmp_path / "ckpt"
    command = ("train", "--model_name", backbone_dir, *FLAGS, "--save_ckpt", out, "--training_step", 1)
    command += ("--stage_1_step", 0, "--batch_size", 1, "--bptt_depth", 2)
    status, _, complaint = run_cli(*command, "--task_name", pipe(text.encode()))
    assert status == 0, complaint


def test_a_folder_of_a_task_may_hold_pipes(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    os.mkfifo(tmp_path / "train" / "a.txt")
    (tmp_path / "train" / "b.txt").write_text("two")
    threading.Thread(target=(tmp_path / "train" / "a.txt").write_bytes, args=(b"one",), daemon=True).start()
    assert [document.text for document in load_documents(str(tmp_path), "train")] == ["one", "two"]
