"""uvicorn, with deadlines and caps on connections."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 30
"""Time for a client to send the head of a request, from connecting or from the end of the response before it."""

KEEP_ALIVE_SECONDS = 15
"""Time that a connection stays open without a request."""

GRACE_SECONDS = 10
"""Time for answers that are under way to be finished when the server is told to stop."""

MAX_HEAD_BYTES = 1 << 15


class DeadlineProtocol(H11Protocol):
    """HTTP/1.1 that closes connections whose next request does not come; uvicorn itself waits forever for a head."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first request."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._wait_for_request()

    def on_response_complete(self) -> None:
        """Wait for the next request, and for what is left of the last one's body."""
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


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        OSError: If the address cannot be listened on; names it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise OSError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error


def make_server(app: ASGIApp, max_connections: int = 256) -> uvicorn.Server:
    """A server for an application; `run(sockets=[listen(host, port)])` runs it until it is told to stop.

    Nothing that a client sends is logged. Requests with ambiguous heads (two lengths, a space before a colon) are
    refused by h11, the strict one of uvicorn's two parsers.

    Args:
        app: The application.
        max_connections: Open connections; requests on further ones are refused with status 503.
    """
    settings: dict[str, Any] = {"http": DeadlineProtocol, "ws": "none", "lifespan": "on"}
    return uvicorn.Server(
        uvicorn.Config(
            app,
            **settings,
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=max_connections,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        )
    )
