"""uvicorn, with deadlines and caps on connections."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 30
"""Time for a client to send the head of a request, from connecting or from the end of the response before it."""

KEEP_ALIVE_SECONDS = 15
"""Time that a connection stays open without a request."""

GRACE_SECONDS = 10.0
"""Time for answers to be finished when the server is told to stop; those that are not by then end early."""

SEND_SECONDS = 5
"""Time to send what is left after that."""

MAX_HEAD_BYTES = 1 << 15


class DeadlineProtocol(H11Protocol):
    """HTTP/1.1 that closes connections whose next request does not come; uvicorn itself waits forever for a head."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first request."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._wait_for_request()

    def on_response_complete(self) -> None:
        """Wait for the next request, and for the rest of the last one's body."""
        super().on_response_complete()
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def _wait_for_request(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._close_without_request)

    def _close_without_request(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.timeout_keep_alive_handler()


class Server(uvicorn.Server):
    """Stops the service, not the connections, when answers take too long to finish: every client hears the end.

    Args:
        config: Configuration of uvicorn.
        stop_answers: Ends all answers.
    """

    def __init__(self, config: uvicorn.Config, stop_answers: Callable[[], None]) -> None:
        super().__init__(config)
        self._stop_answers = stop_answers

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; the second signal ends all answers. Unlike uvicorn's own, it raises no signal again at the end."""
        if self.should_exit:
            self._stop_answers()
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nothing new, and wait for the answers that are under way."""
        stopping = asyncio.get_running_loop().call_later(GRACE_SECONDS, self._stop_answers)
        try:
            await super().shutdown(sockets)
        finally:
            stopping.cancel()


def make_server(app: FastAPI, max_connections: int = 256) -> Server:
    """Make a server for an application; `run(sockets=[...])` runs it on listening sockets until it is told to stop.

    Nothing that a client sends is logged. Requests with ambiguous heads (two lengths, a space before a colon) are
    refused by h11, the strict one of uvicorn's two parsers.

    Args:
        app: The application, made by `create_app`.
        max_connections: Open connections; requests on further ones are refused with status 503.
    """
    return Server(
        uvicorn.Config(
            app,
            http=DeadlineProtocol,
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=max_connections,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=math.ceil(GRACE_SECONDS) + SEND_SECONDS,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        ),
        stop_answers=app.state.service.stop,
    )
