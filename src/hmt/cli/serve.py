"""`hmt serve`: an OpenAI-compatible server for a model with a memory."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from hmt.cli.writing import ServeOptions
from hmt.files import read_text
from hmt.memory.state import MemoryState
from hmt.model.loading import load
from hmt.options import API_KEY

if TYPE_CHECKING:
    import uvicorn

logger = logging.getLogger(__name__)


def run(options: ServeOptions) -> tuple[dict[str, Any], str]:
    """Serve until interrupted or terminated; answers that are under way are finished.

    Returns:
        How many requests were answered, and a closing line.

    Raises:
        ImportError: If the extra `serve` is not installed.
        ValueError: If there is no key where one is needed, or the memory is another model's.
        OSError: If the keys or the memory cannot be read, or the address cannot be listened on.
    """
    if missing := [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]:
        raise ImportError(f"hmt serve needs {' and '.join(missing)}, the extra serve: pip install 'hmt[serve]'")
    from hmt.serving.app import create_app
    from hmt.serving.engine import Engine
    from hmt.serving.jobs import Limits
    from hmt.serving.server import listen, make_server

    keys = _keys(options)
    memory = None if options.memory is None else MemoryState.load(options.memory)
    model, tokenizer = load(options)
    limits = Limits(
        body_bytes=options.max_request_bytes,
        tokens=options.max_request_tokens,
        seconds=options.max_request_seconds,
        waiting=options.max_waiting,
    )
    with listen(options.host, options.port) as address:
        engine = Engine(model, tokenizer, memory, options.sampling, limits, options.allow_control_tokens)
        name = options.served_name or Path(options.load_from_ckpt or options.model_name).resolve().name
        app = create_app(engine, name, keys=keys, cors_origins=options.origins)
        shown = f"[{options.host}]" if ":" in options.host else options.host
        port = address.getsockname()[1]
        logger.info("serving %s at http://%s:%d/v1, %s", name, shown, port, "with a key" if keys else "without a key")
        server = make_server(app, options.max_connections)
        with _stopped_by_signals(server):
            server.run(sockets=[address])
    return {"answered": app.state.answered}, f"{app.state.answered} requests answered"


@contextmanager
def _stopped_by_signals(server: uvicorn.Server) -> Iterator[None]:
    """Let SIGINT and SIGTERM end in a normal return: uvicorn stops for them, and then raises them once more."""

    def stop(number: int, frame: FrameType | None) -> None:
        server.should_exit = True  # before uvicorn has handlers of its own

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
