"""Questions are read with their answers apart from their context and prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hmt.text.tasks import load_questions


def test_questions_of_a_directory_are_read_by_split(tmp_path: Path) -> None:
    row = {
        "context": "The sky is blue.",
        "prompt": "\nColour of the sky?",
        "answers": ["blue"],
        "supporting": [[0, 16]],
    }
    (tmp_path / "questions.test.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "answers": "red"}))
    first, second = load_questions(str(tmp_path), "test")
    assert (first.context, first.answers, first.supporting) == (row["context"], ("blue",), ((0, 16),))
    assert second.answers == ("red",)
    assert not load_questions(str(tmp_path), "train")


def test_a_row_without_an_answer_is_named(tmp_path: Path) -> None:
    (tmp_path / "questions.test.jsonl").write_text('{"context": "a", "prompt": "b"}')
    with pytest.raises(ValueError, match="line 1, is no question"):
        load_questions(str(tmp_path), "test")
