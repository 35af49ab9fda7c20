"""The OpenAI API over HTTP: routes, keys, and an answer in JSON for every error."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from hmt.options import LOOPBACK
from hmt.serving.engine import Engine
from hmt.serving.jobs import RETRY_SECONDS, ChoiceEnd, Done, Event, GenerationRequest, Limits, Piece, RequestError
from hmt.serving.responses import Replies, error_body
from hmt.serving.schema import ChatRequest, CompletionRequest, parse


class AsciiJSONResponse(JSONResponse):
    """JSON in ASCII, which can hold every string that a client may send, lone surrogates included."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content, allow_nan=False).encode("ascii")


def create_app(engine: Engine, name: str, *, keys: Sequence[str] = (), cors_origins: Sequence[str] = ()) -> FastAPI:
    """The application that serves one model under one name.

    Args:
        engine: Answers; closed when the application shuts down.
        name: Name of the model for clients.
        keys: Keys that clients may send; without any, only requests to a loopback name are answered.
        cors_origins: Web pages that may use the server from a browser.

    Returns:
        The application; `app.state.answered` counts the requests that were answered.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(engine.close)

    app = FastAPI(lifespan=lifespan, openapi_url=None, default_response_class=AsciiJSONResponse, redirect_slashes=False)
    app.state.engine = engine
    app.state.name = name
    app.state.keys = [key.encode() for key in keys]
    app.state.answered = 0
    app.include_router(router)
    app.add_exception_handler(RequestError, _refuse)
    app.add_exception_handler(HTTPException, _refuse_http)
    app.add_exception_handler(Exception, _fail)
    app.add_api_route("/health", _health, methods=["GET", "HEAD"])
    if cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(cors_origins), allow_methods=["*"], allow_headers=["*"])
    return app


async def authenticate(http: Request) -> str:
    """Owner of a request: the number of its key. Without keys, whoever calls this machine by a name of its own.

    The latter keeps web pages out that reach for a local server through a name that they control.

    Raises:
        RequestError: If the key is missing or wrong (401), or the name is not a loopback one (403).
    """
    keys = http.app.state.keys
    if not keys:
        if _host_name(http.headers.get("host", "")) not in LOOPBACK:
            raise RequestError("without a key this server answers requests to loopback names only", status=403)
        return ""
    scheme, _, given = http.headers.get("authorization", "").partition(" ")
    matches = [hmac.compare_digest(given.strip().encode(), key) for key in keys]
    if scheme.lower() != "bearer" or not any(matches):
        raise RequestError("the API key is missing or wrong", status=401, code="invalid_api_key")
    return str(matches.index(True))


Owner = Annotated[str, Depends(authenticate)]
router = APIRouter(prefix="/v1")


@router.get("/models")
@router.get("/models/")
async def list_models(http: Request, owner: Owner) -> dict[str, Any]:
    """The one model."""
    return {"object": "list", "data": [_model(http)]}


@router.get("/models/{name:path}")
async def retrieve_model(http: Request, owner: Owner, name: str) -> dict[str, Any]:
    """The model of that name, which may hold slashes."""
    _check_model(http, name.rstrip("/"))
    return _model(http)


@router.post("/chat/completions")
@router.post("/chat/completions/")
async def complete_chat(http: Request, owner: Owner) -> Response:
    """Answer a conversation."""
    body = parse(ChatRequest, await read_json(http, http.app.state.engine.limits))
    _check_model(http, body.model)
    return await _respond(http, owner, body.generation_request(), body)


@router.post("/completions")
@router.post("/completions/")
async def complete(http: Request, owner: Owner) -> Response:
    """Continue prompts."""
    body = parse(CompletionRequest, await read_json(http, http.app.state.engine.limits))
    _check_model(http, body.model)
    return await _respond(http, owner, body.generation_request(), body)


async def _health() -> dict[str, str]:
    return {"status": "ok"}


async def read_json(http: Request, limits: Limits) -> Any:
    """The JSON body of a request.

    Raises:
        RequestError: If it is too large (413), too slow (408), of another type (415), or not JSON (400).
    """
    if http.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestError("the body must have the content type application/json", status=415)
    too_large = RequestError(f"the body exceeds {limits.body_bytes} bytes", status=413)
    announced = http.headers.get("content-length", "0")
    if not announced.isdecimal() or len(announced) > 12 or int(announced) > limits.body_bytes:
        raise too_large
    body = bytearray()
    try:
        with anyio.fail_after(limits.body_seconds):
            async for part in http.stream():
                body += part
                if len(body) > limits.body_bytes:
                    raise too_large
    except TimeoutError as error:
        raise RequestError(f"the body took longer than {limits.body_seconds:g} seconds", status=408) from error
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError("the body is not JSON in UTF-8") from error


async def _respond(
    http: Request, owner: str, request: GenerationRequest, body: ChatRequest | CompletionRequest
) -> Response:
    """Have a request answered, whole or as server-sent events."""
    replies = Replies(body.model, request, body.stream and body.stream_options.include_usage)
    waiting = Waiting(http, request, owner)
    if not body.stream:
        return AsciiJSONResponse(replies.whole(await waiting.all()))
    return EventStream(waiting, replies, await waiting.first())


class Waiting:
    """A client that waits for the engine to answer its request. If it leaves, the generation stops.

    Args:
        http: The HTTP request, its body read.
        request: What the client wants.
        owner: Whose request it is.

    Raises:
        RequestError: If too many requests wait; status 503.
    """

    def __init__(self, http: Request, request: GenerationRequest, owner: str) -> None:
        self._http = http
        self._engine: Engine = http.app.state.engine
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def deliver(event: Event) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._events.put_nowait, event)

        self._job = self._engine.submit(request, owner, deliver)

    async def all(self) -> list[Event]:
        """All events of the answer.

        Raises:
            RequestError: If the request fails.
        """
        events: list[Event] = []
        with self._watched():
            try:
                while not events or not isinstance(events[-1], Done):
                    events.append(await self.next())
            finally:
                self.cancel()
        return events

    async def first(self) -> Event:
        """The first event; an error that comes before any text has a status of its own.

        Raises:
            RequestError: If the request fails.
        """
        with self._watched():
            try:
                return await self.next()
            except asyncio.CancelledError:
                self.cancel()
                raise

    async def next(self) -> Event:
        """The next event.

        Raises:
            RequestError: If the request fails.
        """
        event = await self._events.get()
        if isinstance(event, RequestError):
            raise event
        if isinstance(event, Done):
            self._http.app.state.answered += 1
        return event

    def cancel(self) -> None:
        """Stop the generation; nothing happens if it has ended."""
        self._engine.cancel(self._job)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Stop the generation if the client leaves in this block."""
        watching = asyncio.create_task(self._cancel_when_left())
        try:
            yield
        finally:
            watching.cancel()

    async def _cancel_when_left(self) -> None:
        while (await self._http.receive())["type"] != "http.disconnect":
            pass
        self.cancel()


class EventStream(StreamingResponse):
    """An answer as server-sent events.

    Args:
        waiting: Gives the events.
        replies: Makes chunks of them.
        first: The first event.
    """

    media_type = "text/event-stream"

    def __init__(self, waiting: Waiting, replies: Replies, first: Event) -> None:
        super().__init__(self._chunks(waiting, replies, first), headers={"Cache-Control": "no-store"})
        self._waiting = waiting

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; if the client leaves, the generation stops."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._waiting.cancel()

    async def _chunks(self, waiting: Waiting, replies: Replies, event: Event) -> AsyncIterator[bytes]:
        for body in replies.opening():
            yield _server_sent(body)
        try:
            while isinstance(event, Piece | ChoiceEnd):
                yield _server_sent(replies.chunk(event))
                event = await waiting.next()
        except RequestError as error:
            yield _server_sent(error_body(error))
            return
        assert isinstance(event, Done)
        for body in replies.closing(event):
            yield _server_sent(body)
        yield b"data: [DONE]\n\n"


def _server_sent(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, allow_nan=False).encode("ascii") + b"\n\n"


def _model(http: Request) -> dict[str, Any]:
    return {"id": http.app.state.name, "object": "model", "created": 0, "owned_by": "hmt"}


def _check_model(http: Request, name: str) -> None:
    own = http.app.state.name
    if name != own:
        message = f"there is no model {name!r}; this server has {own!r}"
        raise RequestError(message, status=404, param="model", code="model_not_found")


def _host_name(host: str) -> str:
    """Name in a Host header, without its port; a request of HTTP/1.0 may have none."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower() or "localhost"


async def _refuse(http: Request, error: Exception) -> Response:
    """An error of a request."""
    assert isinstance(error, RequestError)
    headers = {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status == 503:
        headers["Retry-After"] = str(RETRY_SECONDS)
    return AsciiJSONResponse(error_body(error), error.status, headers)


async def _refuse_http(http: Request, error: Exception) -> Response:
    """No such path or method. OPTIONS lists the methods, and allows no web page anything."""
    assert isinstance(error, HTTPException)
    if http.method == "OPTIONS" and error.status_code == 405:
        return Response(status_code=204, headers=error.headers)
    body = error_body(RequestError(f"{http.method} {http.url.path}: {error.detail}", status=error.status_code))
    return AsciiJSONResponse(body, error.status_code, error.headers)


async def _fail(http: Request, error: Exception) -> Response:
    """A fault of the server, which is logged."""
    return AsciiJSONResponse(error_body(RequestError("the server failed; its log says why", status=500)), 500)
