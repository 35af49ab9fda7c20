"""Reading the files that users give: text, JSON and YAML, with or without a byte order mark, plain or gzip.

Each file is opened once, since a pipe cannot be rewound. Errors are `ValueError` or `OSError` and name the file.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import yaml

BLOCK_BYTES = 1 << 18
"""Bytes read at a time."""

MAX_SETTINGS_BYTES = 1 << 24
"""Largest JSON file of settings."""

MAX_YAML_BYTES = 1 << 18
"""Largest YAML file."""

BYTE_ORDER_MARK = "\ufeff"
GZIP_MAGIC = b"\x1f\x8b"


def kind_of(file: Path) -> str:
    """Suffix of a file in lower case, without that of gzip: ".txt" for BOOK.TXT.gz."""
    return Path(file.name.lower().removesuffix(".gz")).suffix


def is_visible(file: Path, folder: Path) -> bool:
    """True for a file that is not hidden and in no hidden folder below `folder`."""
    return not any(part.startswith(".") for part in file.relative_to(folder).parts)


def is_stream(path: Path) -> bool:
    """True for a pipe, a socket or a device, which gives its text only once."""
    return path.exists() and not path.is_file() and not path.is_dir()


def text_pieces(file: Path) -> Iterator[str]:
    r"""Read a UTF-8 file in pieces, with "\n" at the end of each line and without a byte order mark.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not UTF-8 (says where), or a damaged gzip file.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    before, held, begun = 0, "", False
    with file.open("rb") as raw:
        stream = cast(BinaryIO, gzip.open(raw)) if raw.peek(2)[:2] == GZIP_MAGIC else raw
        while True:
            try:
                block = stream.read(BLOCK_BYTES)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise ValueError(f"{file} is a damaged gzip file: {error}") from error
            unfinished = len(decoder.getstate()[0])  # bytes of a character that goes on in this block
            try:
                piece = held + decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                place = before - unfinished + error.start
                raise ValueError(
                    f"{file} is not UTF-8 text: byte {place} is 0x{error.object[error.start]:02x}"
                ) from error
            before += len(block)
            if piece and not begun:
                piece, begun = piece.removeprefix(BYTE_ORDER_MARK), True
            held = "\r" if block and piece.endswith("\r") else ""  # its "\n" may come with the next block
            piece = piece.removesuffix(held).replace("\r\n", "\n")
            if piece:
                yield piece
            if not block:
                return


def read_text(file: Path, max_bytes: int | None = None) -> str:
    """Read all of a text file.

    Args:
        file: Path of the file.
        max_bytes: Refuse a longer text.

    Raises:
        OSError: If it cannot be read.
        ValueError: As in `text_pieces`, or if it is too long.
    """
    pieces, size = [], 0
    for piece in text_pieces(file):
        size += len(piece)
        if max_bytes is not None and size > max_bytes:
            raise ValueError(f"{file} is larger than the {max_bytes:,} bytes that are read of such a file")
        pieces.append(piece)
    return "".join(pieces)


def parse_json(text: str, where: str) -> Any:
    """Parse a JSON text.

    Args:
        text: The text.
        where: File, and line if need be, for the error message.

    Raises:
        ValueError: If it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except ValueError as error:  # also for a number with too many digits
        raise ValueError(f"{where} is not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{where} is nested too deeply") from error


def read_json(file: Path, max_bytes: int | None = None) -> Any:
    """Read a JSON file; see `read_text` and `parse_json`."""
    return parse_json(read_text(file, max_bytes), str(file))


def read_settings(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds named settings.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it holds anything else; names it.
    """
    values = read_json(file, MAX_SETTINGS_BYTES)
    if not isinstance(values, dict):
        raise ValueError(f"{file} is damaged: expected named settings, got {type(values).__name__}")
    return values


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, a few of which can stand for more than any memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)


def read_yaml(file: Path) -> Any:
    """Read a YAML file.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not YAML, has aliases, or is nested too deeply or too large; names it.
    """
    try:
        return yaml.load(read_text(file, MAX_YAML_BYTES), _PlainLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ValueError(f"{file} is nested too deeply") from error
    except ValueError as error:  # impossible dates and numbers
        raise ValueError(str(error) if str(file) in str(error) else f"{file} is not YAML: {error}") from error
