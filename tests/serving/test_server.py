"""A real server over loopback: a real OpenAI client, clients that leave, and requests that are no HTTP."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from hmt import HMTForCausalLM
from hmt.serving import server as server_module
from hmt.serving.app import create_app
from hmt.serving.server import make_server
from tests.conftest import make_model, random_ids
from tests.serving.conftest import HELLO, make_engine

KEY = "a-long-random-text"
ENDLESS = {"model": "org/tiny", "max_tokens": 1_000_000}


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    """Address of a server with a tiny model and 40 connections."""
    engine = make_engine(make_model(), limits={"seconds": 60, "tokens": 1_000_000, "body_seconds": 1})
    server = make_server(create_app(engine, "org/tiny", keys=[KEY]), max_connections=40)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield listening.getsockname()
        server.should_exit = True
        thread.join()


@pytest.fixture
def client(address: tuple[str, int]) -> openai.OpenAI:
    """A client that does not try again."""
    return openai.OpenAI(base_url=f"http://127.0.0.1:{address[1]}/v1", api_key=KEY, max_retries=0, timeout=30)


def test_an_openai_client_is_answered(client: openai.OpenAI) -> None:
    assert [one.id for one in client.models.list()] == ["org/tiny"]
    assert client.models.retrieve("org/tiny").id == "org/tiny"
    whole = client.chat.completions.create(
        model="org/tiny", messages=HELLO, logprobs=True, top_logprobs=1, extra_query={"api-version": "1"}
    )
    chunks = list(client.chat.completions.create(model="org/tiny", messages=HELLO, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert "".join(one.token for one in whole.choices[0].logprobs.content) == whole.choices[0].message.content
    assert whole.model_extra["hmt"]["recalled"] == []  # this model has no cache to recall passages into
    done = client.completions.create(model="org/tiny", prompt=["a", "b"], n=2, max_tokens=3)
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="guessed").models.list()
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="org/tiny", input="a")
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="org/tiny", messages=HELLO, n=0)


def test_a_client_that_leaves_stops_the_generation(client: openai.OpenAI) -> None:
    stream = client.completions.create(**ENDLESS, prompt="abc", stream=True)
    next(iter(stream))
    stream.close()
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=1).completions.create(**ENDLESS, prompt="abc")
    started = time.monotonic()
    client.completions.create(model="org/tiny", prompt="abc", max_tokens=2)  # waits for its turn
    assert time.monotonic() - started < 15


@pytest.mark.parametrize("signals", [1, 2])
def test_a_server_that_stops_ends_every_answer(signals: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "GRACE_SECONDS", 1.0 if signals == 1 else 60.0)
    server = make_server(create_app(make_engine(make_model(), limits={"tokens": 1_000_000}), "org/tiny", keys=[KEY]))
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor() as pool:
        running = pool.submit(server.run, sockets=[listening])
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        client = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0)
        stream = client.completions.create(**ENDLESS, prompt="abc", stream=True)
        next(iter(stream))
        waiting = pool.submit(client.completions.create, **ENDLESS, prompt="waits")
        time.sleep(1)  # it waits by then
        for _ in range(signals):
            server.handle_exit(signal.SIGINT, None)
        assert list(stream)[-1].choices[0].finish_reason == "length"
        assert isinstance(waiting.exception(), openai.InternalServerError)
        assert waiting.exception().status_code == 503
        running.result(timeout=30)


def raw(address: tuple[str, int], data: bytes) -> bytes:
    """Send bytes, and receive until the server closes or is silent."""
    with socket.create_connection(address, timeout=5) as connection:
        connection.sendall(data)
        received = b""
        while part := connection.recv(4096):
            received += part
            if b"\r\n\r\n" in received and b"close" not in received.lower():
                break
        return received


def test_requests_with_ambiguous_or_endless_heads_are_refused(address: tuple[str, int]) -> None:
    for head in (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX : y\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 100_000,
        b"nonsense\r\n\r\n",
    ):
        assert raw(address, head).startswith(b"HTTP/1.1 400 ")
    assert raw(address, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_a_connection_without_a_whole_request_is_closed(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "HEAD_SECONDS", 0.2)
    for head in (b"", b"GET /health HTTP/1.1\r\nHost: local"):
        assert raw(address, head) == b""


def test_a_body_that_does_not_come_is_not_waited_for(address: tuple[str, int]) -> None:
    head = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n"
        b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{" % KEY.encode()
    )
    assert raw(address, head).startswith(b"HTTP/1.1 408 ")


def test_connections_beyond_the_cap_are_refused(address: tuple[str, int]) -> None:
    opened = [socket.create_connection(address, timeout=5) for _ in range(45)]
    try:
        opened[-1].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert opened[-1].recv(100).startswith(b"HTTP/1.1 503 ")
    finally:
        for one in opened:
            one.close()


def test_the_command_serves_until_it_is_terminated(backbone_dir: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    fields = {"segment_length": 20, "num_sensory": 4, "mem_recall_hidden_dim": 16}
    book = HMTForCausalLM.from_backbone(backbone_dir, **fields).eval().remember(random_ids(1, 50))
    book.save(tmp_path / "book.memory")
    flags = [f"--{name}={value}" for name, value in fields.items()]
    command = [sys.executable, "-m", "hmt_cli", "serve", f"--model_name={backbone_dir}", *flags, "--port=0"]
    process = subprocess.Popen(
        [*command, f"--memory={tmp_path / 'book.memory'}", "--served_name=\x1b[31mbook"],
        env=os.environ | {"HMT_API_KEY": KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        ready = next(line for line in process.stderr if "book at" in line)
        url = next(word for word in ready.split() if word.startswith("http")).rstrip(",")
        client = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0)
        stream = client.completions.create(model="\x1b[31mbook", prompt="abc", max_tokens=100, stream=True)
        chunks = [next(iter(stream))]
    finally:
        process.send_signal(signal.SIGTERM)
    chunks += list(stream)
    out, err = process.communicate(timeout=30)
    assert chunks[-1].choices[0].finish_reason  # an answer that is under way is finished
    assert process.returncode == 0
    assert "1 requests answered" in out
    assert KEY not in ready + out + err
    assert "\x1b" not in ready + out + err  # a name must not color the terminal


def test_a_server_is_not_started_by_accident(
    backbone_dir: Path, tmp_path: Path, run_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def complaint(*flags: object) -> str:
        status, _, complained = run_cli("serve", "--model_name", backbone_dir, *flags)
        assert (status, complained.count("\n")) == (2, 1)
        return complained

    monkeypatch.delenv("HMT_API_KEY", raising=False)
    assert "HMT_API_KEY" in complaint()
    assert "--no-require_key" in complaint("--no-require_key", "--host", "0.0.0.0")
    assert "max_request_seconds" in complaint("--max_request_seconds", 0)
    (tmp_path / "keys").write_text("good\nschlüssel\n")
    assert "ASCII" in complaint("--api_key_file", tmp_path / "keys")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert str(port) in complaint("--no-require_key", "--port", port)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "hmt[serve]" in complaint("--no-require_key")
