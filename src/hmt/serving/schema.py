"""The OpenAI API as pydantic models: what clients send, and what they get.

A field that would change the answer is served or refused. `HARMLESS` lists the fields that are accepted and ignored,
`NEUTRAL` the values of other fields that ask for nothing; any other field is an error that names it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, ValidationError, model_validator

from hmt.options import GREEDY_TEMPERATURE
from hmt.serving.jobs import GenerationRequest, RequestError
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
    "continue_final_message": (False,),
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

HARMLESS_IN_MESSAGES = frozenset({"annotations", "refusal"})
"""Fields of a message that clients send back as they got them."""

MAX_CHOICES = 16
MAX_PROMPTS = 128
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 1000
MAX_TOP_LOGPROBS = 20
MAX_BIASED_TOKENS = 1024
INT32 = (1 << 31) - 1
INT64 = (1 << 63) - 1

Model = TypeVar("Model", bound=BaseModel)


def parse(model: type[Model], body: Any) -> Model:
    """A validated request.

    Raises:
        RequestError: If the body is not one; names the field.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        param = str(first["loc"][0]) if first["loc"] else None
        if first["type"] == "extra_forbidden":
            raise RequestError(f"{'.'.join(map(str, first['loc']))} is not supported", param=param) from error
        where = f"{'.'.join(map(str, first['loc']))}: " if param else ""
        raise RequestError(f"{where}{first['msg']}", param=param) from error


class _Strict(BaseModel):
    """Takes values of the right type and known fields only; null means that a field was not given."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_null(cls, body: Any) -> Any:
        return {k: v for k, v in body.items() if v is not None} if isinstance(body, dict) else body


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

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_joined)] = ""
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_harmless(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        if body.get("role") != "assistant" and body.get("content") is None:
            raise ValueError("only a message of the assistant may have no content")
        return {k: v for k, v in body.items() if k not in HARMLESS_IN_MESSAGES and not (k == "tool_calls" and v == [])}

    def for_template(self) -> Message:
        """The message as chat templates take it; they know no developers."""
        role = "system" if self.role == "developer" else self.role
        name = {} if self.name is None else {"name": self.name}
        return {"role": role, "content": self.content, **name}


class StreamOptions(_Strict):
    """How an answer is streamed."""

    include_usage: bool = False
    include_obfuscation: bool = False  # padding against listeners: ignored, it is no part of the answer


StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
StopStrings = Annotated[
    list[StopString],
    FailFast(),
    Field(max_length=MAX_STOPS),
    BeforeValidator(lambda stop: [stop] if isinstance(stop, str) else stop),
]
BiasedToken = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


class _Request(_Strict):
    """What both kinds of requests have in common."""

    model: str
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, le=INT32)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    logit_bias: dict[BiasedToken, Annotated[float, Field(ge=-100, le=100)]] = Field({}, max_length=MAX_BIASED_TOKENS)
    stop: StopStrings = []
    seed: int | None = Field(None, ge=-INT64 - 1, le=INT64)
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    prompt_cache_key: str = ""

    @model_validator(mode="before")
    @classmethod
    def _drop_what_changes_nothing(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        return {k: v for k, v in body.items() if k not in HARMLESS and v not in NEUTRAL.get(k, ())}

    def _generation(self, **more: Any) -> GenerationRequest:
        settings: dict[str, Any] = {}
        if self.temperature is not None:
            settings["do_sample"] = self.temperature >= GREEDY_TEMPERATURE
            if settings["do_sample"]:
                settings["temperature"] = self.temperature
        for name in ("top_p", "top_k", "repetition_penalty"):
            if (value := getattr(self, name)) is not None:
                settings[name] = value
        if self.logit_bias:
            settings["sequence_bias"] = {(int(token),): bias for token, bias in self.logit_bias.items()}
        return GenerationRequest(
            choices=self.n,
            settings=settings,
            stop=tuple(self.stop),
            seed=self.seed,
            conversation=self.prompt_cache_key,
            **more,
        )


class ChatRequest(_Request):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], FailFast(), Field(min_length=1)]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_TOP_LOGPROBS)
    tools: list[Any] = []
    tool_choice: Literal["none", "auto"] = "auto"

    @model_validator(mode="after")
    def _check_combinations(self) -> ChatRequest:
        if self.tools and self.tool_choice != "none":
            raise RequestError('tools are not supported, except with tool_choice "none"', param="tools")
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
        return self

    def generation_request(self) -> GenerationRequest:
        """The request as the engine takes it."""
        return self._generation(
            messages=[message.for_template() for message in self.messages],
            max_tokens=self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens,
            top_logprobs=self.top_logprobs if self.logprobs else None,
        )


def _prompts(prompt: Any) -> Any:
    """A list of prompts, each a text or a list of token ids, from the four forms that the API has."""
    if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and isinstance(prompt[0], int)):
        prompt = [prompt]
    if not isinstance(prompt, list) or not 0 < len(prompt) <= MAX_PROMPTS:
        raise ValueError(f"expected a text, a list of token ids, or a list of 1 to {MAX_PROMPTS} of these")
    for one in prompt:
        tokens = isinstance(one, list) and all(type(token) is int and 0 <= token <= INT32 for token in one)
        if not isinstance(one, str) and not tokens:
            raise ValueError("expected texts or lists of token ids")
    return prompt


class CompletionRequest(_Request):
    """Body of /v1/completions."""

    prompt: Annotated[list[Any], BeforeValidator(_prompts)]
    max_tokens: int | None = Field(None, ge=0)
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: bool = False
    best_of: int | None = None

    @model_validator(mode="after")
    def _check_combinations(self) -> CompletionRequest:
        if self.best_of not in (None, self.n):
            raise RequestError("best_of is not supported, except with the value of n", param="best_of")
        return self

    def generation_request(self) -> GenerationRequest:
        """The request as the engine takes it."""
        return self._generation(
            prompts=tuple(self.prompt),
            max_tokens=self.max_tokens,
            top_logprobs=self.logprobs,
            echo=self.echo,
        )
