"""Token ids of texts too long to hold, tokens that begin and end a text, and control tokens typed as text.

A long text is tokenized in windows. A cut is kept only if the end of the window has the same tokens alone as within it;
then the tokens before the cut are final, as long as no token depends on text further away than `MARGIN_CHARACTERS`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase


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


def end_token_ids(tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig) -> list[int]:
    """Ids of the tokens that end a text: those of the tokenizer and of the generation config together.

    Chat models often end a turn with another token than the one that their generation config names.
    """
    ids: set[int] = set()
    for given in (tokenizer.eos_token_id, generation_config.eos_token_id):
        ids.update([given] if isinstance(given, int) else given or [])
    return sorted(ids)


def beginning_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that the tokenizer puts before a text: its BOS token, or nothing for tokenizers that add none."""
    added: list[int] = tokenizer("")["input_ids"]
    return added[:1] if added and added[0] == tokenizer.bos_token_id else []


class TextEncoder:
    """Tokenizes text from users, in which control tokens such as `<|im_end|>` are text like any other.

    A chat template mixes its own control tokens with the text of users. `protect` puts placeholders that nobody can
    guess in place of the control tokens in a user's text; `encode_protected` tokenizes the rendered conversation, in
    which the template's control tokens act, and the placeholders become the text that they stand for.

    Args:
        tokenizer: Tokenizer, used by one thread at a time.
        allow_control_tokens: Let control tokens in users' texts act.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, allow_control_tokens: bool = False) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        names = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
        names = set() if allow_control_tokens else names - {""}
        self._control_tokens = sorted(names, key=lambda name: (-len(name), name))  # the longest match wins
        self._pattern = re.compile("|".join(map(re.escape, self._control_tokens)) or r"(?!)")
        nonce = secrets.token_hex(8)
        self._placeholder = f"control-{nonce}-{{}}-"
        self._placeholders = re.compile(rf"control-{nonce}-(\d+)-")

    def encode(self, text: str) -> list[int]:
        """Token ids of a user's text, without BOS and EOS."""
        return self.encode_protected(self.protect(text))

    def protect(self, text: str) -> str:
        """The text with a placeholder for each control token."""
        return self._pattern.sub(lambda match: self._placeholder.format(self._control_tokens.index(match[0])), text)

    def encode_protected(self, text: str) -> list[int]:
        """Token ids of a text whose placeholders stand for text, and whose control tokens act."""
        ids: list[int] = []
        for number, part in enumerate(self._placeholders.split(text)):
            if number % 2:
                ids += self._encode_literally(self._control_tokens[int(part)])
            else:
                for tokens in token_parts([part], self._tokenizer):
                    ids += tokens
        return ids

    def _encode_literally(self, control_token: str) -> list[int]:
        """Token ids of the characters of a control token."""
        encoded = self._tokenizer(control_token, add_special_tokens=False, split_special_tokens=True)
        ids: list[int] = encoded["input_ids"]
        if not set(ids).isdisjoint(self._tokenizer.all_special_ids):  # a vocabulary may have it as a plain token too
            parts = (self._tokenizer(one, add_special_tokens=False)["input_ids"] for one in control_token)
            ids = [token for part in parts for token in part]
        return ids
