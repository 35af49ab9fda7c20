"""The OpenAI API: what clients send, as pydantic models, and what they get.

A field that would change the answer is served or refused. `HARMLESS` lists the fields that are accepted and ignored,
`NEUTRAL` the values of other fields that ask for nothing; any other field is an error that names it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from starlette.exceptions import HTTPException

from hmt.options import GREEDY_TEMPERATURE
from hmt.text.chat import Message

HARMLESS = frozenset(
    {
        "metadata", "parallel_tool_calls", "prompt_cache_retention", "request_id", "safety_identifier", "service_tier",
        "store", "user",
    }
)  # fmt: skip
"""Fields of a request that never change its answer here."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "audio": ({},),
    "best_of": (1,),
    "continue_final_message": (False,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "ignore_eos": (False,),
    "min_p": (0,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "stop_token_ids": ([],),
    "suffix": ("",),
    "use_beam_search": (False,),
}
"""Values that ask for nothing, of fields that are not served otherwise."""

RETRY_SECONDS = 2
"""Delay that clients are asked for when the server is busy."""

INT32, INT64 = (1 << 31) - 1, (1 << 63) - 1

Model = TypeVar("Model", bound=BaseModel)


class RequestError(HTTPException):
    """A request that cannot be served.

    Args:
        message: For the client, one line.
        status: HTTP status.
        param: Field of the request that the error is about.
        code: Error code of the OpenAI API, where it has one.
    """

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": str(RETRY_SECONDS)}}
        message = message.encode(errors="backslashreplace").decode()  # JSON in UTF-8 has no lone surrogates
        super().__init__(status, message, headers.get(status))
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        """The error as clients of the OpenAI API expect it."""
        kind = "server_error" if self.status_code >= 500 else "invalid_request_error"
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}


def parse(model: type[Model], body: Any) -> Model:
    """Validate the body of a request.

    Raises:
        RequestError: If it is not one; names the field.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        message = "not supported" if first["type"] == "extra_forbidden" else first["msg"]
        param = str(first["loc"][0]) if where else None
        raise RequestError(f"{where or 'the body'}: {message}", param=param) from error


class _Strict(BaseModel):
    """Takes values of the right type and known fields only; null means that a field was not given."""

    harmless: ClassVar[frozenset[str]] = frozenset()
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {}

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_what_changes_nothing(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        return {
            name: value
            for name, value in body.items()
            if value is not None and name not in cls.harmless and value not in cls.neutral.get(name, ())
        }


class TextPart(_Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str
    cache_control: Any = None  # a hint of other servers' caches


def _joined(content: Any) -> Any:
    """The text of content that is given in parts."""
    if isinstance(content, list) and content:
        return "".join(TextPart.model_validate(part).text for part in content)
    return content


class ChatMessage(_Strict):
    """A message of a conversation."""

    harmless = frozenset({"annotations", "refusal"})  # clients send back what they got
    neutral: ClassVar = {"tool_calls": ([],)}

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str | None, BeforeValidator(_joined)] = None
    name: str | None = None

    @model_validator(mode="after")
    def _check_content(self) -> ChatMessage:
        if self.content is None and self.role != "assistant":
            raise ValueError("only a message of the assistant may have no content")
        return self

    def for_template(self) -> Message:
        """The message as chat templates take it; they know no developers."""
        role = "system" if self.role == "developer" else self.role
        name = {} if self.name is None else {"name": self.name}
        return {"role": role, "content": self.content or "", **name}


class StreamOptions(_Strict):
    """Options of a streamed answer."""

    include_usage: bool = False
    include_obfuscation: bool = False  # padding against listeners: ignored, it is no part of the answer


StopStrings = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=1000)]],
    Field(max_length=4, fail_fast=True),
    BeforeValidator(lambda stop: [stop] if isinstance(stop, str) else stop),
]
BiasedToken = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


class _GenerationRequest(_Strict):
    """Fields that both kinds of requests have."""

    harmless = HARMLESS
    neutral = NEUTRAL

    model: str
    max_tokens: int | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, le=INT32)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    logit_bias: dict[BiasedToken, Annotated[float, Field(ge=-100, le=100)]] = Field({}, max_length=1024)
    stop: StopStrings = []
    seed: int | None = Field(None, ge=-INT64 - 1, le=INT64)
    n: int = Field(1, ge=1, le=16)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    prompt_cache_key: str = ""

    def settings(self) -> dict[str, Any]:
        """Arguments of `generate` that the client gives."""
        given = {
            "max_new_tokens": self.max_tokens,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "repetition_penalty": self.repetition_penalty,
            "sequence_bias": {(int(token),): bias for token, bias in self.logit_bias.items()} or None,
        }
        if self.temperature is not None:
            sample = self.temperature >= GREEDY_TEMPERATURE
            given |= {"do_sample": sample, "temperature": self.temperature if sample else None}
        return {name: value for name, value in given.items() if value is not None}


class ChatRequest(_GenerationRequest):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    tools: list[Any] = []
    tool_choice: Literal["none", "auto"] = "auto"

    @model_validator(mode="after")
    def _check_combinations(self) -> ChatRequest:
        if self.tools and self.tool_choice != "none":
            raise RequestError('tools are not supported, except with tool_choice "none"', param="tools")
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
        return self

    @property
    def alternatives(self) -> int | None:
        """Likeliest tokens to list with each log-probability; None where none are wanted."""
        return self.top_logprobs if self.logprobs else None

    @property
    def opening(self) -> str:
        """The first message of the user, the same for all turns of a conversation."""
        return next((message.content or "" for message in self.messages if message.role == "user"), "")

    def settings(self) -> dict[str, Any]:
        """Arguments of `generate` that the client gives."""
        own = {} if self.max_completion_tokens is None else {"max_new_tokens": self.max_completion_tokens}
        return super().settings() | own


TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=INT32)]], Field(min_length=1, fail_fast=True)]
Prompts = Annotated[list[str | TokenIds], Field(min_length=1, max_length=128, fail_fast=True)]


def _listed(prompt: Any) -> Any:
    """A list of prompts from the four forms that the API has."""
    one = isinstance(prompt, str) or (isinstance(prompt, list) and prompt and isinstance(prompt[0], int))
    return [prompt] if one else prompt


class CompletionRequest(_GenerationRequest):
    """Body of /v1/completions."""

    prompt: Annotated[Prompts, BeforeValidator(_listed)]
    logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def alternatives(self) -> int | None:
        """Likeliest tokens to list with each log-probability; None where none are wanted."""
        return self.logprobs

    @property
    def opening(self) -> str:
        """The beginning of the first prompt."""
        return str(self.prompt[0][:100])


GenerationRequest = ChatRequest | CompletionRequest


@dataclass(frozen=True)
class Delta:
    """Continuation of a choice.

    Attributes:
        choice: Number of the choice.
        text: New text.
        logprobs: Its tokens with their log-probabilities, if they were asked for, in the form of a chat answer.
        finish_reason: At the end "stop" if the model or a stop string ended it, "length" if a limit did.
        recalled: At the end the passages that were recalled, oldest first: text, tokens, start and score.
    """

    choice: int
    text: str = ""
    logprobs: tuple[dict[str, Any], ...] = ()
    finish_reason: str | None = None
    recalled: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Usage:
    """Tokens of a request: of its prompts, those of them that an earlier turn had read, and generated ones."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    def body(self) -> dict[str, Any]:
        """The usage in an answer."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class Reply:
    """Bodies of one answer, whole or in chunks."""

    def __init__(self, request: GenerationRequest) -> None:
        self._chat = isinstance(request, ChatRequest)
        self._logprobs = request.alternatives is not None
        self._include_usage = request.stream_options.include_usage
        self._choices = range(request.n * (1 if isinstance(request, ChatRequest) else len(request.prompt)))
        prefix = "chatcmpl" if self._chat else "cmpl"
        self._head = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": request.model}

    def whole(self, deltas: list[Delta], usage: Usage) -> dict[str, Any]:
        """The whole answer."""
        choices, recalled = [], []
        for index in self._choices:
            own = [delta for delta in deltas if delta.choice == index]
            text = "".join(delta.text for delta in own)
            content = {"message": _message(text)} if self._chat else {"text": text}
            entries = [entry for delta in own for entry in delta.logprobs]
            choices.append(self._choice(index, content, entries, own[-1].finish_reason))
            recalled += [passage for passage in own[-1].recalled if passage not in recalled]
        kind = "chat.completion" if self._chat else "text_completion"
        end = {"usage": usage.body(), "hmt": {"recalled": recalled}}
        return {**self._head, "object": kind, "choices": choices, **end}

    def opening(self) -> list[dict[str, Any]]:
        """Chunks that open a stream: the role of each choice of a chat answer."""
        if not self._chat:
            return []
        return [self._chunk([self._choice(index, {"delta": _message("")})]) for index in self._choices]

    def chunk(self, delta: Delta) -> dict[str, Any]:
        """The chunk of a delta."""
        content: dict[str, Any] = {"delta": {"content": delta.text}} if self._chat else {"text": delta.text}
        if delta.finish_reason is None:
            return self._chunk([self._choice(delta.choice, content, delta.logprobs)])
        content = {"delta": {}} if self._chat else content
        end = self._choice(delta.choice, content, reason=delta.finish_reason)
        return self._chunk([end], hmt={"recalled": delta.recalled})

    def closing(self, usage: Usage) -> list[dict[str, Any]]:
        """Chunks that close a stream: the usage, if the client asked for it."""
        return [self._chunk([], usage=usage.body())] if self._include_usage else []

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        usage = {"usage": None} if self._include_usage else {}
        return {**self._head, "object": kind, "choices": choices, **usage, **more}

    def _choice(
        self, index: int, content: dict[str, Any], entries: Any = None, reason: str | None = None
    ) -> dict[str, Any]:
        logprobs = None
        if self._logprobs and entries is not None:
            chat = {"content": list(entries), "refusal": None}
            logprobs = chat if self._chat else _completion_logprobs(entries)
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": reason}


def _message(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text, "refusal": None}


def _completion_logprobs(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Log-probabilities as completions have them; where texts are the same, the likeliest token counts."""
    return {
        "tokens": [entry["token"] for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": [
            {one["token"]: one["logprob"] for one in (entry, *reversed(entry["top_logprobs"]))} for entry in entries
        ],
    }
