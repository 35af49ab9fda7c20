"""Rows of tables: .jsonl, .json, .parquet and .csv files, each row a dictionary."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TABLE_SUFFIXES = (".jsonl", ".parquet", ".json", ".csv")

Row = dict[str, Any]


def read_text(file: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        ValueError: If it is not UTF-8; says where.
    """
    data = file.read_bytes()
    try:
        return data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}") from error


def read_json(file: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: If it is none.
    """
    try:
        return json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error


def table_rows(file: Path, columns: tuple[str, ...] | None = None) -> Iterator[tuple[int, Row]]:
    """The rows of a table with their numbers, from 1; a line of .jsonl counts though it is blank.

    A .json file holds a list of rows, one row a key, which then is the row's `id`, a single row, or lines like those of
    .jsonl.

    Args:
        file: A file with one of `TABLE_SUFFIXES`.
        columns: Of a parquet file, read only these.

    Raises:
        ValueError: If the file cannot be read as such, or lacks a column; says where.
        ImportError: If a parquet file needs pyarrow.
    """
    if file.suffix == ".jsonl" or (file.suffix == ".json" and _holds_lines(file)):
        yield from _jsonl(file)
    elif file.suffix == ".parquet":
        yield from _parquet(file, columns)
    elif file.suffix == ".csv":
        # Spreadsheets put a byte order mark before the first column.
        text = read_text(file).removeprefix("\ufeff")
        yield from enumerate(csv.DictReader(io.StringIO(text, newline="")), start=1)
    else:
        held = read_json(file)
        if isinstance(held, dict) and all(isinstance(row, dict) for row in held.values()):
            held = [{"id": key, **row} for key, row in held.items()]
        for number, row in enumerate(held if isinstance(held, list) else [held], start=1):
            yield number, _checked(file, f"row {number}", row)


def _holds_lines(file: Path) -> bool:
    """Whether the first line of a file is a row of its own."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        first, second = lines.readline(), lines.readline()
    return first.rstrip().startswith("{") and first.rstrip().endswith("}") and second.startswith("{")


def _jsonl(file: Path) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}, line {number}, is not JSON: {error}") from error
        yield number, _checked(file, f"line {number}", row)


def _checked(file: Path, place: str, row: Any) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{file}, {place}, must be a row of named columns, got {type(row).__name__}")
    return row


def _parquet(file: Path, columns: tuple[str, ...] | None) -> Iterator[tuple[int, Row]]:
    try:
        import pyarrow
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError("reading .parquet needs pyarrow, the extra data: pip install pyarrow") from error
    try:
        with pq.ParquetFile(file) as table:
            if lacking := set(columns or ()) - set(table.schema_arrow.names):
                raise ValueError(missing_column(str(file), sorted(lacking)[0], table.schema_arrow.names))
            number = 0
            for batch in table.iter_batches(columns=None if columns is None else list(columns)):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{file} is not a parquet file: {error}") from error


def missing_column(where: str, column: str, there: list[str]) -> str:
    """The complaint that a table has no such text column."""
    return f"{where} has no text column {column!r}; it has {', '.join(there)}; name one with --text_column"
