"""`hmt serve`: an OpenAI-compatible server for a model with a memory."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmt.files import read_text
from hmt.options import API_KEY, LOOPBACK, ModelOptions, OutputOptions, SamplingOptions, check_positive

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class ServeOptions(SamplingOptions, OutputOptions, ModelOptions):
    """Serve a model with memory through an OpenAI-compatible API; sampling flags set the defaults of requests."""

    memory: Path | None = None
    """Memory file that every conversation starts from, written by hmt remember."""
    host: str = "127.0.0.1"
    """Address to listen on; the default accepts connections from this machine only."""
    port: int = 8000
    """Port to listen on; 0 picks a free one."""
    api_key_file: Path | None = None
    """File with the accepted API keys, one per line. Default: the key in HMT_API_KEY."""
    require_key: bool = True
    """Require an API key; --no-require_key serves on a loopback address only."""
    served_name: str | None = None
    """Model name in the API. Default: the last part of the model's name."""
    max_new_tokens: int = 512
    """Maximum number of new tokens of a request that sets none."""
    max_request_tokens: int = 4096
    """Maximum number of new tokens of any request; higher values are lowered to it."""
    max_request_seconds: float = 300.0
    """Maximum seconds per request; the answer ends there."""
    max_request_bytes: int = 1 << 20
    """Maximum size of a request body in bytes."""
    max_waiting: int = 64
    """Maximum number of waiting requests; further ones are refused with status 503."""
    max_connections: int = 256
    """Maximum number of open connections."""
    cors_origins: str | None = None
    """Origins of web pages that may call the server (CORS), separated by commas, such as http://localhost:5173."""
    allow_control_tokens: bool = False
    """Interpret control tokens such as <|im_end|> in users' messages; they are treated as text otherwise."""

    @property
    def origins(self) -> list[str]:
        """Origins that `cors_origins` names."""
        return [origin.strip() for origin in (self.cors_origins or "").split(",") if origin.strip()]

    def check(self) -> None:
        """Raise a ValueError that names the first flag that makes no sense."""
        super().check()
        check_positive(self, "max_request_tokens", "max_request_seconds", "max_request_bytes")
        check_positive(self, "max_waiting", "max_connections")
        if not 0 <= self.port < 1 << 16:
            raise ValueError(f"port must lie between 0 and 65535, got {self.port}")
        if not self.require_key and self.host not in LOOPBACK:
            raise ValueError(f"--no-require_key serves on loopback only, not on --host {self.host}")


def run(options: ServeOptions) -> tuple[dict[str, Any], str]:
    """Serve until interrupted or terminated; answers that are under way are finished.

    Returns:
        The number of answered requests, and a closing line.

    Raises:
        ImportError: If the extra `serve` is not installed.
        ValueError: If there is no key where one is needed, or the memory is another model's.
        OSError: If the keys or the memory cannot be read, or the address cannot be listened on.
    """
    if missing := [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]:
        raise ImportError(f"hmt serve needs {' and '.join(missing)}, the extra serve: pip install 'hmt[serve]'")
    from hmt.memory.state import MemoryState
    from hmt.model.loading import load
    from hmt.serving.app import create_app
    from hmt.serving.engine import Engine, Limits
    from hmt.serving.server import make_server

    keys = _keys(options)
    memory = None if options.memory is None else MemoryState.load(options.memory)
    model, tokenizer = load(options)
    limits = Limits(
        body_bytes=options.max_request_bytes,
        tokens=options.max_request_tokens,
        seconds=options.max_request_seconds,
        waiting=options.max_waiting,
    )
    with _listen(options.host, options.port) as address:
        engine = Engine(model, tokenizer, memory, options.sampling, limits, options.allow_control_tokens, options.seed)
        name = options.served_name or Path(options.load_from_ckpt or options.model_name).resolve().name
        app = create_app(engine, name, keys=keys, cors_origins=options.origins)
        shown = f"[{options.host}]" if ":" in options.host else options.host
        port = address.getsockname()[1]
        logger.info("serving %s at http://%s:%d/v1, %s", name, shown, port, "with a key" if keys else "without a key")
        make_server(app, options.max_connections).run(sockets=[address])
    answered = app.state.service.answered
    return {"answered": answered}, f"{answered} requests answered"


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise OSError(f"cannot listen on --host {host} --port {port}: {error.strerror or error}") from error


def _keys(options: ServeOptions) -> list[str]:
    """Keys that clients may send; none where none is required."""
    if not options.require_key:
        return []
    text = os.environ.get(API_KEY, "") if options.api_key_file is None else read_text(options.api_key_file)
    keys = [line.strip() for line in text.splitlines() if line.strip()]
    if not keys:
        raise ValueError(
            f"clients need a key: put any long random text into {API_KEY} or a file given with --api_key_file, or "
            "serve without one on loopback with --no-require_key"
        )
    if not all(key.isascii() and key.isprintable() for key in keys):
        raise ValueError("a key must be printable ASCII: clients cannot send any other in a header")
    return keys
