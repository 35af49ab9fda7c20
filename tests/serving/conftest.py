"""A tiny model behind the application."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from starlette.testclient import TestClient

from hmt import HMTForCausalLM, MemoryState
from hmt.serving.app import create_app
from hmt.serving.engine import Engine, Limits
from tests.conftest import CHAT_TEMPLATES, byte_tokenizer

READABLE = [i for i in range(3, 259) if byte_tokenizer().decode([i]).isalnum() or i == 223]  # and the space
SAMPLING = {"max_new_tokens": 40, "suppress_tokens": [i for i in range(300) if i not in READABLE]}
HELLO = [{"role": "user", "content": "Hello, who are you?"}]
CHAT = {"model": "tiny", "messages": HELLO}
CHAT_PATH, TEXT_PATH = "/v1/chat/completions", "/v1/completions"


def make_engine(model: HMTForCausalLM, memory: MemoryState | None = None, **settings: Any) -> Engine:
    """An engine for a model of bytes that chats."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = settings.pop("template", CHAT_TEMPLATES["chatml"])
    limits = Limits(**settings.pop("limits", {}))
    return Engine(model, tokenizer, memory, SAMPLING | settings.pop("sampling", {}), limits, **settings)


@pytest.fixture
def serve() -> Iterator[Callable[..., TestClient]]:
    """Start applications in this process: a client of each."""
    with ExitStack() as stack:

        def start(
            model: HMTForCausalLM,
            memory: MemoryState | None = None,
            name: str = "tiny",
            keys: tuple[str, ...] = (),
            cors_origins: tuple[str, ...] = (),
            **settings: Any,
        ) -> TestClient:
            app = create_app(make_engine(model, memory, **settings), name, keys=keys, cors_origins=cors_origins)
            client = TestClient(app, base_url="http://localhost", raise_server_exceptions=False)
            return stack.enter_context(client)

        yield start


@pytest.fixture
def client(model: HMTForCausalLM, serve: Callable[..., TestClient]) -> TestClient:
    """A client of the tiny model."""
    return serve(model)
