"""Documents of a split, from a local directory or from the standard library of the running Python.

A directory holds a split as a folder of its name, or as files whose name says it (`train.txt`, `validation.jsonl`,
`wiki.test.tokens`): .txt, .tokens and .raw files are a document each, .jsonl and .parquet files hold one a row.
"""

from __future__ import annotations

import hashlib
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SPLITS = ("train", "validation", "test")
ALIASES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
TEXT_SUFFIXES = (".txt", ".tokens", ".raw")
TABLE_SUFFIXES = (".jsonl", ".parquet")

STDLIB_MIN_BYTES = 20_000


@dataclass(frozen=True)
class Document:
    """A text and where it came from."""

    name: str
    text: str


def local_documents(directory: Path, split: str, text_column: str = "text") -> Iterator[Document]:
    """The documents of one split of a directory, in order of file names.

    Raises:
        FileNotFoundError: If the directory has no such split; says what it has.
        ValueError: If a file is not UTF-8 or lacks the column; names both.
    """
    files = split_files(directory, split)
    if not files:
        found = [name for name in SPLITS if split_files(directory, name)]
        raise FileNotFoundError(
            f"{directory} has no {split} split: expected {split}/*.txt or {split}.txt, .jsonl or .parquet, "
            f"found {', '.join(found) or 'no split at all'}"
        )
    for file in files:
        if file.suffix == ".jsonl":
            yield from _jsonl(file, text_column)
        elif file.suffix == ".parquet":
            yield from _parquet(file, text_column)
        else:
            yield Document(str(file.relative_to(directory)), read_text(file))


def split_files(directory: Path, split: str) -> list[Path]:
    """Files of a split, sorted."""
    names = ALIASES[split]
    suffixes = TEXT_SUFFIXES + TABLE_SUFFIXES
    inside = [file for name in names for file in (directory / name).glob("**/*") if file.is_file()]
    beside = [
        file
        for file in directory.glob("*")
        if file.is_file() and any(part in names for part in file.name.replace("-", ".").split("."))
    ]
    return sorted(file for file in inside + beside if file.suffix in suffixes)


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


def stdlib_documents(split: str, root: Path | None = None) -> Iterator[Document]:
    """Long modules of the running Python's standard library; the split is a stable hash of the module's name.

    Args:
        split: A tenth of the modules each for validation and test, the others for training.
        root: Where to look instead.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.glob("**/*.py")):
        name = file.relative_to(root).as_posix()
        parts = name.split("/")
        if {"test", "tests", "site-packages", "dist-packages", "idle_test"} & set(parts):
            continue
        if file.stat().st_size > STDLIB_MIN_BYTES and _hash_split(name) == split:
            yield Document(name, read_text(file))


def _hash_split(name: str) -> str:
    tenth = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10
    return {0: "validation", 1: "test"}.get(tenth, "train")


def _jsonl(file: Path, column: str) -> Iterator[Document]:
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}, line {number}, is not JSON: {error}") from error
        if not isinstance(row, dict) or not isinstance(row.get(column), str):
            has = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise ValueError(
                f"{file}, line {number}, has no text column {column!r}; it has {has}; name one with --text_column"
            )
        yield Document(f"{file.name}:{number}", row[column])


def _parquet(file: Path, column: str) -> Iterator[Document]:
    try:
        import pyarrow
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError("reading .parquet needs pyarrow, the extra data: pip install pyarrow") from error
    try:
        with pq.ParquetFile(file) as table:
            columns = table.schema_arrow.names
            if column not in columns:
                raise ValueError(
                    f"{file} has no text column {column!r}; it has {', '.join(columns)}; name one with --text_column"
                )
            number = 0
            for batch in table.iter_batches(columns=[column]):
                for text in batch.column(0).to_pylist():
                    number += 1
                    if not isinstance(text, str | None):
                        raise ValueError(
                            f"{file}, row {number}: column {column!r} holds {type(text).__name__}, not text"
                        )
                    yield Document(f"{file.name}:{number}", text or "")
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{file} is not a parquet file: {error}") from error
