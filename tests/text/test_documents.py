"""Documents of local directories and of the standard library."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hmt.text.documents import stdlib_documents
from hmt.text.tasks import load_documents


def texts(folder: Path, split: str, column: str = "text") -> list[str]:
    """Texts of a split."""
    return [document.text for document in load_documents(str(folder), split, text_column=column)]


def test_each_text_file_of_a_folder_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    for name in ("b", "a"):
        (tmp_path / "test" / f"{name}.txt").write_text(f"{name}\r\n\nend")
    assert texts(tmp_path, "test") == ["a\n\nend", "b\n\nend"]


@pytest.mark.parametrize("name", ["valid.txt", "validation.txt", "dev.txt", "wiki.valid.tokens", "wiki.valid.raw"])
def test_split_names_are_found_in_file_names(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("one document\n\nwith lines")
    (tmp_path / "train.txt").write_text("another")
    assert texts(tmp_path, "validation") == ["one document\n\nwith lines"]


def test_tables_hold_a_document_a_row(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a", "n": 1}\n\n{"text": "b\\u2028c"}\n')
    pq.write_table(pa.table({"body": ["x", "y"], "n": [1, 2]}), tmp_path / "test.parquet")
    assert texts(tmp_path, "train") == ["a", "b\u2028c"]
    assert texts(tmp_path, "test", "body") == ["x", "y"]


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"test\.txt .* byte 3"):
        texts(tmp_path, "test")
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n')
    with pytest.raises(ValueError, match=r"train\.jsonl, line 2,.* body.*--text_column"):
        texts(tmp_path, "train")
    (tmp_path / "train.jsonl").write_text("{nonsense\n")
    (tmp_path / "numbers.jsonl").write_text('{"text": 7}')
    with pytest.raises(ValueError, match=r"numbers\.jsonl, line 1"):
        load_documents(str(tmp_path / "numbers.jsonl"), "test")
    with pytest.raises(ValueError, match=r"train\.jsonl, line 1"):
        texts(tmp_path, "train")
    (tmp_path / "valid.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match=r"valid\.parquet"):
        texts(tmp_path, "validation")
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "valid.parquet")
    with pytest.raises(ValueError, match=r"valid\.parquet.* body.*--text_column"):
        texts(tmp_path, "validation")


def test_a_missing_split_is_named_with_those_that_exist(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a")
    with pytest.raises(FileNotFoundError, match=r"test.* train"):
        texts(tmp_path, "test")


def test_the_standard_library_is_split_by_name_alone() -> None:
    splits = {split: {d.name for d in stdlib_documents(split)} for split in ("train", "validation", "test")}
    assert sum(len(names) for names in splits.values()) == len(set.union(*splits.values()))
    assert all(len(names) >= 3 for names in splits.values())
    assert len(splits["train"]) > len(splits["test"])
    assert all(len(d.text.encode()) > 19_000 for d in stdlib_documents("test"))
    assert not any("test" in name.split("/") for name in splits["train"])


def test_a_task_is_a_directory_or_a_name(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in ("a", " ", "b", "c")))
    assert [d.text for d in load_documents(str(tmp_path), "test", limit=2)] == ["a", "b"]
    with pytest.raises(FileNotFoundError, match="/no/such"):
        load_documents("/no/such", "test")
    (tmp_path / "notes.pdf").write_text("x")
    with pytest.raises(ValueError, match=r"notes\.pdf"):
        load_documents(str(tmp_path / "notes.pdf"), "test")
    (tmp_path / "test.jsonl").write_text('{"text": " "}\n')
    with pytest.raises(ValueError, match="test"):
        load_documents(str(tmp_path), "test")


def test_a_hub_task_without_a_hub_says_so_at_once() -> None:
    with pytest.raises(OSError, match="no-such-name/anywhere"):
        load_documents("no-such-name/anywhere", "test")
