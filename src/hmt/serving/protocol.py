"""The OpenAI protocol: what a request asks for, and how answers and errors are written.

Served: /v1/chat/completions, /v1/completions and /v1/models, whole or as a stream of events. A field that would change
the answer and is not served is refused; one that would not is ignored.
"""

from __future__ import annotations

import math
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from hmt.text.chat import Message

UNSERVED = {
    "n": 1, "best_of": 1, "logprobs": False, "top_logprobs": 0, "echo": False, "suffix": "", "presence_penalty": 0,
    "frequency_penalty": 0, "tools": [], "functions": [], "audio": {}, "prediction": {},
}  # fmt: skip
"""Fields that only this value (or null, or nothing) is served of."""

MAX_STOPS = 4


class RequestError(ValueError):
    """A request that cannot be served.

    Args:
        message: For the client, one line.
        status: Of HTTP.
        param: The field it is about.
        code: Of OpenAI's errors, where there is one.
    """

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        """The error as OpenAI's clients expect it."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class CompletionRequest:
    """What a client wants written.

    Attributes:
        model: The model it names.
        messages: A conversation, or None where `prompt` is given.
        prompt: A text or its token ids, or None where `messages` are given.
        settings: Of `generate`, those that the client gives.
        stop: Texts that end the answer and are no part of it.
        seed: Of sampling, or None.
        stream: Send the answer as it is written.
        include_usage: With `stream`, send the usage at the end.
    """

    model: str
    messages: list[Message] | None
    prompt: str | list[int] | None
    settings: dict[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    seed: int | None = None
    stream: bool = False
    include_usage: bool = False


def parse(body: Any, chat: bool) -> CompletionRequest:
    """The request of a JSON body.

    Raises:
        RequestError: If it makes no sense or asks for what is not served; names the field.
    """
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    for name, neutral in UNSERVED.items():
        if body.get(name) not in (None, neutral):
            raise RequestError(f"{name} is not served", param=name)
    if (body.get("response_format") or {"type": "text"}) != {"type": "text"}:
        raise RequestError("response_format must be text", param="response_format")
    stream_options = _typed(body, "stream_options", dict, {})
    return CompletionRequest(
        model=_typed(body, "model", str),
        messages=_messages(body.get("messages")) if chat else None,
        prompt=None if chat else _prompt(body.get("prompt")),
        settings=_settings(body),
        stop=_stop(body.get("stop")),
        seed=None if body.get("seed") is None else _number("seed", body["seed"], -(1 << 63), (1 << 63) - 1, whole=True),
        stream=_typed(body, "stream", bool, False),
        include_usage=bool(stream_options.get("include_usage")),
    )


def _settings(body: dict[str, Any]) -> dict[str, Any]:
    """Settings of `generate`: OpenAI's, and top_k and repetition_penalty, which other servers take too."""
    settings: dict[str, Any] = {}
    for name in ("max_tokens", "max_completion_tokens"):
        if (limit := body.get(name)) is not None:
            settings["max_new_tokens"] = _number(name, limit, 1, None, whole=True)
    if (temperature := body.get("temperature")) is not None:
        settings["do_sample"] = _number("temperature", temperature, 0, 2) > 0
        if settings["do_sample"]:
            settings["temperature"] = float(temperature)
    if (top_p := body.get("top_p")) is not None:
        settings["top_p"] = float(_number("top_p", top_p, 0, 1))
    if (top_k := body.get("top_k")) is not None:
        settings["top_k"] = _number("top_k", top_k, 0, None, whole=True)
    if (penalty := body.get("repetition_penalty")) is not None:
        settings["repetition_penalty"] = float(_number("repetition_penalty", penalty, 0.01, None))
    if bias := _typed(body, "logit_bias", dict, {}):
        try:
            settings["sequence_bias"] = {(int(token),): float(value) for token, value in bias.items()}
        except (TypeError, ValueError, OverflowError) as error:
            raise RequestError("logit_bias must map token ids to numbers", param="logit_bias") from error
        if not all(map(math.isfinite, settings["sequence_bias"].values())):
            raise RequestError("logit_bias must map token ids to finite numbers", param="logit_bias")
    return settings


def _messages(given: Any) -> list[Message]:
    if not isinstance(given, list) or not given:
        raise RequestError("messages must be a list of at least one message", param="messages")
    messages = []
    for number, message in enumerate(given):
        where = f"messages[{number}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RequestError(f"{where} must be an object with a role", param="messages")
        role = "system" if message["role"] == "developer" else message["role"]
        messages.append({"role": role, "content": _content(message.get("content"), where)})
    return messages


def _content(content: Any, where: str) -> str:
    """The text of a message, which may be given in parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return "".join(str(part.get("text", "")) for part in content)
    raise RequestError(f"{where} must have text as its content", param="messages")


def _prompt(prompt: Any) -> str | list[int]:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    is_tokens = isinstance(prompt, list) and all(
        isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in prompt
    )
    if (isinstance(prompt, str) or is_tokens) and prompt:
        return prompt
    raise RequestError("prompt must be one text, or one list of token ids, and not empty", param="prompt")


def _stop(stop: Any) -> tuple[str, ...]:
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(one, str) and one for one in stops) or len(stops) > MAX_STOPS:
        raise RequestError(f"stop must be a text or up to {MAX_STOPS} texts, none of them empty", param="stop")
    return tuple(stops)


def _typed(body: dict[str, Any], name: str, kind: type, *default: Any) -> Any:
    value = body.get(name)
    if value is None and default:
        return default[0]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise RequestError(f"{name} must be of type {kind.__name__}", param=name)
    return value


def _number(name: str, value: Any, low: float, high: float | None, whole: bool = False) -> Any:
    kinds = (int,) if whole else (int, float)
    fits = isinstance(value, kinds) and not isinstance(value, bool) and (whole or math.isfinite(value))
    if not fits or not low <= value or (high is not None and value > high):
        up_to = "" if high is None else f" and at most {high}"
        raise RequestError(f"{name} must be a {'whole ' if whole else ''}number of at least {low}{up_to}", param=name)
    return value


@dataclass(frozen=True)
class Usage:
    """Tokens of a request.

    Attributes:
        prompt_tokens: Of the request, without those of a memory.
        cached_tokens: Those of them that had been read for an earlier request.
        completion_tokens: Written.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    def body(self) -> dict[str, Any]:
        """As OpenAI's clients expect it."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class Reply:
    """Writes the bodies of one answer.

    Args:
        model: Its name.
        chat: An answer to messages, not the continuation of a prompt.
    """

    def __init__(self, model: str, chat: bool) -> None:
        self._chat = chat
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, text: str, reason: str, usage: Usage) -> dict[str, Any]:
        """The answer in one piece."""
        content = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        kind = "chat.completion" if self._chat else "text_completion"
        choice = {"index": 0, "finish_reason": reason, "logprobs": None, **content}
        return {**self._head, "object": kind, "choices": [choice], "usage": usage.body()}

    def piece(self, text: str, first: bool = False) -> dict[str, Any]:
        """A part of a streamed answer."""
        return self._chunk([self._choice({"role": "assistant", "content": text} if first else {"content": text}, None)])

    def end(self, reason: str) -> dict[str, Any]:
        """The end of a streamed answer."""
        return self._chunk([self._choice({}, reason)])

    def usage(self, usage: Usage) -> dict[str, Any]:
        """What comes after that, where the client asked for it."""
        return self._chunk([]) | {"usage": usage.body()}

    def _choice(self, delta: dict[str, str], reason: str | None) -> dict[str, Any]:
        content: dict[str, Any] = {"delta": delta} if self._chat else {"text": delta.get("content", "")}
        return {"index": 0, "finish_reason": reason, "logprobs": None, **content}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return {**self._head, "object": kind, "choices": choices}
