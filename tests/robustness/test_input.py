"""What is read from files: opened once, whatever it is."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hmt import MemoryState
from hmt.training.testing import _prompt

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
    assert _prompt(str(pipe(b"hello"))) == "hello"
    assert _prompt("a prompt\0 " * 1000) == "a prompt\0 " * 1000


def test_a_memory_that_is_a_pipe_is_refused(pipe: Any, backbone_dir: Path, run_cli: Any) -> None:
    command = ("generate", "--prompt", "hello", "--model_name", backbone_dir, *FLAGS)
    status, _, complaint = run_cli(*command, "--memory", pipe(b"x" * 100))
    assert (status, complaint.count("\n")) == (2, 1)
