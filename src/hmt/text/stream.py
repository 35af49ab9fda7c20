"""Token ids of a text that is too long to hold, the same that the whole text has.

Where a text may be cut depends on its tokenizer. Here a cut is tried and checked: the tokens of the text around it must
end with the tokens of what stands after it alone. Then the tokens before the cut are final, as long as no token depends
on text that is further away than `MARGIN_CHARACTERS`. That holds for every tokenizer that splits at words first, with
words that are shorter; where no cut passes, more text is taken.
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
"""Places tried for a cut."""

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


def token_parts(pieces: Iterable[str], tokenizer: PreTrainedTokenizerBase, at_once: int = 1) -> Iterator[list[int]]:
    """Token ids of the text that the pieces make up, with nothing added, a part at a time.

    Args:
        pieces: Of the text.
        tokenizer: A fast one works on several parts side by side.
        at_once: Parts that are tokenised in one call; so much text is waited for.
    """
    text, parts = "", at_once
    for piece in pieces:
        text += piece
        while len(text) >= parts * PART_CHARACTERS + MARGIN_CHARACTERS:
            cuts = _cuts(text, parts, tokenizer)
            if not cuts:
                parts *= 2
                continue
            starts = [0, *cuts[:-1]]
            read = [text[start : cut + MARGIN_CHARACTERS] for start, cut in zip(starts, cuts, strict=True)]
            after = [text[cut : cut + MARGIN_CHARACTERS] for cut in cuts]
            tokens = _ids([*read, *after], tokenizer)
            for ids, not_final in zip(tokens[: len(cuts)], tokens[len(cuts) :], strict=True):
                yield ids[: len(ids) - len(not_final)]
            text, parts = text[cuts[-1] :], at_once
    if text:
        yield from _ids([text], tokenizer)


def _cuts(text: str, parts: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Where a text falls into so many parts, or fewer, whose tokens no other part changes.

    The last place before the end of each part is tried first, then the one before it, for all parts at a time.
    """
    ends = range(PART_CHARACTERS, parts * PART_CHARACTERS + 1, PART_CHARACTERS)
    places = {end: _places(text, end) for end in ends}
    found: dict[int, int] = {}
    for number in range(CUTS):
        tried = {end: cuts[number] for end, cuts in places.items() if end not in found and number < len(cuts)}
        if not tried:
            break
        around = [text[max(cut - MARGIN_CHARACTERS, 0) : cut + MARGIN_CHARACTERS] for cut in tried.values()]
        after = [text[cut : cut + MARGIN_CHARACTERS] for cut in tried.values()]
        tokens = _ids([*around, *after], tokenizer)
        for (end, cut), whole, rest in zip(tried.items(), tokens[: len(tried)], tokens[len(tried) :], strict=True):
            if len(rest) < len(whole) and whole[len(whole) - len(rest) :] == rest:
                found[end] = cut
    return [found[end] for end in sorted(found)]


def _places(text: str, end: int) -> list[int]:
    """Places for a cut in the second half of the part that ends here, the last one first."""
    places = [match.start() for match in PLACE.finditer(text, max(end - PART_CHARACTERS // 2, 1), end)]
    return places[: -CUTS - 1 : -1]


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids
