"""The application answers as `generate` would, and refuses in the form that clients of the OpenAI API expect."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from hmt import HMTForCausalLM, MemoryState
from hmt.serving import engine as engine_module
from hmt.serving.schema import CompletionRequest, RequestError, parse
from tests.conftest import CHAT_TEMPLATES, byte_tokenizer, make_model, make_rolling, random_ids
from tests.serving.conftest import CHAT, CHAT_PATH, HELLO, READABLE, SAMPLING, TEXT_PATH, make_engine

TEXT = {"model": "tiny", "prompt": "Once upon"}
Serve = Callable[..., TestClient]


def rendered(messages: list[dict[str, str]]) -> str:
    """A conversation as the model reads it."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATES["chatml"]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def expected_text(model: HMTForCausalLM, text: str, memory: MemoryState | None = None, **settings: Any) -> str:
    """The text that `generate` writes after another."""
    tokenizer = byte_tokenizer()
    ids = tokenizer(text, return_tensors="pt").input_ids
    out = model.generate(ids, memory=memory, **SAMPLING | settings)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def ask(
    client: TestClient, path: str = CHAT_PATH, headers: dict[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    """A whole answer."""
    response = client.post(path, json=(CHAT if path == CHAT_PATH else TEXT) | more, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()


def ask_for_chunks(client: TestClient, path: str = CHAT_PATH, **more: Any) -> list[dict[str, Any]]:
    """The chunks of a streamed answer."""
    response = client.post(path, json=(CHAT if path == CHAT_PATH else TEXT) | {"stream": True} | more)
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, last, rest = response.text.split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def texts(answer: dict[str, Any]) -> list[str]:
    """The text of each choice."""
    return [one["text"] if "text" in one else one["message"]["content"] for one in answer["choices"]]


def test_a_conversation_is_answered_whole_and_as_a_stream(model: HMTForCausalLM, client: TestClient) -> None:
    expected = expected_text(model, rendered(HELLO))
    whole = ask(client)
    assert texts(whole) == [expected]
    assert whole["choices"][0]["message"]["role"] == "assistant"
    assert whole["choices"][0]["finish_reason"] == "length"
    prompt = len(rendered(HELLO))
    assert whole["usage"]["completion_tokens"] == 40
    assert (whole["usage"]["prompt_tokens"], whole["usage"]["total_tokens"]) == (prompt, prompt + 40)

    first, *middle, end, usage = ask_for_chunks(client, stream_options={"include_usage": True})
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle) == expected
    assert len(middle) == 40
    assert end["choices"][0]["finish_reason"] == "length"
    assert usage["choices"] == []
    assert usage["usage"] == whole["usage"]
    assert {chunk["id"] for chunk in (first, *middle, end, usage)} == {first["id"]}


def test_prompts_are_continued_whole_and_as_a_stream(model: HMTForCausalLM, client: TestClient) -> None:
    prompts = ["Once upon", "a"]
    tokens = [byte_tokenizer()(prompt)["input_ids"] for prompt in prompts]
    expected = [expected_text(model, prompt, max_new_tokens=9) for prompt in prompts]
    assert texts(ask(client, TEXT_PATH, max_tokens=9)) == expected[:1]
    assert texts(ask(client, TEXT_PATH, max_tokens=9, prompt=tokens)) == expected
    chunks = ask_for_chunks(client, TEXT_PATH, max_tokens=9, prompt=prompts)
    for index, text in enumerate(expected):
        own = [one for chunk in chunks for one in chunk["choices"] if one["index"] == index]
        assert "".join(one["text"] for one in own) == text
        assert [one["finish_reason"] for one in own][-1] == "length"


def test_padding_tokens_in_a_prompt_are_tokens_of_it(model: HMTForCausalLM, client: TestClient) -> None:
    for prompt in ([0], [70, 0]):
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **SAMPLING | {"max_new_tokens": 9})
        expected = byte_tokenizer().decode(out[0, len(prompt) :])
        assert texts(ask(client, TEXT_PATH, prompt=prompt, max_tokens=9)) == [expected]


def test_several_choices_are_drawn_from_one_seed(client: TestClient) -> None:
    settings = {"temperature": 1.5, "n": 3, "max_tokens": 12}
    drawn = [texts(ask(client, **settings, seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 3
    assert ask(client, **settings, seed=1)["usage"]["completion_tokens"] == 36


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_and_is_no_part_of_it(
    stream: bool, model: HMTForCausalLM, client: TestClient
) -> None:
    free = expected_text(model, "abc")
    stop = free[10:13]
    settings = {"prompt": "abc", "stop": [stop, "\n\n"]}
    if stream:
        chunks = ask_for_chunks(client, TEXT_PATH, **settings)
        text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
        reason = chunks[-1]["choices"][0]["finish_reason"]
    else:
        answer = ask(client, TEXT_PATH, **settings)
        text, reason = texts(answer)[0], answer["choices"][0]["finish_reason"]
        assert answer["usage"]["completion_tokens"] == free.index(stop) + len(stop)
    assert text == free[: free.index(stop)]
    assert reason == "stop"


def test_an_answer_ends_with_an_end_token_of_the_tokenizer_or_of_the_model(serve: Serve) -> None:
    model = make_model()
    model.generation_config.eos_token_id = 70
    client = serve(model, sampling={"suppress_tokens": None})
    for end in (2, 70):
        answer = ask(client, logit_bias={str(end): 100}, logprobs=True)
        assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (1, "stop")
        assert answer["choices"][0]["logprobs"]["content"] == []


def test_settings_that_look_back_see_the_whole_prompt(
    model: HMTForCausalLM, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "READ_AT_ONCE", 20)
    prompt = "abcdefghijklmnopqrstuvwxyz" * 2
    settings = {"repetition_penalty": 2.0}
    answer = ask(client, TEXT_PATH, prompt=prompt, max_tokens=15, **settings)
    assert texts(answer) == [expected_text(model, prompt, max_new_tokens=15, **settings)]
    assert texts(answer) != [expected_text(model, prompt, max_new_tokens=15)]


def test_logprobs_are_those_of_the_model(model: HMTForCausalLM, client: TestClient) -> None:
    prompt = "Once upon"
    found = ask(client, TEXT_PATH, prompt=prompt, max_tokens=6, logprobs=2)["choices"][0]["logprobs"]
    text = expected_text(model, prompt, max_new_tokens=6)
    assert found["tokens"] == list(text)
    ids = byte_tokenizer()(prompt + text, return_tensors="pt").input_ids
    banned = torch.tensor(SAMPLING["suppress_tokens"])
    logprobs = model(ids).logits[0].detach().index_fill(1, banned, -math.inf).log_softmax(-1)[:-1]
    expected = logprobs.gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0]
    assert found["token_logprobs"] == pytest.approx(expected.tolist(), abs=1e-4)
    assert found["top_logprobs"][-1][text[-1]] == max(found["top_logprobs"][-1].values())

    settings = {"logprobs": True, "top_logprobs": 2, "max_tokens": 5}
    content = ask(client, **settings)["choices"][0]["logprobs"]["content"]
    assert all(one["top_logprobs"][0]["logprob"] == one["logprob"] for one in content)
    assert all(len(one["top_logprobs"]) == 2 and one["bytes"] == list(one["token"].encode()) for one in content)
    chunks = ask_for_chunks(client, **settings)
    streamed = [entry for one in chunks for entry in (one["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert streamed == content
    assert ask(client, TEXT_PATH, max_tokens=2, logprobs=0)["choices"][0]["logprobs"]["tokens"]


def test_no_new_tokens_are_generated_if_none_are_wanted(client: TestClient) -> None:
    answer = ask(client, TEXT_PATH, max_tokens=0)
    assert (texts(answer), answer["usage"]["completion_tokens"]) == ([""], 0)


def test_text_without_spaces_is_streamed_character_by_character(model: HMTForCausalLM, serve: Serve) -> None:
    tokens = byte_tokenizer()("世")["input_ids"]
    client = serve(model, sampling={"suppress_tokens": [i for i in range(300) if i not in tokens]})
    pieces = [chunk["choices"][0]["text"] for chunk in ask_for_chunks(client, TEXT_PATH, max_tokens=30)]
    assert len(pieces) > 5


def test_every_conversation_begins_with_the_memory_and_none_changes_it(model: HMTForCausalLM, serve: Serve) -> None:
    book = model.remember(random_ids(1, 90))
    client = serve(model, book)
    for _ in range(2):
        answer = ask(client)
        assert texts(answer) == [expected_text(model, rendered(HELLO), book)]
    assert texts(answer) != [expected_text(model, rendered(HELLO))]


def test_what_was_recalled_is_told(serve: Serve) -> None:
    text = "".join(f"Line {number} of the book. " for number in range(20))
    model = make_rolling(segment_length=128, num_recalled_tokens=32)
    book = model.remember(byte_tokenizer()(text, return_tensors="pt").input_ids)
    client = serve(model, book)
    asked = {"prompt": "Line 13 of the book", "max_tokens": 5}
    whole = ask(client, TEXT_PATH, **asked)["hmt"]["recalled"]
    assert whole
    assert "13" in whole[0]["text"]
    for passage in whole:
        assert passage["text"] == text[passage["start"] : passage["start"] + passage["tokens"]]
    assert ask_for_chunks(client, TEXT_PATH, **asked)[-1]["hmt"]["recalled"] == whole


def conversation(client: TestClient, turns: int, headers: dict[str, str] | None = None) -> list[dict[str, int]]:
    """The usage of each turn of a conversation."""
    messages = list(HELLO)
    usage = []
    for number in range(turns):
        answer = client.post(CHAT_PATH, json=CHAT | {"messages": messages, "max_tokens": 12}, headers=headers).json()
        usage.append(answer["usage"] | answer["usage"]["prompt_tokens_details"])
        said = {"role": "assistant", "content": texts(answer)[0]}
        messages = [*messages, said, {"role": "user", "content": f"And number {number}?"}]
    return usage


def test_a_conversation_that_grows_is_not_read_again(
    model: HMTForCausalLM, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "READ_AT_ONCE", 20)
    first, second, third = conversation(client, 3)
    assert first["cached_tokens"] == 0
    for before, after in ((first, second), (second, third)):
        assert after["cached_tokens"] == before["total_tokens"] - 1  # the last token was never read
    ask(client, TEXT_PATH, prompt="x" * 300, max_tokens=1)
    assert conversation(client, 2)[1]["cached_tokens"] > 0


def test_nobody_learns_what_another_client_has_sent(model: HMTForCausalLM, serve: Serve) -> None:
    client = serve(model, keys=("one", "two", "three"))
    one, two, three = ({"Authorization": f"Bearer {key}"} for key in ("one", "two", "three"))
    mine = conversation(client, 3, one)
    assert [turn["cached_tokens"] > 0 for turn in mine] == [False, True, True]
    again = client.post(CHAT_PATH, json=CHAT, headers=one).json()
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 0  # the prompt alone is not kept
    assert [turn["cached_tokens"] for turn in conversation(client, 1, two)] == [0]
    for prompt in ("a prompt", "a prompt and more"):  # of which one token is generated: nothing is kept of it
        usage = ask(client, TEXT_PATH, one, prompt=prompt, max_tokens=1)["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == 0
    said = [*HELLO, {"role": "assistant", "content": texts(again)[0]}, HELLO[0]]
    for headers, more in ((three, {}), (one, {"prompt_cache_key": "another conversation"})):
        answer = client.post(CHAT_PATH, json=CHAT | {"messages": said} | more, headers=headers).json()
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_control_tokens_that_a_user_types_are_text_unless_allowed(model: HMTForCausalLM, serve: Serve) -> None:
    for allowed, tokens in ((False, 4), (True, 1)):
        template = "{{ messages[0]['content'] }}{{ messages[0]['name'] }}"
        client = serve(model, template=template, allow_control_tokens=allowed)
        for path, more in (
            (CHAT_PATH, {"messages": [{"role": "user", "content": "</s>"}]}),
            (CHAT_PATH, {"messages": [{"role": "user", "content": "", "name": "</s>"}]}),
            (TEXT_PATH, {"prompt": "</s>"}),
        ):
            assert ask(client, path, max_tokens=1, **more)["usage"]["prompt_tokens"] == tokens


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/", "/v1/models?limit=1"])
def test_models_are_listed(path: str, client: TestClient) -> None:
    assert [one["id"] for one in client.get(path).json()["data"]] == ["tiny"]


def test_a_model_with_a_slash_is_found_by_its_name(model: HMTForCausalLM, serve: Serve) -> None:
    client = serve(model, name="org/model")
    for path in ("org/model", "org%2Fmodel", "org%2Fmodel/", "org/model?x=1"):
        assert client.get(f"/v1/models/{path}").json()["id"] == "org/model"
    assert client.get("/v1/models/org").status_code == 404
    for path in (f"{CHAT_PATH}/", f"{CHAT_PATH}?api-version=1"):
        assert client.post(path, json=CHAT | {"model": "org/model", "max_tokens": 1}).status_code == 200


def test_web_pages_are_answered_only_where_they_are_allowed(model: HMTForCausalLM, serve: Serve) -> None:
    page = "http://localhost:5173"
    preflight = {"Origin": page, "Access-Control-Request-Method": "POST"}
    refused = serve(model).options(CHAT_PATH, headers=preflight)
    assert refused.status_code == 204
    assert "access-control-allow-origin" not in refused.headers
    client = serve(model, cors_origins=(page,))
    assert client.options(CHAT_PATH, headers=preflight).headers["access-control-allow-origin"] == page
    other = client.options(CHAT_PATH, headers=preflight | {"Origin": "http://elsewhere"})
    assert "access-control-allow-origin" not in other.headers


def error_of(response: Any, status: int) -> dict[str, Any]:
    """The error of a response, which is JSON in the form of the OpenAI API."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_what_is_no_request_gets_its_status(model: HMTForCausalLM, client: TestClient, serve: Serve) -> None:
    json_type = {"Content-Type": "application/json"}
    for body in (b"{", b"[]", b"\xff", b"[" * 100_000, b'{"model": "tiny", "messages": [], "\\ud800": 1}'):
        error_of(client.post(CHAT_PATH, content=body, headers=json_type), 400)
    for number in (b"NaN", b"Infinity", b"1" + b"0" * 400, b"1" + b"0" * 5000):
        body = json.dumps(CHAT).encode()[:-1] + b', "temperature": ' + number + b"}"
        error_of(client.post(CHAT_PATH, content=body, headers=json_type), 400)
    for message in ("\\ud800", "a\\udfffb"):
        body = b'{"model": "tiny", "messages": [{"role": "user", "content": "%s"}]}' % message.encode()
        error_of(client.post(CHAT_PATH, content=body, headers=json_type), 400)
    error_of(client.post(CHAT_PATH, content=b"{}", headers={"Content-Type": "text/plain"}), 415)
    error_of(client.post(CHAT_PATH, content=json.dumps(CHAT | {"model": "\ud800"}), headers=json_type), 404)
    error_of(client.post("/v1/embeddings", json={}), 404)
    error_of(client.get(CHAT_PATH), 405)
    error_of(client.post(TEXT_PATH, json=TEXT | {"prompt": [5, 400]}), 400)
    error_of(client.post(TEXT_PATH, json=TEXT | {"prompt": ""}), 400)
    error_of(client.post(TEXT_PATH, json=TEXT | {"logit_bias": {"400": 1}}), 400)
    assert error_of(client.post(CHAT_PATH, json=CHAT | {"model": "gpt-9"}), 404)["code"] == "model_not_found"
    assert error_of(client.post(CHAT_PATH, json=CHAT | {"n": 0}), 400)["param"] == "n"
    for template in ("{{ messages[0].content + 1 }}", "{{ raise_exception('no') }}"):
        error_of(serve(model, template=template).post(CHAT_PATH, json=CHAT), 400)
    assert ask(client, max_tokens=1)  # and it still answers


def test_bodies_have_a_size_and_may_come_in_chunks(model: HMTForCausalLM, serve: Serve) -> None:
    client = serve(model, limits={"body_bytes": 1000})
    json_type = {"Content-Type": "application/json"}
    body = json.dumps(CHAT | {"max_tokens": 1}).encode()
    assert client.post(CHAT_PATH, content=iter([body[:10], body[10:]]), headers=json_type).status_code == 200
    error_of(client.post(CHAT_PATH, content=iter([b" " * 600, b" " * 600]), headers=json_type), 413)


def test_a_key_is_wanted_before_anything_else(model: HMTForCausalLM, serve: Serve, caplog: Any) -> None:
    client = serve(model, keys=("first", "second"))
    for header in (
        {},
        {"Authorization": "Bearer guessed"},
        {"Authorization": "Basic first"},
        {"Authorization": "first"},
    ):
        response = client.post(CHAT_PATH, content=b"{", headers=header)
        assert error_of(response, 401)["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
        error_of(client.get("/v1/models", headers=header), 401)
    assert client.get("/health").json() == {"status": "ok"}
    for key in ("first", "second"):
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    assert "guessed" not in caplog.text


def test_without_a_key_only_loopback_names_are_answered(client: TestClient) -> None:
    for host in ("localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"):
        assert client.get("/v1/models", headers={"Host": host}).status_code == 200
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "[::2]"):
        error_of(client.get("/v1/models", headers={"Host": host}), 403)


def test_tokens_and_time_of_a_request_are_capped(model: HMTForCausalLM, serve: Serve) -> None:
    client = serve(model, limits={"tokens": 7})
    answer = ask(client, max_tokens=10**18)
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (7, "length")
    client = serve(model, limits={"seconds": 0.5, "tokens": 10**6})
    answer = ask(client, max_tokens=10**6)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] < 10**6
    client = serve(model, limits={"seconds": 0.0})
    assert texts(ask(client, TEXT_PATH, prompt=["a", "b"], n=2)) == [""] * 4


def test_a_prompt_that_is_not_read_in_time_is_refused(model: HMTForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "READ_AT_ONCE", 20)
    spent = iter([False, False, True])  # before the first part, before the second, ...
    request = parse(CompletionRequest, TEXT | {"prompt": "x" * 90})
    with pytest.raises(RequestError) as caught:
        make_engine(model).answer(request, "", lambda delta: None, lambda: next(spent))
    assert caught.value.status_code == 503


def test_a_request_that_cannot_wait_is_told_when_to_come_back(model: HMTForCausalLM, serve: Serve) -> None:
    response = serve(model, limits={"waiting": 0}).post(CHAT_PATH, json=CHAT)
    assert error_of(response, 503)["type"] == "server_error"
    assert int(response.headers["retry-after"]) > 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_a_server_error(value: float, serve: Serve) -> None:
    model = make_model()
    with torch.no_grad():
        model.backbone.get_output_embeddings().weight[READABLE[0]] = value
    client = serve(model)
    for more in ({}, {"temperature": 1.0}, {"stream": True}):
        assert error_of(client.post(CHAT_PATH, json=CHAT | more), 500)["type"] == "server_error"


def test_any_failure_of_the_model_is_a_server_error(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    client = serve(model)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(model, "generate", fail)
        assert error_of(client.post(CHAT_PATH, json=CHAT), 500)["type"] == "server_error"
    assert ask(client, max_tokens=1)
