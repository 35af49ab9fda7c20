"""What a request may ask for, and what is refused with the field named."""

from __future__ import annotations

from typing import Any

import pytest

from hmt.serving.protocol import RequestError, parse

HELLO = {"model": "m", "messages": [{"role": "user", "content": "Hello."}]}


def test_openai_settings_become_those_of_generate() -> None:
    request = parse(
        HELLO
        | {"temperature": 0.7, "top_p": 0.9, "max_tokens": 5, "logit_bias": {"7": -100}, "stop": "x", "seed": 3}
        | {"stream": True, "stream_options": {"include_usage": True}, "user": "me", "n": 1, "logprobs": False},
        chat=True,
    )
    assert request.settings == {
        "do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 5, "sequence_bias": {(7,): -100.0}
    }  # fmt: skip
    assert (request.stop, request.seed, request.stream, request.include_usage) == (("x",), 3, True, True)


def test_temperature_zero_is_greedy_and_silence_leaves_the_servers_settings() -> None:
    assert parse(HELLO | {"temperature": 0}, chat=True).settings == {"do_sample": False}
    assert parse(HELLO, chat=True).settings == {}


def test_content_may_come_in_parts_and_developers_are_the_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = parse({"model": "m", "messages": [{"role": "developer", "content": parts}]}, chat=True)
    assert request.messages == [{"role": "system", "content": "ab"}]


@pytest.mark.parametrize("prompt", ["abc", ["abc"], [5, 6], [[5, 6]]], ids=str)
def test_a_prompt_is_a_text_or_tokens(prompt: Any) -> None:
    assert parse({"model": "m", "prompt": prompt}, chat=False).prompt in ("abc", [5, 6])


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"seed": "x"}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"messages": []}, "messages"),
        ({"messages": ["hi"]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"model": None}, "model"),
    ],
    ids=str,
)
def test_what_is_not_served_is_refused_by_name(change: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError, match=param) as caught:
        parse(HELLO | change, chat=True)
    assert caught.value.param == param
    assert caught.value.status == 400


@pytest.mark.parametrize("body", [None, [], {"model": "m"}, {"model": "m", "prompt": ["a", "b"]}], ids=str)
def test_a_completion_without_one_prompt_is_refused(body: Any) -> None:
    with pytest.raises(RequestError):
        parse(body, chat=False)
