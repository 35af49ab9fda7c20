"""Documents of a split, from a local directory, a file, or the standard library of the running Python.

A directory holds a split as a folder of its name, or as files whose name says it (`train.txt`, `validation.jsonl`,
`wiki.test.tokens`): .txt, .tokens and .raw files are a document each, .jsonl and .parquet files hold one a row.
Suffixes may be in capitals, and all but .parquet compressed (`train.txt.gz`).
"""

from __future__ import annotations

import hashlib
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hmt.files import is_visible, kind_of, read_text, text_pieces
from hmt.text.tables import missing_column, table_rows

SPLITS = ("train", "validation", "test")
ALIASES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
TEXT_SUFFIXES = (".txt", ".tokens", ".raw")
ROW_SUFFIXES = (".jsonl", ".parquet")

QUESTIONS_PREFIX = "questions."
"""Tables of a directory whose name begins so hold questions, not documents."""

STDLIB_MIN_BYTES = 20_000


@dataclass(frozen=True)
class Document:
    """A text and where it came from.

    Attributes:
        name: Where it came from.
        content: The text, or the file that holds it.
    """

    name: str
    content: str | Path

    @property
    def text(self) -> str:
        """All of it.

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
        """Whether there is nothing to read."""
        return not any(piece.strip() for piece in self.pieces())


def local_documents(directory: Path, split: str, text_column: str = "text") -> Iterator[Document]:
    """The documents of one split of a directory, in order of file names.

    Raises:
        FileNotFoundError: If the directory has no such split; says what it has.
        ValueError: If a file is not UTF-8 or lacks the column; names both.
    """
    files = [file for file in split_files(directory, split) if not file.name.startswith(QUESTIONS_PREFIX)]
    if not files:
        found = [name for name in SPLITS if split_files(directory, name)]
        raise FileNotFoundError(
            f"{directory} has no {split} split: expected {split}/*.txt or {split}.txt, .jsonl or .parquet, "
            f"found {', '.join(found) or 'no split at all'}"
        )
    for file in files:
        name = str(file.relative_to(directory)) if kind_of(file) in TEXT_SUFFIXES else file.name
        yield from file_documents(file, text_column, name)


def file_documents(file: Path, text_column: str = "text", name: str | None = None) -> Iterator[Document]:
    """The documents of a file: one, or one a row.

    Raises:
        ValueError: If the file is not UTF-8 or lacks the column, or is of no known kind; names it.
    """
    name = name or file.name
    kind = kind_of(file)
    if kind in TEXT_SUFFIXES:
        yield Document(name, file)
        return
    if kind not in ROW_SUFFIXES:
        raise ValueError(f"{file} is no text: expected {', '.join(TEXT_SUFFIXES + ROW_SUFFIXES)}")
    word = "line" if kind == ".jsonl" else "row"
    for number, row in table_rows(file, (text_column,)):
        text = row.get(text_column, 0)
        if text_column not in row:
            raise ValueError(missing_column(f"{file}, {word} {number},", text_column, list(row)))
        if not isinstance(text, str | None):
            raise ValueError(f"{file}, {word} {number}: column {text_column!r} holds {type(text).__name__}, not text")
        yield Document(f"{name}:{number}", text or "")


def split_files(
    directory: Path, split: str, suffixes: tuple[str, ...] = TEXT_SUFFIXES + ROW_SUFFIXES, between: str = ".-"
) -> list[Path]:
    """Files of a split, sorted; hidden ones, and those in hidden folders, are left out.

    Args:
        directory: Where to look.
        split: "train", "validation" or "test".
        suffixes: Kinds of files.
        between: What separates the words of a file's name.
    """
    names = ALIASES[split]
    inside = [file for name in names for file in (directory / name).glob("**/*") if file.is_file()]
    beside = [
        file
        for file in directory.glob("*")
        if file.is_file() and any(part in names for part in re.split(f"[{re.escape(between)}]", file.name))
    ]
    return sorted(file for file in inside + beside if kind_of(file) in suffixes and is_visible(file, directory))


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
        if file.stat().st_size > STDLIB_MIN_BYTES and hash_split(name) == split:
            yield Document(name, file)


def hash_split(name: str) -> str:
    """The split of a document whose source has none: a stable hash of its name, a tenth each to validation and test."""
    tenth = int(hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest(), 16) % 10
    return {0: "validation", 1: "test"}.get(tenth, "train")


def fingerprint(text: str) -> str:
    """A short name for a text that has none of its own; equal texts have the same."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]
