"""Token ids of a text that is too long to hold, the same that the whole text has.

Where a text may be cut depends on its tokenizer. Here a cut is tried and checked: the tokens of what stands before and
after it together must end with the tokens of what stands after it alone. Then the tokens before the cut are final,
as long as no token depends on text that is further away than the part after the cut is long. That holds for every
tokenizer that splits at words first, with words of less than `MARGIN_CHARACTERS`; where no cut passes, more text is
taken.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BLOCK_BYTES = 1 << 18
"""Read from a file at one time."""

PART_CHARACTERS = 20_000
"""Text tokenised at one time."""

MARGIN_CHARACTERS = 2_000
"""Text after a cut that must be tokenised alike with and without what stands before it."""

CUTS = 24
"""Places tried before more text is taken."""

PLACE = re.compile(r"(?<=\S)(?=\s)|(?<=\s)(?=\S)")
"""Where words begin and end."""


def text_pieces(file: Path) -> Iterator[str]:
    r"""The text of a UTF-8 file, as `read_text` gives it (a line ends with "\n"), in pieces.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not UTF-8; says where.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    before, held = 0, ""
    with file.open("rb") as stream:
        while True:
            block = stream.read(BLOCK_BYTES)
            kept = len(decoder.getstate()[0])  # bytes of an unfinished character
            try:
                piece = held + decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                place = before - kept + error.start
                raise ValueError(
                    f"{file} is not UTF-8 text: byte {place} is 0x{error.object[error.start]:02x}"
                ) from error
            before += len(block)
            held = "\r" if block and piece.endswith("\r") else ""  # its "\n" may come with the next block
            piece = piece.removesuffix(held).replace("\r\n", "\n")
            if piece:
                yield piece
            if not block:
                return


def token_parts(pieces: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Token ids of the text that the pieces make up, with nothing added, a part at a time."""
    text, wanted = "", PART_CHARACTERS
    for piece in pieces:
        text += piece
        while len(text) >= wanted + MARGIN_CHARACTERS:
            part, rest = text[: wanted + MARGIN_CHARACTERS], text[wanted + MARGIN_CHARACTERS :]
            ids, cut = _final(part, tokenizer)
            if cut:
                yield ids
                text, wanted = part[cut:] + rest, PART_CHARACTERS
            else:
                wanted *= 2
    if text:
        yield _ids(text, tokenizer)


def _final(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], int]:
    """The tokens of a text that no later text can change, and the characters they stand for; 0 if there is no cut."""
    ids = _ids(text, tokenizer)
    latest = len(text) - MARGIN_CHARACTERS
    places = [match.start() for match in PLACE.finditer(text, max(latest - PART_CHARACTERS // 2, 1), latest)]
    for cut in reversed(places[-CUTS:]):
        after = _ids(text[cut:], tokenizer)
        if len(after) < len(ids) and ids[-len(after) :] == after:
            return ids[: -len(after)], cut
    return [], 0


def _ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
