"""Rows of tables: .jsonl, .json, .parquet and .csv files, each row a dictionary."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hmt.files import kind_of, parse_json, read_text

TABLE_SUFFIXES = (".jsonl", ".parquet", ".json", ".csv")

Row = dict[str, Any]


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
    kind = kind_of(file)
    if kind == ".parquet":
        yield from _parquet(file, columns)
        return
    text = read_text(file)
    if kind == ".jsonl" or (kind == ".json" and _holds_lines(text)):
        yield from _jsonl(file, text)
    elif kind == ".csv":
        yield from _csv(file, text)
    else:
        held = parse_json(text, str(file))
        if isinstance(held, dict) and all(isinstance(row, dict) for row in held.values()):
            held = [{"id": key, **row} for key, row in held.items()]
        for number, row in enumerate(held if isinstance(held, list) else [held], start=1):
            yield number, _checked(file, f"row {number}", row)


def _holds_lines(text: str) -> bool:
    """Whether the first line of a text is a row of its own."""
    first, _, rest = text.partition("\n")
    return first.rstrip().startswith("{") and first.rstrip().endswith("}") and rest.startswith("{")


def _jsonl(file: Path, text: str) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, _checked(file, f"line {number}", parse_json(line, f"{file}, line {number},"))


def _csv(file: Path, text: str) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # texts are long
    try:
        yield from enumerate(csv.DictReader(io.StringIO(text, newline="")), start=1)
    except csv.Error as error:
        raise ValueError(f"{file} is not a CSV file: {error}") from error


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
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file} is not a parquet file: {error}") from error


def missing_column(where: str, column: str, there: list[str]) -> str:
    """The complaint that a table has no such text column."""
    return f"{where} has no text column {column!r}; it has {', '.join(there)}; name one with --text_column"
