"""Token ids of a text that is too long to hold, the same that the whole text has.

Where a text may be cut depends on its tokenizer. Here a cut is tried and checked: the tokens of the text around it must
end with the tokens of what stands after it alone. Then the tokens before the cut are final, as long as no token depends
on text that is further away than `MARGIN_CHARACTERS`. That holds for every tokenizer that splits at words first, with
words that are shorter; where no cut passes, more text is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PART_CHARACTERS = 20_000
"""Text tokenised at one time."""

MARGIN_CHARACTERS = 2_000
"""Text after a cut that must be tokenised alike with and without what stands before it."""

CUTS = 24
"""Places tried for a cut."""

PLACE_CHARACTERS = 10_000
"""Text in which places for a cut are looked for."""

PLACE = re.compile(r"(?<=\S)(?=\s)|(?<=\s)(?=\S)")
"""Where words begin and end."""


def token_parts(
    pieces: Iterable[str], tokenizer: PreTrainedTokenizerBase, at_once: int = 1, characters: int | None = None
) -> Iterator[list[int]]:
    """Token ids of the text that the pieces make up, with nothing added, a part at a time.

    Args:
        pieces: Of the text.
        tokenizer: A fast one works on several parts side by side.
        at_once: Parts that are tokenised in one call; so much text is waited for.
        characters: Of a part, about; `PART_CHARACTERS` where None. Four times `MARGIN_CHARACTERS` more are tokenised
            for each.
    """
    text, parts, characters = "", at_once, characters or PART_CHARACTERS
    for piece in pieces:
        text += piece
        while len(text) >= parts * characters + MARGIN_CHARACTERS:
            cuts = _cuts(text, parts, characters, tokenizer)
            if not cuts:
                parts *= 2
                continue
            starts = [0, *(cut for cut, _ in cuts[:-1])]
            read = [text[start : cut + MARGIN_CHARACTERS] for start, (cut, _) in zip(starts, cuts, strict=True)]
            for ids, (_, not_final) in zip(_ids(read, tokenizer), cuts, strict=True):
                yield ids[: len(ids) - not_final]
            text, parts = text[cuts[-1][0] :], at_once
    if text:
        yield from _ids([text], tokenizer)


def _cuts(text: str, parts: int, characters: int, tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, int]]:
    """Where a text falls into so many parts, or fewer, whose tokens no other part changes.

    The last place before the end of each part is tried first, then the one before it, for all parts at a time.

    Returns:
        For each part its end, and the number of tokens that the next `MARGIN_CHARACTERS` have.
    """
    ends = range(characters, parts * characters + 1, characters)
    places = {end: _places(text, max(end - characters // 2, 1), end) for end in ends}
    found: dict[int, tuple[int, int]] = {}
    for number in range(CUTS):
        tried = {end: cuts[number] for end, cuts in places.items() if end not in found and number < len(cuts)}
        if not tried:
            break
        around = [text[max(cut - MARGIN_CHARACTERS, 0) : cut + MARGIN_CHARACTERS] for cut in tried.values()]
        after = [text[cut : cut + MARGIN_CHARACTERS] for cut in tried.values()]
        tokens = _ids([*around, *after], tokenizer)
        for (end, cut), whole, rest in zip(tried.items(), tokens[: len(tried)], tokens[len(tried) :], strict=True):
            if len(rest) < len(whole) and whole[len(whole) - len(rest) :] == rest:
                found[end] = (cut, len(rest))
    return [found[end] for end in sorted(found)]


def _places(text: str, start: int, end: int) -> list[int]:
    """Places for a cut in a stretch of the text, the last one first."""
    places = [match.start() for match in PLACE.finditer(text, max(start, end - PLACE_CHARACTERS), end)]
    return places[: -CUTS - 1 : -1]


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    if getattr(tokenizer, "is_fast", False):  # spares the offsets of every token, most of what a call holds
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = tokenizer.split_special_tokens
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids
