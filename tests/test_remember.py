"""`hmt remember`: a text read once is a file that generation goes on from."""

from __future__ import annotations

import io
import json
import logging
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hmt import HMTForCausalLM, MemoryState
from hmt.cli import remember
from hmt.pretrained import load_tokenizer
from hmt.text import encoding
from tests.conftest import make_backbone
from tests.model.test_equivalence import assert_same_state

FLAGS = (
    "--sensory", "reread", "--num_recalled_tokens", 0, "--segment_length", 20, "--num_sensory", 4,
    "--mem_recall_hidden_dim", 16, "--mem_recall_context", 5,
)  # fmt: skip
"""Settings with re-encoded sensory tokens and memory embeddings."""

ROLLING = ("--segment_length", 60, "--num_recalled_tokens", 30, "--mem_recall_context", 5)
"""Settings with a rolling cache and text recall, the default."""


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A text of many lines."""
    path = tmp_path / "book.txt"
    path.write_text("".join(f"Line {n} of the book.\n" for n in range(40)))
    return path


def expected_state(backbone_dir: Path, text: str, flags: tuple[Any, ...] = FLAGS) -> MemoryState:
    """The state of reading a text in one call."""
    torch.manual_seed(0)
    fields = {flag.removeprefix("--"): value for flag, value in zip(flags[::2], flags[1::2], strict=True)}
    model = HMTForCausalLM.from_backbone(backbone_dir, **fields).eval()
    return model.remember(load_tokenizer(str(backbone_dir))(text, return_tensors="pt").input_ids)


@pytest.mark.parametrize("flags", [FLAGS, ROLLING], ids=["reread", "cache"])
@pytest.mark.parametrize("part", [100_000, 50])
def test_a_book_becomes_a_file(
    part: int,
    flags: tuple[Any, ...],
    book: Path,
    backbone_dir: Path,
    tmp_path: Path,
    run_cli: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encoding, "PART_CHARACTERS", part)
    monkeypatch.setattr(encoding, "MARGIN_CHARACTERS", part // 2)
    out = tmp_path / "book.memory"
    status, said, complaint = run_cli(
        "remember", book, "--model_name", backbone_dir, *flags, "--out", out, "--json", tmp_path / "r.json"
    )
    assert status == 0, complaint
    assert "5 segments in" in said
    figures = json.loads((tmp_path / "r.json").read_text())
    assert figures["new_tokens"] == len(book.read_text())
    assert figures["file_bytes"] == out.stat().st_size
    assert figures["segments"] == 5
    assert_same_state(MemoryState.load(out), expected_state(backbone_dir, book.read_text(), flags))


@pytest.mark.parametrize("flags", [FLAGS, ROLLING], ids=["reread", "cache"])
def test_a_stream_is_appended_to_what_is_there(
    flags: tuple[Any, ...],
    book: Path,
    backbone_dir: Path,
    tmp_path: Path,
    run_cli: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "book.memory"
    halves = book.read_text()[:401], book.read_text()[401:]
    for half in halves:
        monkeypatch.setattr(sys, "stdin", io.StringIO(half))
        status, _, complaint = run_cli("remember", "-", "--model_name", backbone_dir, *flags, "--out", out, "--append")
        assert status == 0, complaint
    assert_same_state(MemoryState.load(out), expected_state(backbone_dir, book.read_text(), flags))


def test_an_interrupted_stream_keeps_all_that_came(
    book: Path, backbone_dir: Path, tmp_path: Path, run_cli: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    caplog.set_level(logging.INFO)

    class Interrupted(io.StringIO):
        def readline(self, *_: Any) -> str:
            if line := super().readline():
                return line
            signal.raise_signal(signal.SIGTERM)
            return "never read"

    monkeypatch.setattr(sys, "stdin", Interrupted(book.read_text()))
    monkeypatch.setattr(remember, "PART_CHARACTERS", 300)
    monkeypatch.setattr(remember, "SAVE_EVERY_SECONDS", 0)
    saves = []
    save = MemoryState.save
    monkeypatch.setattr(
        MemoryState, "save", lambda self, path, exact: saves.append(int(self.tokens_read)) or save(self, path)
    )
    out = tmp_path / "book.memory"
    status, _, complaint = run_cli("remember", "-", "--model_name", backbone_dir, *FLAGS, "--out", out)
    assert status == 0, complaint
    assert "interrupted" in caplog.text
    assert_same_state(MemoryState.load(out), expected_state(backbone_dir, book.read_text()))
    assert len(saves) == len(book.read_text()) // 300 + 2  # each part, the rest, and the end
    assert saves == sorted(saves)


def test_one_bad_byte_does_not_lose_a_stream(
    backbone_dir: Path, tmp_path: Path, run_cli: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    text = b"a line\n" * 30 + b"caf\xe9\n" + b"a line\n" * 30
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text), encoding="ascii", errors="surrogateescape"))
    out = tmp_path / "book.memory"
    status, _, complaint = run_cli("remember", "-", "--model_name", backbone_dir, *FLAGS, "--out", out)
    assert status == 0, complaint
    assert "UTF-8" in caplog.text
    assert int(MemoryState.load(out).tokens_read) == len(text.decode(errors="replace").encode())


def test_a_book_that_was_not_read_to_its_end_leaves_no_file(
    book: Path, backbone_dir: Path, tmp_path: Path, run_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(HMTForCausalLM, "remember", interrupted)
    out = tmp_path / "book.memory"
    status, _, complaint = run_cli("remember", book, "--model_name", backbone_dir, *FLAGS, "--out", out)
    assert (status, complaint) == (130, "hmt remember: interrupted\n")
    assert not out.exists()


def test_the_seed_of_sampling_makes_no_other_model(
    book: Path, backbone_dir: Path, tmp_path: Path, run_cli: Any
) -> None:
    model = ("--model_name", backbone_dir, *FLAGS)
    run_cli("remember", book, *model, "--out", tmp_path / "book.memory")
    status, _, complaint = run_cli(
        "generate", *model, "--memory", tmp_path / "book.memory", "--prompt", "a", "--do_sample", "--seed", 5
    )
    assert status == 0, complaint


def test_generation_goes_on_from_the_file(book: Path, backbone_dir: Path, tmp_path: Path, run_cli: Any) -> None:
    model = ("--model_name", backbone_dir, *FLAGS)
    run_cli("remember", book, *model, "--out", tmp_path / "book.memory")
    made = []
    for more in (("--memory", tmp_path / "book.memory", "--prompt", "Line"), ("--prompt", book.read_text() + "Line")):
        run_cli("generate", *model, *more, "--max_new_tokens", 12, "--json", tmp_path / "g.json")
        made.append(json.loads((tmp_path / "g.json").read_text())["text"])
    assert made[0] == made[1]


def test_an_answer_from_a_file_shows_the_line_that_the_prompt_asks_for(
    book: Path, backbone_dir: Path, tmp_path: Path, run_cli: Any
) -> None:
    model = ("--model_name", backbone_dir, *ROLLING[:-1], 1000)
    run_cli("remember", book, *model, "--out", tmp_path / "book.memory")
    status, said, complaint = run_cli(
        "generate", *model, "--memory", tmp_path / "book.memory", "--prompt", "Line 7 of", "--explain",
        "--max_new_tokens", 3, "--json", tmp_path / "g.json",
    )  # fmt: skip
    assert status == 0, complaint
    recalled = json.loads((tmp_path / "g.json").read_text())["recalled"]
    assert any("Line 7 of" in passage["text"] for passage in recalled)
    for passage in recalled:
        assert book.read_text()[passage["start"] : passage["start"] + passage["tokens"]] == passage["text"]
        assert all(line in said for line in passage["text"].strip().splitlines())


def test_a_memory_of_another_model_is_refused(book: Path, backbone_dir: Path, tmp_path: Path, run_cli: Any) -> None:
    make_backbone(seed=1).save_pretrained(tmp_path / "other")
    load_tokenizer(str(backbone_dir)).save_pretrained(tmp_path / "other")
    out = tmp_path / "book.memory"
    run_cli("remember", book, "--model_name", backbone_dir, *FLAGS, "--out", out)
    before = out.read_bytes()
    for command in (
        ("generate", "--memory", out, "--prompt", "a"),
        ("remember", book, "--append", "--out", out),
    ):
        status, _, complaint = run_cli(*command, "--model_name", tmp_path / "other", *FLAGS)
        assert status == 2
        assert "this memory was written by" in complaint
        assert complaint.count("\n") == 1
    assert out.read_bytes() == before


def test_what_is_kept_is_told_a_line_a_segment(book: Path, backbone_dir: Path, tmp_path: Path, run_cli: Any) -> None:
    status, said, complaint = run_cli(
        "remember", book, "--model_name", backbone_dir, *FLAGS, "--out", tmp_path / "book.memory", "--explain",
        "--json", tmp_path / "r.json",
    )  # fmt: skip
    assert status == 0, complaint
    state = MemoryState.load(tmp_path / "book.memory")
    kept = json.loads((tmp_path / "r.json").read_text())["kept"]
    assert [one["segment"] for one in kept] == state.bank.segments[0].tolist()
    assert [one["usage"] for one in kept] == pytest.approx(state.bank.usage[0].tolist())
    assert "".join(one["text"] for one in kept) in book.read_text()
    closing, *lines = said.splitlines()
    assert "5 segments in" in closing
    assert len(lines) == 5
    for line, one in zip(lines, kept, strict=True):
        assert line.split()[:4] == ["segment", str(one["segment"]), "usage", f"{one['usage']:.3f}"]
        assert " ".join(one["text"].split()) in line


@pytest.mark.parametrize(("policy", "scored"), [("fifo", 0), ("merge", 0), ("usage", 3), ("attention", 5)])
def test_what_a_policy_thinks_of_segments_is_told(
    policy: str, scored: int, book: Path, backbone_dir: Path, tmp_path: Path, run_cli: Any
) -> None:
    status, said, complaint = run_cli(
        "remember", book, "--model_name", backbone_dir, *FLAGS, "--out", tmp_path / "book.memory", "--explain",
        "--memory_policy", policy, "--retention_protected", 2, "--json", tmp_path / "r.json",
    )  # fmt: skip
    assert status == 0, complaint
    kept = json.loads((tmp_path / "r.json").read_text())["kept"]
    scores = [one["score"] for one in kept if one["score"] is not None]
    assert len(scores) == scored
    assert sum("  score " in line for line in said.splitlines()) == scored
    if policy == "usage":  # the newest two stay in any case
        assert scores == [one["usage"] for one in kept[:-2]]


@pytest.mark.parametrize(
    ("text", "message"), [(b"", "there is no text in"), (b"caf\xe9", "is not UTF-8 text"), (None, "No such file")]
)
def test_a_text_that_cannot_be_read_leaves_no_file(
    text: bytes | None, message: str, backbone_dir: Path, tmp_path: Path, run_cli: Any
) -> None:
    if text is not None:
        (tmp_path / "book.txt").write_bytes(text)
    status, _, complaint = run_cli(
        "remember", tmp_path / "book.txt", "--model_name", backbone_dir, *FLAGS, "--out", tmp_path / "book.memory"
    )
    assert status == 2
    assert message in complaint
    assert not (tmp_path / "book.memory").exists()
