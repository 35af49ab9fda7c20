"""`hmt serve`: answer OpenAI clients with a model that has a memory."""

from __future__ import annotations

import logging
import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from hmt.files import read_text
from hmt.memory.state import MemoryState
from hmt.model.loading import load
from hmt.options import API_KEY, ServeOptions
from hmt.serving.engine import Engine
from hmt.serving.http import LOOPBACK, Server

logger = logging.getLogger(__name__)


def run(options: ServeOptions) -> tuple[dict[str, Any], str]:
    """Serve until interrupted or terminated.

    Returns:
        How many requests were answered, and a closing line.

    Raises:
        ValueError: If there is no key where one is needed, or the memory is another model's.
        OSError: If the key or the memory cannot be read, or the port not be taken.
    """
    key = _api_key(options)
    memory = None if options.memory is None else MemoryState.load(options.memory)
    model, tokenizer = load(options)
    engine = Engine(model, tokenizer, memory, options.sampling)
    name = options.served_name or Path(options.load_from_ckpt or options.model_name).resolve().name
    with Server((options.host, options.port), engine, name, key) as server:
        host, port = server.server_address[:2]
        shown = f"[{host!s}]" if ":" in str(host) else host
        logger.info("serving %s at http://%s:%d/v1, %s", name, shown, port, "with a key" if key else "without a key")

        def stop(number: int, frame: FrameType | None) -> None:
            threading.Thread(target=server.shutdown).start()  # waits for the loop, which this interrupts

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            server.serve_forever(poll_interval=0.1)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return {"answered": server.answered}, f"{server.answered} requests answered"


def _api_key(options: ServeOptions) -> str | None:
    """The key that clients must send."""
    if options.api_key_file is not None:
        key = read_text(options.api_key_file).strip()
    else:
        key = os.environ.get(API_KEY, "").strip()
    if not options.require_key:
        if options.host not in LOOPBACK:
            raise ValueError(f"--no-require_key serves on loopback only, not on {options.host}")
        return None
    if not key:
        raise ValueError(
            f"clients need a key: put any long random text into {API_KEY} or a file given with --api_key_file, or "
            "serve without one on loopback with --no-require_key"
        )
    if not (key.isascii() and key.isprintable()):
        raise ValueError("the key must be printable ASCII: clients cannot send any other in a header")
    return key
