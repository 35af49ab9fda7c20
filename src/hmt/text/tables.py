"""Rows of tables, each a dictionary: .jsonl, .json, .parquet and .csv files, and data sets of a hub."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hmt.files import kind_of, parse_json, read_text
from hmt.pretrained import first_line, hub_remedy

TABLE_SUFFIXES = (".jsonl", ".parquet", ".json", ".csv")

Row = dict[str, Any]

SHUFFLE_BUFFER = 10_000
"""Rows of a stream that are shuffled together."""

PARQUET_ROWS = 256
"""Rows of a parquet file that are held together; a row may be a whole book."""


def table_rows(file: Path, column: str | None = None) -> Iterator[tuple[int, Row]]:
    """Number the rows of a table from 1, blank lines of .jsonl included.

    A .json file holds a list of rows, one row a key, which then is the row's `id`, a single row, or lines like those of
    .jsonl.

    Args:
        file: A file with one of `TABLE_SUFFIXES`.
        column: The only column to read of a parquet file that has it.

    Raises:
        ValueError: If the file cannot be read as such; names it.
        ImportError: If a parquet file needs pyarrow.
    """
    kind = kind_of(file)
    if kind == ".parquet":
        yield from _parquet_rows(file, column)
        return
    text = read_text(file)
    if kind == ".jsonl" or (kind == ".json" and _holds_lines(text)):
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield number, _checked(file, number, parse_json(line, f"{file}, line {number},"))
    elif kind == ".csv":
        csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # texts are long
        try:
            yield from enumerate(csv.DictReader(io.StringIO(text, newline="")), start=1)
        except csv.Error as error:
            raise ValueError(f"{file} is not a CSV file: {error}") from error
    else:
        held = parse_json(text, str(file))
        if isinstance(held, dict) and all(isinstance(row, dict) for row in held.values()):
            held = [{"id": key, **row} for key, row in held.items()]
        for number, row in enumerate(held if isinstance(held, list) else [held], start=1):
            yield number, _checked(file, number, row)


def _holds_lines(text: str) -> bool:
    first, _, rest = text.partition("\n")
    return first.rstrip().startswith("{") and first.rstrip().endswith("}") and rest.startswith("{")


def _checked(file: Path, number: int, row: Any) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{file}, row {number}, must be a row of named columns, got {type(row).__name__}")
    return row


def _parquet_rows(file: Path, column: str | None) -> Iterator[tuple[int, Row]]:
    try:
        import pyarrow
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError("reading .parquet needs pyarrow, the extra data: pip install pyarrow") from error
    try:
        with pq.ParquetFile(file) as table:
            columns = [column] if column in table.schema_arrow.names else None
            batches = table.iter_batches(PARQUET_ROWS, columns=columns)
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file} is not a parquet file: {error}") from error


def text_of(row: Row, column: str, where: str) -> str:
    """The text in a column of a row, "" where it is null.

    Raises:
        ValueError: If there is no such column, or no text in it; names the place.
    """
    if column not in row:
        raise ValueError(f"{where} has no text column {column!r}; it has {', '.join(row)}; name one with --text_column")
    if not isinstance(row[column], str | None):
        raise ValueError(f"{where}: column {column!r} holds {type(row[column]).__name__}, not text")
    return row[column] or ""


def hub_rows(
    hub_id: str,
    split: str,
    *,
    subset: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    shuffle_seed: int | None = None,
    instead: str = "",
) -> Iterator[Row]:
    """Rows of one split of a data set of a hub.

    Args:
        hub_id: OWNER/NAME.
        split: One of the data set's own splits.
        subset: Configuration of the data set.
        revision: Branch or commit.
        streaming: Read over the network, row by row, instead of fetching everything first.
        shuffle_seed: Seed of the order of rows, where they are shuffled; a stream is shuffled within a buffer.
        instead: What to do without the hub, for the message.

    Raises:
        OSError: If it cannot be loaded; one line that says why.
        ImportError: If datasets is not installed.
    """
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise ImportError(
            f"reading {hub_id} from a hub needs datasets, the extra data: pip install datasets"
        ) from error
    settings: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        rows: Any = datasets.load_dataset(hub_id, subset, split=split, streaming=streaming, **settings)
        if shuffle_seed is not None:
            rows = rows.shuffle(shuffle_seed, **({"buffer_size": SHUFFLE_BUFFER} if streaming else {}))
        yield from rows
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise OSError(f"cannot load {hub_id} ({split}): {hub_remedy(error) or first_line(error)}{instead}") from error
