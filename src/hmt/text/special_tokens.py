"""Special tokens: those that begin and end a text, and control tokens that a user has typed as text."""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING

from hmt.text.stream import token_parts

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase


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
