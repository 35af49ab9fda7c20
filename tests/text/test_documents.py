"""Splits, files and rows of tables become documents."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hmt.text.documents import hub_rows, stdlib_documents, table_rows
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


ROWS = [{"a": "x", "b": "1"}, {"a": "y,\nz", "b": "2"}]


def test_each_format_gives_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "lines.json").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "t.json").write_text(json.dumps(ROWS, indent=1))
    (tmp_path / "t.csv").write_text('\ufeffa,b\r\nx,1\r\n"y,\nz",2\r\n', newline="")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "t.parquet")
    for file in tmp_path.iterdir():
        assert list(table_rows(file)) == [(1, ROWS[0]), (2, ROWS[1])], file


def test_keys_of_a_json_file_name_its_rows(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('{"12": {"a": 1},\n "13": {"a": 2}}')
    assert [row for _, row in table_rows(tmp_path / "t.json")] == [{"id": "12", "a": 1}, {"id": "13", "a": 2}]


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_a_json_file_of_one_row_is_one_row(tmp_path: Path, end: str) -> None:
    row = {"text": "said once", "meta": {"lines": 3}}
    (tmp_path / "t.json").write_text(json.dumps(row) + end)
    assert list(table_rows(tmp_path / "t.json")) == [(1, row)]


def test_what_is_no_row_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('["a"]')
    with pytest.raises(ValueError, match=r"t\.json, row 1"):
        list(table_rows(tmp_path / "t.json"))
    (tmp_path / "t.json").write_text("{")
    with pytest.raises(ValueError, match=r"t\.json"):
        list(table_rows(tmp_path / "t.json"))


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_a_damaged_page_of_a_parquet_file_names_the_file(compression: str, tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["a" * 1000]}), file, compression=compression)
    content = bytearray(file.read_bytes())
    content[4:30] = b"x" * 26
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"t\.parquet"):
        list(table_rows(file))


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_a_hub_come_in_order_or_in_that_of_the_seed(
    streaming: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_set = tmp_path / "data"  # datasets takes a directory in place of an id
    data_set.mkdir()
    pq.write_table(pa.table({"text": [str(n) for n in range(50)]}), data_set / "train-00000-of-00001.parquet")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def texts(**settings: int) -> list[str]:
        return [row["text"] for row in hub_rows(str(data_set), "train", streaming=streaming, **settings)]

    in_order, first, again = texts(), texts(shuffle_seed=1), texts(shuffle_seed=1)
    assert in_order == [str(n) for n in range(50)]
    assert in_order != first == again
    assert sorted(first) == sorted(in_order)
    if not streaming:
        with pytest.raises(OSError, match="; give a copy"):
            list(hub_rows(str(data_set), "test", instead="; give a copy"))
