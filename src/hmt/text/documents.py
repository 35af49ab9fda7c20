"""Documents of a split, from a local directory, a file, or the standard library of the running Python.

A directory holds a split as a folder of its name, or as files whose name says it (`train.txt`, `validation.jsonl`,
`wiki.test.tokens`): .txt, .tokens and .raw files are a document each, tables hold one a row. Suffixes may be in
capitals, and all but .parquet compressed (`train.txt.gz`).
"""

from __future__ import annotations

import hashlib
import os
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hmt.files import is_stream, is_visible, kind_of, read_text, text_pieces
from hmt.text.tables import TABLE_SUFFIXES, table_rows, text_of

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
