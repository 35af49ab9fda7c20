"""Rows of tables, and documents of a split from a directory, a file, or Python's standard library.

A directory holds a split as a folder of its name, or as files whose name says it (`train.txt`, `validation.jsonl`,
`wiki.test.tokens`): .txt, .tokens and .raw files are a document each, tables hold one a row. Suffixes may be in
capitals, and all but .parquet compressed (`train.txt.gz`).
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmt.files import is_stream, is_visible, kind_of, parse_json, read_text, text_pieces
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


SPLITS = ("train", "validation", "test")
ALIASES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
TEXT_SUFFIXES = (".txt", ".tokens", ".raw")
SUFFIXES = TEXT_SUFFIXES + TABLE_SUFFIXES

QUESTIONS_PREFIX = "questions."
"""Beginning of the names of tables that hold questions, not documents."""

STDLIB_MIN_BYTES = 20_000
OTHER_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
"""Folders beside the standard library's own modules."""


@dataclass(frozen=True)
class Document:
    """A text with a name.

    Attributes:
        name: Name of the document.
        content: The text, or the file that holds it.
    """

    name: str
    content: str | Path

    @property
    def text(self) -> str:
        """The whole text.

        Raises:
            OSError: If its file cannot be read.
            ValueError: If its file is not UTF-8.
        """
        return self.content if isinstance(self.content, str) else read_text(self.content)

    def pieces(self) -> Iterator[str]:
        """The text in pieces, which need not be held together; raises as `text` does."""
        return iter([self.content]) if isinstance(self.content, str) else text_pieces(self.content)

    @property
    def is_blank(self) -> bool:
        """True if the text is empty or white space."""
        return not any(piece.strip() for piece in self.pieces())


def file_documents(file: Path, text_column: str = "text", name: str | None = None) -> Iterator[Document]:
    """The document of a text file, or one for each row of a table.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file is not UTF-8 or lacks the column, or is of no known kind; names it.
    """
    name, kind = name or file.name, kind_of(file)
    if kind in TEXT_SUFFIXES:
        yield Document(name, read_text(file) if is_stream(file) else file)
    elif kind in TABLE_SUFFIXES:
        word = "line" if kind == ".jsonl" else "row"
        for number, row in table_rows(file, text_column):
            yield Document(f"{name}:{number}", text_of(row, text_column, f"{file}, {word} {number},"))
    else:
        raise ValueError(f"{file} is no text: expected {', '.join(SUFFIXES)}")


def split_files(directory: Path, split: str | None, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """Files of a split in order of their names, or all files; hidden ones and hidden folders are left out.

    Args:
        directory: Folder of the files.
        split: "train", "validation" or "test"; None for all files, whatever their names.
        suffixes: Kinds of files.
    """
    if split is None:
        files = list(directory.rglob("*"))
    else:
        names = ALIASES[split]
        files = [file for name in names for file in (directory / name).rglob("*")]
        files += [file for file in directory.glob("*") if not set(names).isdisjoint(re.split("[._-]", file.name))]
    return sorted(f for f in files if kind_of(f) in suffixes and is_visible(f, directory) and not f.is_dir())


def stdlib_documents(split: str) -> Iterator[Document]:
    """Long modules of the running Python's standard library; a hash of the module's name decides on the split."""
    root = Path(sysconfig.get_path("stdlib"))
    files = list[Path]()
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in OTHER_FOLDERS]
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    for file in sorted(files):
        name = file.relative_to(root).as_posix()
        if hash_split(name) == split and file.stat().st_size > STDLIB_MIN_BYTES:
            yield Document(name, file)


def hash_split(name: str) -> str:
    """The split of a document whose source has none: a stable hash of its name, a tenth each to validation and test."""
    tenth = int(hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest(), 16) % 10
    return {0: "validation", 1: "test"}.get(tenth, "train")


def fingerprint(text: str) -> str:
    """A short name for a text that has none of its own; equal texts have the same."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]
