"""What passes between the HTTP side and the engine: a request, what is generated for it, and who is next."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hmt.text.chat import Message

RETRY_SECONDS = 2
"""Clients that find the server busy are told to come back after so many seconds."""


class RequestError(Exception):
    """A request that cannot be served.

    Args:
        message: For the client, one line.
        status: HTTP status.
        param: Field of the request that the error is about.
        code: Error code of the OpenAI API, where it has one.
    """

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code


@dataclass(frozen=True)
class Limits:
    """What one request may take.

    Attributes:
        body_bytes: Size of a request's body.
        body_seconds: Time for a client to send it.
        tokens: New tokens of each choice; requests for more get this many.
        seconds: Time for reading a prompt and generating all choices, counted from the start of the request's turn.
        waiting: Requests that wait for their turn; further ones are refused.
    """

    body_bytes: int = 1 << 20
    body_seconds: float = 30.0
    tokens: int = 4096
    seconds: float = 300.0
    waiting: int = 64


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """What a client wants generated.

    Attributes:
        messages: A conversation, or None where `prompts` are given.
        prompts: Texts or lists of token ids to continue.
        choices: Choices for each prompt.
        max_tokens: New tokens of each choice; the server's default where None.
        settings: Arguments of `generate` that the client gives.
        stop: Strings that end a choice and are not part of it.
        seed: Seed of sampling, or None.
        top_logprobs: Return the log-probability of each token and of so many alternatives; None returns none.
        echo: Return the prompt before the new text.
        conversation: The client's name for the conversation; with it, requests share what was read.
    """

    messages: list[Message] | None = None
    prompts: tuple[str | list[int], ...] = ()
    choices: int = 1
    max_tokens: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    seed: int | None = None
    top_logprobs: int | None = None
    echo: bool = False
    conversation: str = ""

    @property
    def opening(self) -> str:
        """How the text begins: the same for all turns of a conversation."""
        if self.messages is not None:
            user = (message["content"] for message in self.messages if message["role"] == "user")
            return next(user, "")
        return str(self.prompts[0][:100])


@dataclass(frozen=True)
class TokenLogprob:
    """A token and how likely it was.

    Attributes:
        text: Text of the token where it stands.
        logprob: Natural logarithm of its probability; None for the first token of a text.
        top: Likeliest tokens at this place with theirs, likeliest first.
        offset: Characters of the choice before the token.
    """

    text: str
    logprob: float | None
    top: tuple[tuple[str, float], ...]
    offset: int


@dataclass(frozen=True)
class RecalledPassage:
    """A passage of what was read before that was recalled for an answer.

    Attributes:
        text: The passage.
        tokens: Its length in tokens.
        start: Tokens before it in the text that was remembered.
    """

    text: str
    tokens: int
    start: int


@dataclass(frozen=True)
class Piece:
    """New text of a choice, with the log-probabilities of its tokens if they were asked for."""

    choice: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class ChoiceEnd:
    """The end of a choice: "stop" if the model or a stop string ended it, "length" if a limit did."""

    choice: int
    reason: str
    recalled: tuple[RecalledPassage, ...] = ()


@dataclass(frozen=True)
class Done:
    """The end of a request.

    Attributes:
        prompt_tokens: Tokens of the prompts, without those of the memory file.
        cached_tokens: Those of them that had been read for an earlier turn of the conversation.
        completion_tokens: Tokens generated.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


Event = Piece | ChoiceEnd | Done | RequestError
"""What an engine delivers; `Done` or an error comes last."""


class Job:
    """A request that waits for its turn or has it.

    Args:
        request: What is wanted.
        owner: Whose request it is; what was read is never shared between owners.
        deliver: Called with each event, from the engine's thread.
    """

    def __init__(self, request: GenerationRequest, owner: str, deliver: Callable[[Event], None]) -> None:
        self.request = request
        self.owner = owner
        self.deliver = deliver
        self._cancelled = threading.Event()

    @property
    def cancelled(self) -> bool:
        """True once nobody waits for the result."""
        return self._cancelled.is_set()

    @property
    def lane(self) -> tuple[str, str]:
        """Whom this request takes turns as: a conversation of an owner."""
        return self.owner, self.request.conversation or self.request.opening

    def cancel(self) -> None:
        """Stop the generation after the token at hand; nothing happens if it has ended."""
        self._cancelled.set()


class FairQueue:
    """Jobs that wait, at most so many. Conversations take turns; each one's jobs keep their order.

    Args:
        size: Jobs that may wait.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lanes: OrderedDict[tuple[str, str], deque[Job]] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, job: Job) -> None:
        """Add a job.

        Raises:
            RequestError: If too many wait, or the queue is closed; status 503.
        """
        with self._changed:
            if self._closed:
                raise RequestError("the server is shutting down", status=503)
            if sum(map(len, self._lanes.values())) >= self._size:
                raise RequestError("the server is busy: too many requests are waiting", status=503)
            self._lanes.setdefault(job.lane, deque()).append(job)
            self._changed.notify()

    def get(self) -> Job | None:
        """The next job, once there is one; None once the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._lanes)
            if self._closed:
                return None
            lane, jobs = self._lanes.popitem(last=False)
            job = jobs.popleft()
            if jobs:
                self._lanes[lane] = jobs  # at the end: the others come first
            return job

    def remove(self, job: Job) -> bool:
        """Take a job out; False if it does not wait any more."""
        with self._changed:
            jobs = self._lanes.get(job.lane, deque())
            if job not in jobs:
                return False
            jobs.remove(job)
            if not jobs:
                del self._lanes[job.lane]
            return True

    def close(self) -> list[Job]:
        """Accept no more jobs; those that still wait are returned."""
        with self._changed:
            self._closed = True
            waiting = [job for jobs in self._lanes.values() for job in jobs]
            self._lanes.clear()
            self._changed.notify_all()
            return waiting
