"""Files that users give: text, JSON and YAML, with a byte order mark or without, plain or compressed with gzip.

All of them are read here, so that each is opened once (a pipe cannot be rewound), and so that whatever is wrong with
one is a `ValueError` or an `OSError` that names it.
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
"""Read from a file at one time."""

MAX_SETTINGS_BYTES = 1 << 24
"""Size of the largest JSON file of settings that is read."""

MAX_YAML_BYTES = 1 << 18
"""Size of the largest YAML file that is read."""

BYTE_ORDER_MARK = "\ufeff"
GZIP_MAGIC = b"\x1f\x8b"


def kind_of(file: Path) -> str:
    """The suffix of a file in lower case, without that of gzip: ".txt" of BOOK.TXT.gz."""
    name = file.name.lower().removesuffix(".gz")
    return Path(name).suffix


def is_visible(file: Path, folder: Path) -> bool:
    """True for a file that is not hidden and in no hidden folder below `folder`."""
    return not any(part.startswith(".") for part in file.relative_to(folder).parts)


def text_pieces(file: Path) -> Iterator[str]:
    r"""The text of a UTF-8 file in pieces; a line ends with "\n", a byte order mark is no part of it.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not UTF-8 (says where), or not the gzip file that it begins as.
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
            kept = len(decoder.getstate()[0])  # bytes of an unfinished character
            try:
                piece = held + decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                place = before - kept + error.start
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
    """All of the text of `text_pieces`.

    Args:
        file: Where it is.
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
    """What a JSON text holds.

    Args:
        text: The text.
        where: File, and line if need be, for the complaint.

    Raises:
        ValueError: If it is none, or nested too deeply; names the place.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    except ValueError as error:  # a number with too many digits
        raise ValueError(f"{where} cannot be read as JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{where} is nested too deeply") from error


def read_json(file: Path, max_bytes: int | None = None) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is none, nested too deeply or too large; names it.
    """
    return parse_json(read_text(file, max_bytes), str(file))


def read_settings(file: Path) -> dict[str, Any]:
    """A JSON file that holds named settings.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it does not; names it.
    """
    values = read_json(file, MAX_SETTINGS_BYTES)
    if not isinstance(values, dict):
        raise ValueError(f"{file} is damaged: expected named settings, got {type(values).__name__}")
    return values


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, a few of which stand for more than any memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)


def read_yaml(file: Path) -> Any:
    """What a YAML file holds.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is none, has aliases, or is nested too deeply or too large; names it.
    """
    try:
        return yaml.load(read_text(file, MAX_YAML_BYTES), _PlainLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ValueError(f"{file} is nested too deeply") from error
