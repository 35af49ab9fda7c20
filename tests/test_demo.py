"""`hmt demo` in small: a memory, five questions with and without it, a comparison, and a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hmt import MemoryState
from hmt.cli.demo import QUESTIONS, compare, standard_library
from hmt.pretrained import load_tokenizer
from tests.conftest import make_rolling, random_ids


def test_the_demo_remembers_asks_compares_and_draws(backbone_dir: Path, tmp_path: Path, run_cli: Any) -> None:
    out = tmp_path / "report"
    status, said, complaint = run_cli(
        "demo", "--model_name", backbone_dir, "--text_tokens", 900, "--lengths", "200,400", "--out", out
    )
    assert status == 0, complaint
    assert all(question.prompt in said for question in QUESTIONS)
    assert int(MemoryState.load(out / "stdlib.memory").tokens_read[0]) == 900
    figures = json.loads((out / "results.json").read_text())
    assert len(figures["questions"]) == len(QUESTIONS)
    assert {(row["row"], row["context_tokens"]) for row in figures["rows"]} == {
        *((row, length) for row in ("full attention", "sliding window", "hmt") for length in (200, 400)), ("hmt", 900),
    }  # fmt: skip
    with Image.open(out / "demo.png") as picture:
        assert picture.width > 800


def test_a_text_that_is_shorter_than_the_lengths_is_refused(backbone_dir: Path, tmp_path: Path, run_cli: Any) -> None:
    status, _, complaint = run_cli(
        "demo", "--model_name", backbone_dir, "--text_tokens", 100, "--out", tmp_path / "out"
    )
    assert status == 2
    assert "lengths" in complaint


def test_all_methods_agree_where_the_window_holds_the_text() -> None:
    model = make_rolling(segment_length=200, num_recalled_tokens=0)
    ppl = {row["row"]: row["ppl"] for row in compare(model, random_ids(1, 60), [60])}
    assert ppl["sliding window"] == pytest.approx(ppl["full attention"], rel=1e-4)
    assert ppl["hmt"] == pytest.approx(ppl["full attention"], rel=1e-4)


def test_the_text_holds_every_answer_far_back() -> None:
    tokenizer = load_tokenizer("smollm2-135m")
    ids = standard_library(tokenizer, 32_768)
    assert ids.shape == (1, 32_768)
    far = tokenizer.decode(ids[0, :-4096])
    assert all(question.answer in far for question in QUESTIONS)
