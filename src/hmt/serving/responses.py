"""Bodies of answers in the form of the OpenAI API, whole or as a stream of chunks."""

from __future__ import annotations

import time
import uuid
from typing import Any, Literal

from pydantic import BaseModel

from hmt.serving.jobs import ChoiceEnd, Done, Event, GenerationRequest, Piece, RequestError, TokenLogprob


class PromptTokensDetails(BaseModel):
    """Prompt tokens by kind."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Alternative(BaseModel):
    """A token that may stand at a place of a chat answer; `bytes` is None where the token is part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprob(Alternative):
    """A token of a chat answer, and the likeliest tokens at its place."""

    top_logprobs: list[Alternative]


class ChatLogprobs(BaseModel):
    """Log-probabilities of a chat answer."""

    content: list[ChatTokenLogprob]
    refusal: None


class CompletionLogprobs(BaseModel):
    """Log-probabilities of a completion, one entry a token; None for the first token of an echoed prompt."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class AnswerMessage(BaseModel):
    """Text of a chat answer; a part of it in chunks."""

    role: Literal["assistant"]
    content: str
    refusal: None


class Choice(BaseModel):
    """A choice: with `message` (chat), `delta` (chunks of chat), or `text` (completions)."""

    index: int
    finish_reason: str | None
    logprobs: ChatLogprobs | CompletionLogprobs | None
    message: AnswerMessage | None = None
    delta: AnswerMessage | dict[str, str] | None = None
    text: str | None = None


class Recalled(BaseModel):
    """A passage that was recalled: its text, its length in tokens, and the tokens before it in what was read."""

    text: str
    tokens: int
    start: int


class Extension(BaseModel):
    """What this server tells beyond the OpenAI API."""

    recalled: list[Recalled]


class Answer(BaseModel):
    """Body of an answer, or a chunk of it."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = None
    hmt: Extension | None = None


def error_body(error: RequestError) -> dict[str, Any]:
    """An error as clients of the OpenAI API expect it."""
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}}


class Replies:
    """Makes the bodies of one answer from the engine's events.

    Args:
        model: Name of the model.
        request: What was asked for.
        include_usage: End a stream with the usage.
    """

    def __init__(self, model: str, request: GenerationRequest, include_usage: bool = False) -> None:
        self._chat = request.messages is not None
        self._choices = request.choices * max(len(request.prompts), 1)
        self._logprobs = request.top_logprobs is not None
        self._include_usage = include_usage
        self._id = f"{'chatcmpl' if self._chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model

    def whole(self, events: list[Event]) -> dict[str, Any]:
        """The whole answer from all its events."""
        ends = {event.choice: event for event in events if isinstance(event, ChoiceEnd)}
        choices = []
        for index in range(self._choices):
            pieces = [event for event in events if isinstance(event, Piece) and event.choice == index]
            text = "".join(piece.text for piece in pieces)
            content: dict[str, Any] = {"message": _message(text)} if self._chat else {"text": text}
            entries = [entry for piece in pieces for entry in piece.logprobs]
            choices.append(self._choice(index, ends[index].reason, entries, **content))
        usage = next(event for event in events if isinstance(event, Done))
        recalled = [passage for end in ends.values() for passage in end.recalled]
        kind = "chat.completion" if self._chat else "text_completion"
        return self._body(kind, choices, usage=_usage(usage), hmt=_extension(recalled))

    def opening(self) -> list[dict[str, Any]]:
        """Chunks that open a stream: the role of each choice of a chat answer."""
        if not self._chat:
            return []
        role = _message("")
        return [self._chunk([self._choice(index, None, None, delta=role)]) for index in range(self._choices)]

    def chunk(self, event: Piece | ChoiceEnd) -> dict[str, Any]:
        """The chunk of one event."""
        if isinstance(event, Piece):
            content: dict[str, Any] = {"delta": {"content": event.text}} if self._chat else {"text": event.text}
            return self._chunk([self._choice(event.choice, None, event.logprobs, **content)])
        content = {"delta": {}} if self._chat else {"text": ""}
        end = self._choice(event.choice, event.reason, None, **content)
        return self._chunk([end], hmt=_extension(event.recalled))

    def closing(self, done: Done) -> list[dict[str, Any]]:
        """Chunks that close a stream: the usage, if the client asked for it."""
        return [self._chunk([], usage=_usage(done))] if self._include_usage else []

    def _chunk(self, choices: list[Choice], **more: Any) -> dict[str, Any]:
        if self._include_usage:
            more = {"usage": None} | more
        return self._body("chat.completion.chunk" if self._chat else "text_completion", choices, **more)

    def _body(self, kind: str, choices: list[Choice], **more: Any) -> dict[str, Any]:
        answer = Answer(id=self._id, object=kind, created=self._created, model=self._model, choices=choices, **more)
        return answer.model_dump(exclude_unset=True)

    def _choice(self, index: int, reason: str | None, entries: Any, **content: Any) -> Choice:
        logprobs: Any = None
        if self._logprobs and entries is not None:
            logprobs = _chat_logprobs(entries) if self._chat else _completion_logprobs(entries)
        return Choice(index=index, finish_reason=reason, logprobs=logprobs, **content)


def _message(text: str) -> AnswerMessage:
    return AnswerMessage(role="assistant", content=text, refusal=None)


def _usage(done: Done) -> Usage:
    return Usage(
        prompt_tokens=done.prompt_tokens,
        completion_tokens=done.completion_tokens,
        total_tokens=done.prompt_tokens + done.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=done.cached_tokens),
    )


def _extension(recalled: Any) -> Extension:
    passages = [Recalled(text=one.text, tokens=one.tokens, start=one.start) for one in dict.fromkeys(recalled)]
    return Extension(recalled=passages)


def _chat_logprobs(entries: Any) -> ChatLogprobs:
    content = []
    for entry in entries:
        top = [Alternative(token=text, logprob=logprob, bytes=_bytes(text)) for text, logprob in entry.top]
        content.append(
            ChatTokenLogprob(token=entry.text, logprob=entry.logprob, bytes=_bytes(entry.text), top_logprobs=top)
        )
    return ChatLogprobs(content=content, refusal=None)


def _completion_logprobs(entries: Any) -> CompletionLogprobs:
    return CompletionLogprobs(
        tokens=[entry.text for entry in entries],
        token_logprobs=[entry.logprob for entry in entries],
        top_logprobs=[_top(entry) for entry in entries],
        text_offset=[entry.offset for entry in entries],
    )


def _top(entry: TokenLogprob) -> dict[str, float] | None:
    """The likeliest tokens and the chosen one, as completions list them."""
    return None if entry.logprob is None else {entry.text: entry.logprob} | dict(reversed(entry.top))


def _bytes(text: str) -> list[int] | None:
    return None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())
