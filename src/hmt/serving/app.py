"""The OpenAI API over HTTP: routes, keys, turns at the model, and an answer in JSON for every error."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from typing import Annotated, Any, TypeVar
from weakref import WeakValueDictionary

import anyio
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from hmt.options import LOOPBACK
from hmt.pretrained import first_line
from hmt.serving.engine import Engine
from hmt.serving.schema import (
    ChatRequest,
    CompletionRequest,
    Delta,
    GenerationRequest,
    Reply,
    RequestError,
    Usage,
    parse,
)

logger = logging.getLogger(__name__)

Event = Delta | Usage | RequestError
Result = TypeVar("Result")


class Turns:
    """One request at a time has the model. Conversations take turns; each one's requests keep their order.

    Args:
        size: Requests that may wait; further ones are refused.

    Attributes:
        closed: Set to refuse all requests that have not had their turn.
    """

    def __init__(self, size: int) -> None:
        self.closed = False
        self._size = size
        self._waiting = 0
        self._model = asyncio.Lock()
        self._conversations: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def take(self, conversation: Hashable) -> AsyncIterator[None]:
        """Have the model in this block.

        Raises:
            RequestError: If too many wait, or the server stops; status 503.
        """
        if self._waiting >= self._size:
            raise RequestError("the server is busy: too many requests are waiting", status=503)
        # Locks serve whoever came first. One request of each conversation at a time stands in line for the model.
        own = self._conversations.setdefault(conversation, asyncio.Lock())
        async with AsyncExitStack() as held:
            self._waiting += 1
            try:
                await held.enter_async_context(own)
                await held.enter_async_context(self._model)
            finally:
                self._waiting -= 1
            if self.closed:
                raise RequestError("the server is shutting down", status=503)
            yield


class Service:
    """An engine on a thread of its own, and the requests that wait for it.

    Args:
        engine: Generates.
        name: Name of the model for clients.
        keys: Keys that clients may send.

    Attributes:
        answered: Requests that were answered to the end.
    """

    def __init__(self, engine: Engine, name: str, keys: Sequence[str]) -> None:
        self.engine = engine
        self.name = name
        self.keys = [key.encode() for key in keys]
        self.answered = 0
        self._turns = Turns(engine.limits.waiting)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hmt-engine")

    def start(self, request: GenerationRequest, owner: str, leaving: ExitStack) -> AsyncIterator[Delta | Usage]:
        """Queue a request.

        Args:
            request: The request.
            owner: The client's key.
            leaving: Closed when nobody waits for the answer any more; the generation then stops.

        Returns:
            The answer as it is generated; `Usage` comes last. A request that fails raises `RequestError` here.
        """
        events: asyncio.Queue[Event] = asyncio.Queue()
        left = threading.Event()
        task = asyncio.create_task(self._run(request, owner, events, left))
        leaving.callback(task.cancel)
        leaving.callback(left.set)
        return _until_usage(events)

    def stop(self) -> None:
        """Refuse what waits, and end the answer under way after the token at hand."""
        self._turns.closed = True
        self.engine.closing = True

    async def close(self) -> None:
        """Stop, and wait for the engine's thread to end."""
        self.stop()
        await asyncio.to_thread(self._thread.shutdown)

    async def _run(
        self, request: GenerationRequest, owner: str, events: asyncio.Queue[Event], left: threading.Event
    ) -> None:
        """Wait for the turn of a request, and generate. Whatever happens, whoever waits hears of it."""
        loop = asyncio.get_running_loop()

        def deliver(delta: Delta) -> None:
            loop.call_soon_threadsafe(events.put_nowait, delta)

        try:
            async with self._turns.take((owner, request.prompt_cache_key or request.opening)):
                answer = self.engine.answer
                last: Event = await loop.run_in_executor(self._thread, answer, request, owner, deliver, left.is_set)
            self.answered += 1
        except RequestError as error:
            last = error
        except FloatingPointError as error:
            logger.error("a request failed: %s", first_line(error))
            last = RequestError(first_line(error), status=500)
        except Exception:
            logger.exception("a request failed")
            last = RequestError("the model failed; the server's log says why", status=500)
        events.put_nowait(last)


async def _until_usage(events: asyncio.Queue[Event]) -> AsyncIterator[Delta | Usage]:
    while True:
        event = await events.get()
        if isinstance(event, RequestError):
            raise event
        yield event
        if isinstance(event, Usage):
            return


def create_app(engine: Engine, name: str, *, keys: Sequence[str] = (), cors_origins: Sequence[str] = ()) -> FastAPI:
    """Make the application that serves one model under one name.

    Args:
        engine: Answers; stopped when the application shuts down.
        name: Name of the model for clients.
        keys: Keys that clients may send; without any, only requests to a loopback name are answered.
        cors_origins: Web pages that may use the server from a browser.

    Returns:
        The application; `app.state.service` is its `Service`.
    """
    service = Service(engine, name, keys)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    app = FastAPI(lifespan=lifespan, openapi_url=None, redirect_slashes=False)
    app.state.service = service
    app.include_router(router)
    app.add_exception_handler(HTTPException, _refuse)
    app.add_exception_handler(ClientDisconnect, lambda http, error: Response(status_code=499))  # nobody reads it
    app.add_exception_handler(Exception, _fail)
    app.add_api_route("/health", _health, methods=["GET", "HEAD"])
    if cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(cors_origins), allow_methods=["*"], allow_headers=["*"])
    return app


def service_of(http: Request) -> Service:
    """The service behind the application of a request."""
    service: Service = http.app.state.service
    return service


Served = Annotated[Service, Depends(service_of)]


async def authenticate(http: Request, service: Served) -> str:
    """Check the key of a request; its number is the owner. Without keys, check that the Host is a loopback name.

    The latter keeps web pages out that reach for a local server through a name that they control.

    Raises:
        RequestError: If the key is missing or wrong (401), or the name is not a loopback one (403).
    """
    if not service.keys:
        if _host_name(http.headers.get("host", "")) not in LOOPBACK:
            raise RequestError("without a key this server answers requests to loopback names only", status=403)
        return ""
    scheme, _, given = http.headers.get("authorization", "").partition(" ")
    matches = [hmac.compare_digest(given.strip().encode(), key) for key in service.keys]
    if scheme.lower() != "bearer" or not any(matches):
        raise RequestError("the API key is missing or wrong", status=401, code="invalid_api_key")
    return str(matches.index(True))


Owner = Annotated[str, Depends(authenticate)]


async def read_json(http: Request, service: Served, owner: Owner) -> Any:
    """Read the JSON body of a request that has shown its key.

    Raises:
        RequestError: If it is too large (413), too slow (408), of another type (415), or not JSON (400).
    """
    limits = service.engine.limits
    if http.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestError("the body must have the content type application/json", status=415)
    body = bytearray()
    try:
        with anyio.fail_after(limits.body_seconds):
            async for part in http.stream():
                body += part
                if len(body) > limits.body_bytes:
                    raise RequestError(f"the body exceeds {limits.body_bytes} bytes", status=413)
        return json.loads(body)
    except TimeoutError as error:
        raise RequestError(f"the body took longer than {limits.body_seconds:g} seconds", status=408) from error
    except (ValueError, RecursionError) as error:
        raise RequestError("the body is not JSON in UTF-8") from error


async def until_left() -> AsyncIterator[ExitStack]:
    """Give a stack that is closed once the answer has been sent or the client has left."""
    with ExitStack() as stack:
        yield stack


Body = Annotated[Any, Depends(read_json)]
Leaving = Annotated[ExitStack, Depends(until_left)]
router = APIRouter(prefix="/v1")


@router.get("/models")
@router.get("/models/")
async def list_models(service: Served, owner: Owner) -> dict[str, Any]:
    """List the one model."""
    return {"object": "list", "data": [_model(service)]}


@router.get("/models/{name:path}")
async def retrieve_model(service: Served, owner: Owner, name: str) -> dict[str, Any]:
    """Describe the model of that name, which may hold slashes."""
    _check_model(service, name.rstrip("/"))
    return _model(service)


@router.post("/chat/completions")
@router.post("/chat/completions/")
async def complete_chat(http: Request, service: Served, owner: Owner, body: Body, leaving: Leaving) -> Response:
    """Answer a conversation."""
    return await _respond(http, service, owner, parse(ChatRequest, body), leaving)


@router.post("/completions")
@router.post("/completions/")
async def complete(http: Request, service: Served, owner: Owner, body: Body, leaving: Leaving) -> Response:
    """Continue prompts."""
    return await _respond(http, service, owner, parse(CompletionRequest, body), leaving)


async def _health() -> dict[str, str]:
    return {"status": "ok"}


async def _respond(
    http: Request, service: Service, owner: str, request: GenerationRequest, leaving: ExitStack
) -> Response:
    """Generate, and answer whole or as a stream; an error that comes before any text has a status of its own."""
    _check_model(service, request.model)
    events = service.start(request, owner, leaving)
    reply = Reply(request)
    if request.stream:
        first = await _while_connected(http, anext(events))
        chunks = _chunks(reply, first, events)
        return StreamingResponse(chunks, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
    deltas, usage = await _while_connected(http, _gather(events))
    return JSONResponse(reply.whole(deltas, usage))


async def _gather(events: AsyncIterator[Any]) -> tuple[list[Delta], Usage]:
    *deltas, usage = [event async for event in events]
    return deltas, usage


async def _while_connected(http: Request, work: Awaitable[Result]) -> Result:
    """Do some work, but not for a client that has left.

    Raises:
        ClientDisconnect: If it leaves.
    """

    async def watch() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.create_task(watch())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return await working
    finally:
        working.cancel()
        watching.cancel()


async def _chunks(reply: Reply, event: Delta | Usage, events: AsyncIterator[Delta | Usage]) -> AsyncIterator[bytes]:
    """Server-sent events of an answer, from its first event on."""
    for body in reply.opening():
        yield _server_sent(body)
    try:
        while isinstance(event, Delta):
            yield _server_sent(reply.chunk(event))
            event = await anext(events)
    except RequestError as error:
        yield _server_sent(error.body())
        return
    for body in reply.closing(event):
        yield _server_sent(body)
    yield b"data: [DONE]\n\n"


def _server_sent(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, allow_nan=False).encode() + b"\n\n"


def _model(service: Service) -> dict[str, Any]:
    return {"id": service.name, "object": "model", "created": 0, "owned_by": "hmt"}


def _check_model(service: Service, name: str) -> None:
    if name != service.name:
        message = f"there is no model {name!r}; this server has {service.name!r}"
        raise RequestError(message, status=404, param="model", code="model_not_found")


def _host_name(host: str) -> str:
    """Name in a Host header, without its port; a request of HTTP/1.0 may have none."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower() or "localhost"


async def _refuse(http: Request, error: Exception) -> Response:
    """Answer an error of a request, or one for a path or method that does not exist."""
    assert isinstance(error, HTTPException)
    if http.method == "OPTIONS" and error.status_code == 405:  # lists the methods, and allows no web page anything
        return Response(status_code=204, headers=error.headers)
    if not isinstance(error, RequestError):
        told = RequestError(f"{http.method} {http.url.path}: {error.detail}", status=error.status_code)
        return JSONResponse(told.body(), error.status_code, error.headers)
    return JSONResponse(error.body(), error.status_code, error.headers)


async def _fail(http: Request, error: Exception) -> Response:
    """Answer a fault of the server, which is logged."""
    return JSONResponse(RequestError("the server failed; its log says why", status=500).body(), 500)
