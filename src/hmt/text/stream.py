"""Token ids of a text that is too long to hold, equal to those of the whole text.

A text is tokenized in windows. A cut is kept only if the end of the window has the same tokens alone as within it; then
the tokens before the cut are final, as long as no token depends on text further away than `MARGIN_CHARACTERS`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PART_CHARACTERS = 20_000
"""Text before a cut."""

MARGIN_CHARACTERS = 2_000
"""Text after a cut that must have the same tokens with and without the text before it."""

WORD_CUTS, CHARACTER_CUTS = 24, 64
"""Cuts tried between words, and then between any characters, before a longer window is taken."""

WORD_BOUNDARY = re.compile(r"(?<=\S)(?=\s)|(?<=\s)(?=\S)")


def token_parts(pieces: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Tokenize a text part by part, without special tokens.

    Args:
        pieces: The text, in pieces of any size.
        tokenizer: Any tokenizer.

    Yields:
        Token ids of a part; joined they are those of the whole text.
    """
    text, start, size = "", 0, PART_CHARACTERS
    for piece in pieces:
        text, start = text[start:] + piece, 0
        while len(text) - start >= size + MARGIN_CHARACTERS:
            window = text[start : start + size + MARGIN_CHARACTERS]
            ids = encode(window, tokenizer)
            for cut in _cuts(window, size):
                rest = encode(window[cut:], tokenizer)
                if len(rest) < len(ids) and ids[-len(rest) :] == rest:
                    yield ids[: -len(rest)]
                    start, size = start + cut, PART_CHARACTERS
                    break
            else:
                size *= 2
    if start < len(text):
        yield encode(text[start:], tokenizer)


def encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a text, without special tokens."""
    if tokenizer.is_fast:  # the backend's own call spares the offsets of the tokens, most of the memory
        backend = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = tokenizer.split_special_tokens
        (encoding,) = backend.encode_batch_fast([text], add_special_tokens=False)
        return list(encoding.ids)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _cuts(window: str, size: int) -> Iterator[int]:
    """Places to cut a window at or before `size`, the most promising first."""
    words = [match.start() for match in WORD_BOUNDARY.finditer(window, size // 2, size)]
    yield from words[: -WORD_CUTS - 1 : -1]
    yield from range(size, max(size - CHARACTER_CUTS, 0), -1)
