"""The OpenAI protocol over HTTP, for clients on this machine or behind a proxy."""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import selectors
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from hmt.pretrained import first_line
from hmt.serving.engine import Engine, Finish
from hmt.serving.protocol import CompletionRequest, Reply, RequestError, parse

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 * 1024 * 1024
IDLE_SECONDS = 60
LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")


class Server(ThreadingHTTPServer):
    """Serves one model under one name.

    Args:
        address: Host and port; port 0 takes a free one.
        engine: Answers.
        name: Of the model, as clients ask for it.
        api_key: What clients must send, or None for none.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int], engine: Engine, name: str, api_key: str | None) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, Handler)
        self.engine = engine
        self.name = name
        self.api_key = api_key
        self.answered = 0

    def server_close(self) -> None:
        """Close the port, and stop what is being written."""
        super().server_close()
        self.engine.close()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "hmt"
    sys_version = ""
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        """Health and the list of models."""
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # what comes after the headers is not read, and is no request
        try:
            if self.path == "/health":
                return self._send(200, {"status": "ok"})
            self._admit()
            model = {"id": self.server.name, "object": "model", "created": 0, "owned_by": "hmt"}
            if self.path == "/v1/models":
                return self._send(200, {"object": "list", "data": [model]})
            if self.path == f"/v1/models/{self.server.name}":
                return self._send(200, model)
            raise RequestError(f"there is nothing at {self.path}", status=404)
        except RequestError as error:
            self._refuse(error)

    def do_POST(self) -> None:
        """Completions."""
        try:
            self._admit()
            body = self._body()
            if self.path not in ("/v1/chat/completions", "/v1/completions"):
                raise RequestError(f"there is nothing at {self.path}", status=404)
            chat = self.path == "/v1/chat/completions"
            request = parse(body, chat)
            if request.model != self.server.name:
                raise RequestError(
                    f"there is no model {request.model!r}; this server has {self.server.name!r}",
                    status=404,
                    param="model",
                    code="model_not_found",
                )
            self._answer(request, Reply(self.server.name, chat))
        except RequestError as error:
            self._refuse(error)
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True  # the client went away

    def _admit(self) -> None:
        """Let in whoever has the key; without one, whoever calls this machine by a name of its own.

        The latter keeps web pages out that reach for a local server through a name that they control.
        """
        key = self.server.api_key
        if key is None:
            host = self.headers.get("Host", "").rsplit(":", 1)[0] or "localhost"
            if host not in LOOPBACK:
                raise RequestError(f"without a key this server answers on loopback only, not as {host!r}", status=403)
        else:
            scheme, _, given = self.headers.get("Authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), key.encode()):
                raise RequestError("the API key is missing or wrong", status=401, code="invalid_api_key")

    def _body(self) -> Any:
        """The JSON that came, read whole so that the connection can be used again."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or "Transfer-Encoding" in self.headers:
            raise RequestError("the request needs a Content-Length", status=411)
        if len(length) > 12 or int(length) > MAX_BODY_BYTES:
            raise RequestError(f"the request exceeds {MAX_BODY_BYTES} bytes", status=413)
        raw = self.rfile.read(int(length))
        if self.headers.get_content_type() != "application/json":
            raise RequestError("the body must be application/json", status=415)
        try:
            return json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"the body is not JSON: {first_line(error)}") from error

    def _answer(self, request: CompletionRequest, reply: Reply) -> None:
        answer = self.server.engine.answer(request)
        try:
            part = self._next(answer)  # what cannot be served is known here, while a status can still be sent
            if request.stream:
                self._stream(part, answer, request, reply)
            else:
                texts = []
                while not isinstance(part, Finish):
                    texts.append(part)
                    self._check_client()
                    part = self._next(answer)
                self._send(200, reply.whole("".join(texts), part.reason, part.usage))
            self.server.answered += 1
        finally:
            answer.close()  # type: ignore[attr-defined]  # it is a generator

    def _next(self, answer: Iterator[str | Finish]) -> str | Finish:
        """The next part that holds anything.

        Raises:
            BrokenPipeError: If the client has gone meanwhile.
        """
        while (part := next(answer)) == "":
            self._check_client()
        return part

    def _check_client(self) -> None:
        """Raise BrokenPipeError if the client has closed its end."""
        with selectors.DefaultSelector() as waiting:
            waiting.register(self.connection, selectors.EVENT_READ)
            if waiting.select(timeout=0) and not self.connection.recv(1, socket.MSG_PEEK):
                raise BrokenPipeError("the client has gone")

    def _stream(
        self, part: str | Finish, answer: Iterator[str | Finish], request: CompletionRequest, reply: Reply
    ) -> None:
        """Server-sent events, until the connection closes."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        self._event(reply.piece("", first=True))
        try:
            while not isinstance(part, Finish):
                self._event(reply.piece(part))
                part = self._next(answer)
        except RequestError as error:
            self._event(error.body())
            return
        self._event(reply.end(part.reason))
        if request.include_usage:
            self._event(reply.usage(part.usage))
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, body: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(body)}\n\n".encode())
        self.wfile.flush()

    def _refuse(self, error: RequestError) -> None:
        """Send an error and close: a body that was not read must not be taken for a request."""
        self.close_connection = True
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._send(error.status, error.body())

    def _send(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log requests as this program does; they hold no key."""
        logger.debug(format, *arguments)
