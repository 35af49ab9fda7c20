"""Fields of requests: served, ignored because they change nothing, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from hmt.serving.schema import HARMLESS, NEUTRAL, ChatRequest, CompletionRequest, RequestError, parse
from tests.serving.conftest import CHAT

TEXT = {"model": "tiny", "prompt": "abc"}


def chat(**more: Any) -> ChatRequest:
    """A request to chat."""
    return parse(ChatRequest, CHAT | more)


def test_openai_settings_become_those_of_generate() -> None:
    request = chat(temperature=0.7, top_p=0.9, max_tokens=5, logit_bias={"7": -100}, stop="x", seed=3, n=2)
    assert request.settings() == {
        "do_sample": True, "temperature": 0.7, "top_p": 0.9, "sequence_bias": {(7,): -100.0}, "max_new_tokens": 5
    }  # fmt: skip
    assert (request.stop, request.seed, request.n) == (["x"], 3, 2)
    assert chat(max_completion_tokens=6).settings() == {"max_new_tokens": 6}


@pytest.mark.parametrize("temperature", [0, 1e-40, 1e-6])
def test_tiny_temperatures_are_greedy_and_silence_leaves_the_servers_settings(temperature: float) -> None:
    assert chat(temperature=temperature).settings() == {"do_sample": False}
    assert chat().settings() == {}


def test_harmless_fields_neutral_values_and_null_change_nothing() -> None:
    plain = chat()
    for name in HARMLESS:
        assert chat(**{name: "anything"}) == plain
    for name, values in NEUTRAL.items():
        assert all(chat(**{name: value}) == plain for value in values)
    for name in ("temperature", "stop", "tools", "response_format", "no_such_field"):
        assert chat(**{name: None}) == plain


def test_content_may_come_in_parts_and_developers_are_the_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}]
    messages = [
        {"role": "developer", "content": parts},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": None, "refusal": None, "annotations": [], "tool_calls": []},
    ]
    assert [message.for_template() for message in chat(messages=messages).messages] == [
        {"role": "system", "content": "ab"}, {"role": "user", "content": "c"}, {"role": "assistant", "content": ""}
    ]  # fmt: skip


def test_tools_that_may_not_be_called_are_accepted() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert chat(tools=tools, tool_choice="none").messages == chat().messages


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("abc", ["abc"]), ([5, 6], [[5, 6]]), (["abc", "d"], ["abc", "d"]), ([[5, 6], [7]], [[5, 6], [7]])],
    ids=str,
)
def test_prompts_are_texts_or_tokens_one_or_several(prompt: Any, prompts: Any) -> None:
    assert parse(CompletionRequest, TEXT | {"prompt": prompt}).prompt == prompts


HUGE = 10**400


REFUSED: list[tuple[dict[str, Any], str]] = [
    *(({field: HUGE}, field) for field in ("temperature", "top_p", "top_k", "repetition_penalty", "seed", "n")),
    *(({field: float("nan")}, field) for field in ("temperature", "top_p", "repetition_penalty")),
    ({"n": 0}, "n"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"continue_final_message": True}, "continue_final_message"),
    ({"add_generation_prompt": False}, "add_generation_prompt"),
    ({"min_p": 0.9}, "min_p"),
    ({"no_such_field": 1}, "no_such_field"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 2}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 5.0}, "max_tokens"),
    ({"stop": ["a", ""]}, "stop"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"seed": "x"}, "seed"),
    ({"stream": "yes"}, "stream"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"5": float("nan")}}, "logit_bias"),
    ({"messages": []}, "messages"),
    ({"messages": ["hi"]}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
    ({"messages": [{"role": "user", "content": None}]}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
    ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]}, "messages"),
    ({"model": None}, "model"),
]


def test_what_is_not_served_is_refused_by_name() -> None:
    for change, param in REFUSED:
        with pytest.raises(RequestError) as caught:
            chat(**change)
        assert (caught.value.param, caught.value.status_code) == (param, 400), change


def test_a_completion_that_cannot_be_served_is_refused() -> None:
    prompts = ([], [[]], [-1], [True], ["a", 5], None)
    fields = {"logprobs": 100, "suffix": "x", "echo": True, "best_of": 3, "max_tokens": -1}
    for change in (*({"prompt": prompt} for prompt in prompts), *({name: value} for name, value in fields.items())):
        with pytest.raises(RequestError) as caught:
            parse(CompletionRequest, TEXT | change)
        assert caught.value.param == next(iter(change)), change


def test_what_is_no_object_is_refused() -> None:
    for body in (None, [], "text", 5):
        with pytest.raises(RequestError):
            parse(ChatRequest, body)
