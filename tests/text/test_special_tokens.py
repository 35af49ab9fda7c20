"""Control tokens that a user types are text; the template's own act."""

from __future__ import annotations

import pytest
from transformers import GenerationConfig, PreTrainedTokenizerFast

from hmt.text.chat import ChatTemplate
from hmt.text.special_tokens import TextEncoder, beginning_token_ids, end_token_ids
from tests.conftest import CHAT_TEMPLATES, byte_tokenizer
from tests.text.tokenizers import BOS, templated

END = 2
"""Id of </s>."""


@pytest.mark.parametrize("configured", [None, 7, [7, 2], []])
def test_the_end_tokens_are_the_tokenizers_and_the_configs(
    configured: int | list[int] | None, tokenizer: PreTrainedTokenizerFast
) -> None:
    expected = {END} | ({configured} if isinstance(configured, int) else set(configured or ()))
    assert set(end_token_ids(tokenizer, GenerationConfig(eos_token_id=configured))) == expected


def test_bos_is_added_where_the_tokenizer_adds_it() -> None:
    assert beginning_token_ids(byte_tokenizer()) == []
    for template in ("<s> $A", "<s> $A </s>"):
        assert beginning_token_ids(templated(template)) == [BOS]


def test_control_tokens_in_a_text_are_text_unless_allowed(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "a</s>b<s>"
    ids = TextEncoder(tokenizer).encode(text)
    assert ids == [tokenizer(character)["input_ids"][0] for character in text]
    assert tokenizer.decode(ids) == text
    assert TextEncoder(tokenizer, allow_control_tokens=True).encode(text) == tokenizer(text)["input_ids"]
    assert TextEncoder(tokenizer).encode("a plain text") == tokenizer("a plain text")["input_ids"]


def test_the_template_ends_turns_and_the_user_does_not() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATES["eos"]
    messages = [{"role": "user", "content": "a</s>"}, {"role": "assistant", "content": "b"}]
    assert ChatTemplate(tokenizer).opening(messages).count(END) == 1
    assert ChatTemplate(tokenizer).turn("a</s>").count(END) == 0
    assert ChatTemplate(tokenizer, allow_control_tokens=True).opening(messages).count(END) == 2


def test_a_template_that_fails_is_an_error_of_one_line() -> None:
    tokenizer = byte_tokenizer()
    for template in ("{{ messages[0].content + 1 }}", "{{ 1 / 0 }}", "{{ nothing.at.all }}"):
        tokenizer.chat_template = template
        with pytest.raises(ValueError, match="chat template"):
            ChatTemplate(tokenizer).opening([{"role": "user", "content": "a"}])
