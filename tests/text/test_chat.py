"""The parts of a conversation, put together, are the conversation as the template renders it."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from hmt.text import chat
from hmt.text.chat import ChatTemplate
from tests.conftest import CHAT_TEMPLATES, byte_tokenizer

TALK = [
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Nobody."},
    {"role": "user", "content": "When?"},
    {"role": "assistant", "content": "Never."},
]


@pytest.fixture(params=CHAT_TEMPLATES)
def chatty(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """A tokenizer with a chat template."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATES[request.param]
    return tokenizer


def test_turns_read_one_after_the_other_are_the_whole_conversation(chatty: PreTrainedTokenizerFast) -> None:
    template = ChatTemplate(chatty)
    answers = [chatty(message["content"])["input_ids"] for message in TALK[1::2]]
    ids = [*template.opening(TALK[:1]), *answers[0], *template.ending(), *template.turn("When?")]
    whole = chatty.apply_chat_template(TALK[:3], add_generation_prompt=True)["input_ids"]
    assert ids == whole
    ids += [*answers[1], *template.ending()]
    assert ids == chatty.apply_chat_template(TALK)["input_ids"]


def test_a_tokenizer_without_a_template_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="template"):
        ChatTemplate(tokenizer)


def test_a_template_that_rewrites_answers_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
    template = ChatTemplate(tokenizer)
    assert template.opening([{"role": "user", "content": "a"}]) == tokenizer("A")["input_ids"]
    with pytest.raises(ValueError, match="template"):
        template.turn("b")


def test_messages_that_a_template_refuses_are_one_line() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
        "{% for m in messages %}{{ m['content'] }}.{% endfor %}"
    )
    with pytest.raises(ValueError, match="no system messages"):
        ChatTemplate(tokenizer).opening([{"role": "system", "content": "Be brief."}])


def test_a_template_that_does_not_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "RENDER_SECONDS", 0.1)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for i in range(200) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{{ messages[0]['content'] }}"
    )
    with pytest.raises(ValueError, match="template"):
        ChatTemplate(tokenizer).opening(TALK[:1])
