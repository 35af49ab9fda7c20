"""Tables are read row by row, in each of their formats."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hmt.text.tables import hub_rows, table_rows

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
