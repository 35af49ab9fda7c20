"""A real OpenAI client talks to the server over loopback."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from hmt import HMTForCausalLM, MemoryState
from hmt.serving.engine import Engine
from hmt.serving.http import Server
from tests.conftest import CHAT_TEMPLATES, byte_tokenizer, make_model, random_ids

KEY = "a-long-random-text"
READABLE = [i for i in range(3, 259) if byte_tokenizer().decode([i]).isalnum() or i == 223]  # and the space
SAMPLING = {"max_new_tokens": 40, "suppress_tokens": [i for i in range(300) if i not in READABLE]}
HELLO = [{"role": "user", "content": "Hello, who are you?"}]


@pytest.fixture
def serve() -> Iterator[Callable[..., openai.OpenAI]]:
    """Starts servers in this process and gives clients of them."""
    running: list[Server] = []

    def start(
        model: HMTForCausalLM, memory: MemoryState | None = None, key: str | None = KEY, sent: str = KEY
    ) -> openai.OpenAI:
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = CHAT_TEMPLATES["chatml"]
        server = Server(("127.0.0.1", 0), Engine(model, tokenizer, memory, SAMPLING), "tiny", key)
        running.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        host, port = server.server_address[:2]
        return openai.OpenAI(base_url=f"http://{host}:{port}/v1", api_key=sent, max_retries=0, timeout=30)

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def expected_text(model: HMTForCausalLM, text: str, memory: MemoryState | None = None, **settings: Any) -> str:
    """What `generate` writes after a text."""
    tokenizer = byte_tokenizer()
    ids = tokenizer(text, return_tensors="pt").input_ids
    out = model.generate(ids, memory=memory, **SAMPLING | settings)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def rendered(messages: list[dict[str, str]]) -> str:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATES["chatml"]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def test_a_conversation_is_answered_whole_and_as_a_stream(model: HMTForCausalLM, serve: Any) -> None:
    client = serve(model)
    assert [one.id for one in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    whole = client.chat.completions.create(model="tiny", messages=HELLO)
    expected = expected_text(model, rendered(HELLO))
    assert whole.choices[0].message.content == expected
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 40
    assert whole.usage.prompt_tokens == len(rendered(HELLO))
    events = list(
        client.chat.completions.create(
            model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(e.choices[0].delta.content or "" for e in events if e.choices) == expected
    assert events[0].choices[0].delta.role == "assistant"
    assert [e.choices[0].finish_reason for e in events if e.choices][-1] == "length"
    assert events[-1].usage.completion_tokens == 40


def test_a_prompt_is_continued(model: HMTForCausalLM, serve: Any) -> None:
    client = serve(model)
    for prompt in ("Once upon", byte_tokenizer()("Once upon")["input_ids"]):
        done = client.completions.create(model="tiny", prompt=prompt, max_tokens=9)
        assert done.choices[0].text == expected_text(model, "Once upon", max_new_tokens=9)
    streamed = client.completions.create(model="tiny", prompt="Once upon", max_tokens=9, stream=True)
    assert "".join(event.choices[0].text for event in streamed) == done.choices[0].text


def test_every_request_goes_on_from_the_memory_and_none_changes_it(model: HMTForCausalLM, serve: Any) -> None:
    book = model.remember(random_ids(1, 90))
    client = serve(model, book)
    texts = [client.chat.completions.create(model="tiny", messages=HELLO).choices[0].message.content for _ in "ab"]
    assert texts[0] == texts[1] == expected_text(model, rendered(HELLO), book)
    assert texts[0] != expected_text(model, rendered(HELLO))


def test_a_conversation_that_grows_is_not_read_again(model: HMTForCausalLM, serve: Any) -> None:
    client = serve(model)
    messages = list(HELLO)
    cached, read_so_far = [], [0]
    for number in range(3):
        done = client.chat.completions.create(model="tiny", messages=messages)
        assert done.choices[0].message.content == expected_text(model, rendered(messages))
        cached.append(done.usage.prompt_tokens_details.cached_tokens)
        before = done.usage.prompt_tokens + done.usage.completion_tokens - 1
        messages += [
            {"role": "assistant", "content": done.choices[0].message.content},
            {"role": "user", "content": f"And number {number}?"},
        ]
        read_so_far.append(before)
    assert cached == read_so_far[:3]


def test_sampling_follows_the_seed(model: HMTForCausalLM, serve: Any) -> None:
    client = serve(model)
    texts = [
        client.completions.create(model="tiny", prompt="abc", temperature=1.5, seed=seed, max_tokens=20).choices[0].text
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(stream: bool, model: HMTForCausalLM, serve: Any) -> None:
    client = serve(model)
    free = expected_text(model, "abc")
    stop = free[10:13]
    done = client.completions.create(model="tiny", prompt="abc", stop=[stop, "\n\n"], stream=stream)
    if stream:
        events = list(done)
        text, reason = "".join(event.choices[0].text for event in events), events[-1].choices[0].finish_reason
    else:
        text, reason = done.choices[0].text, done.choices[0].finish_reason
    assert text == free[: free.index(stop)]
    assert reason == "stop"


def test_settings_that_look_back_see_the_whole_prompt(model: HMTForCausalLM, serve: Any) -> None:
    client = serve(model)
    prompt = "abcdefghijklmnopqrstuvwxyz" * 2
    done = client.completions.create(model="tiny", prompt=prompt, max_tokens=15, extra_body={"repetition_penalty": 2})
    assert done.choices[0].text == expected_text(model, prompt, max_new_tokens=15, repetition_penalty=2.0)
    assert done.choices[0].text != expected_text(model, prompt, max_new_tokens=15)


def test_one_long_prompt_does_not_push_out_the_other_conversations(
    model: HMTForCausalLM, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hmt.serving.engine.READ_AT_ONCE", 20)
    client = serve(model)
    first = client.chat.completions.create(model="tiny", messages=HELLO)
    client.completions.create(model="tiny", prompt="x" * 1500, max_tokens=1)
    said = {"role": "assistant", "content": first.choices[0].message.content}
    again = client.chat.completions.create(model="tiny", messages=[*HELLO, said, HELLO[0]])
    assert again.usage.prompt_tokens_details.cached_tokens > 0


def test_wrong_keys_models_and_requests_are_the_errors_clients_know(model: HMTForCausalLM, serve: Any) -> None:
    with pytest.raises(openai.AuthenticationError, match="API key is missing or wrong"):
        serve(model, sent="guessed").models.list()
    client = serve(model)
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-9'; this server has 'tiny'"):
        client.chat.completions.create(model="gpt-9", messages=HELLO)
    with pytest.raises(openai.BadRequestError, match="n is not served"):
        client.chat.completions.create(model="tiny", messages=HELLO, n=2)
    with pytest.raises(openai.BadRequestError, match="the vocabulary does not fit"):
        client.completions.create(model="tiny", prompt=[5, 400])
    with pytest.raises(openai.BadRequestError, match="seed"):
        client.completions.create(model="tiny", prompt="a", max_tokens=1, seed=1 << 64)
    with pytest.raises(openai.NotFoundError, match="there is nothing at /v1/embeddings"):
        client.embeddings.create(model="tiny", input="a")
    assert client.completions.create(model="tiny", prompt="a", max_tokens=1).choices  # and it still answers


def raw(client: openai.OpenAI, method: str, path: str, body: bytes | None, **headers: str) -> tuple[int, dict]:
    connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=10)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def test_what_is_no_request_gets_its_status(model: HMTForCausalLM, serve: Any) -> None:
    client = serve(model)
    bearer = {"Authorization": f"Bearer {KEY}", "Content_Type": "application/json"}
    path = "/v1/chat/completions"
    assert raw(client, "GET", "/health", None)[0] == 200
    assert raw(client, "POST", path, b"{", **bearer)[0] == 400
    assert raw(client, "POST", path, b"[]", **bearer)[0] == 400
    assert raw(client, "POST", path, b"{}", **bearer | {"Content_Type": "text/plain"})[0] == 415
    assert raw(client, "POST", path, b"{}", **bearer | {"Content_Length": "99999999999"})[0] == 413
    assert raw(client, "POST", path, b"{}", Content_Type="application/json")[0] == 401
    assert raw(client, "POST", path, b"{}", Content_Type="application/json", Content_Length="9" * 5000)[0] == 401
    assert raw(client, "POST", path, b"[" * 100_000, **bearer)[0] == 400
    for wrong in (
        b'"logit_bias": {"5": NaN}',
        b'"logit_bias": {"5": 1' + b"0" * 400 + b"}",
        b'"temperature": Infinity',
    ):
        body = b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], ' + wrong + b"}"
        assert raw(client, "POST", path, body, **bearer)[0] == 400
    surrogate = b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}'
    assert raw(client, "POST", path, surrogate, **bearer)[0] == 400


def test_without_a_key_only_loopback_names_are_answered(model: HMTForCausalLM, serve: Any) -> None:
    client = serve(model, key=None)
    assert client.completions.create(model="tiny", prompt="a", max_tokens=1).choices
    status, body = raw(client, "GET", "/v1/models", None, Host="evil.example")
    assert status == 403
    assert "answers on loopback only" in body["error"]["message"]


def test_a_client_that_leaves_stops_the_writing(model: HMTForCausalLM, serve: Any) -> None:
    client = serve(model)
    endless = {"model": "tiny", "prompt": "abc", "max_tokens": 1_000_000}
    stream = client.completions.create(**endless, stream=True, extra_body={"logit_bias": {"223": 9}})  # a space
    next(iter(stream))
    stream.close()
    for bias in ({}, {"223": 9}):  # nothing to see for long, and text all the time
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=1.5).completions.create(**endless, extra_body={"logit_bias": bias})
    started = time.perf_counter()
    client.completions.create(model="tiny", prompt="abc", max_tokens=2)  # waits for its turn
    assert time.perf_counter() - started < 10


def test_the_model_failing_is_a_server_error(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    client = serve(model)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(model, "generate", fail)
    with pytest.raises(openai.InternalServerError, match="the model failed: out of memory"):
        client.completions.create(model="tiny", prompt="abc")


@pytest.mark.slow
def test_the_command_serves_until_it_is_terminated(backbone_dir: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    fields = {"segment_length": 20, "num_sensory": 4, "mem_recall_hidden_dim": 16}
    book = HMTForCausalLM.from_backbone(backbone_dir, **fields).eval().remember(random_ids(1, 50))
    book.save(tmp_path / "book.memory")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = [f"--{name}={value}" for name, value in fields.items()]
    command = [sys.executable, "-m", "hmt_cli", "serve", f"--model_name={backbone_dir}", *flags, f"--port={port}"]
    process = subprocess.Popen(
        [*command, f"--memory={tmp_path / 'book.memory'}", "--served_name=book"],
        env=os.environ | {"HMT_API_KEY": KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for line in process.stderr:
            if "serving book at" in line:
                break
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0)
        assert client.completions.create(model="book", prompt="abc", max_tokens=3).usage.completion_tokens == 3
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "1 requests answered" in out
    assert KEY not in out + err


def test_a_server_without_a_key_is_not_started_by_accident(
    backbone_dir: Path, run_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HMT_API_KEY", raising=False)
    status, _, complaint = run_cli("serve", "--model_name", backbone_dir)
    assert (status, complaint.count("\n")) == (2, 1)
    assert "clients need a key" in complaint
    monkeypatch.setenv("HMT_API_KEY", "schlüssel")
    status, _, complaint = run_cli("serve", "--model_name", backbone_dir)
    assert status == 2
    assert "must be printable ASCII" in complaint
    status, _, complaint = run_cli("serve", "--model_name", backbone_dir, "--no-require_key", "--host", "0.0.0.0")
    assert status == 2
    assert "serves on loopback only, not on 0.0.0.0" in complaint
