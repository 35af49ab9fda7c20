"""Questions are read with their answers apart from their context and prompt."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hmt.text.tasks import load_documents, load_questions


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


def test_questions_in_a_parquet_file_or_by_the_path_of_a_file(tmp_path: Path) -> None:
    rows = [{"context": "The sky.", "prompt": "?", "answers": ["blue"], "source": "s", "supporting": [[0, 3]]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "questions.test.parquet")
    (tmp_path / "asked.jsonl").write_text(json.dumps(rows[0]))
    (by_split,) = load_questions(str(tmp_path), "test")
    (by_path,) = load_questions(str(tmp_path / "asked.jsonl"), "train")
    assert by_split.supporting == by_path.supporting == ((0, 3),)
    assert by_split.answers == by_path.answers == ("blue",)
    assert [document.text for document in load_documents(str(tmp_path), "test")] == ["The sky."]
    (tmp_path / "test.txt").write_text("A text beside.")
    assert [document.text for document in load_documents(str(tmp_path), "test")] == ["A text beside."]


def test_questions_about_one_context_have_one_source(tmp_path: Path) -> None:
    rows = [{"context": text, "prompt": "?", "answers": "x"} for text in ("a", "b", "a")]
    (tmp_path / "questions.test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first, second, third = (question.source for question in load_questions(str(tmp_path), "test"))
    assert first == third != second


def test_a_row_without_an_answer_is_named(tmp_path: Path) -> None:
    (tmp_path / "questions.test.jsonl").write_text('{"context": "a", "prompt": "b"}')
    with pytest.raises(ValueError, match=r"questions\.test\.jsonl, line 1"):
        load_questions(str(tmp_path), "test")


@pytest.mark.parametrize("answers", [[], "", [" "]])
def test_a_question_with_no_text_as_its_answer_is_named(answers: object, tmp_path: Path) -> None:
    rows = [{"context": "a", "prompt": "b", "answers": found} for found in ("x", answers)]
    file = tmp_path / "questions.test.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=f"{re.escape(str(file))}, line 2"):
        load_questions(str(tmp_path), "test")


def test_an_answer_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "questions.test.jsonl").write_text('{"context": "a", "prompt": "b", "answers": [7]}')
    with pytest.raises(ValueError, match="line 1"):
        load_questions(str(tmp_path), "test")
