"""The engine answers conversations in turn, and stops what nobody waits for."""

from __future__ import annotations

from collections.abc import Iterator
from queue import SimpleQueue

import pytest

from hmt import HMTForCausalLM
from hmt.serving.engine import Engine
from hmt.serving.jobs import ChoiceEnd, Done, Event, GenerationRequest, Job, Piece, RequestError
from tests.serving.conftest import make_engine

Delivered = SimpleQueue[tuple[str, Event]]


@pytest.fixture
def engine(model: HMTForCausalLM) -> Iterator[Engine]:
    """An engine for which three requests may wait."""
    engine = make_engine(model, limits={"waiting": 3, "tokens": 10**9, "seconds": 60})
    yield engine
    engine.close()


def submit(engine: Engine, delivered: Delivered, prompt: str, max_tokens: int = 2) -> Job:
    """Ask for a few tokens, or for as many as there is time for."""
    request = GenerationRequest(prompts=(prompt,), max_tokens=max_tokens)
    return engine.submit(request, "", lambda event: delivered.put((prompt, event)))


def test_conversations_take_turns_and_only_so_many_wait(engine: Engine) -> None:
    delivered: Delivered = SimpleQueue()
    endless = submit(engine, delivered, "endless", max_tokens=10**9)
    assert isinstance(delivered.get(timeout=30)[1], Piece)
    for prompt in ("often", "often", "once"):
        submit(engine, delivered, prompt)
    with pytest.raises(RequestError) as caught:
        submit(engine, delivered, "too many")
    assert caught.value.status == 503
    engine.cancel(endless)
    order = []
    while len(order) < 4:
        prompt, event = delivered.get(timeout=30)
        order += [prompt] if isinstance(event, Done) else []
    assert order == ["endless", "often", "once", "often"]


def test_a_request_that_waits_can_be_cancelled(engine: Engine) -> None:
    delivered: Delivered = SimpleQueue()
    endless = submit(engine, delivered, "endless", max_tokens=10**9)
    waiting = submit(engine, delivered, "waiting")
    engine.cancel(waiting)
    engine.cancel(endless)
    last = {}
    while len(last) < 2 or not isinstance(last["endless"], Done | RequestError):
        prompt, event = delivered.get(timeout=30)
        last[prompt] = event
    assert isinstance(last["waiting"], RequestError)


def test_closing_stops_what_runs_and_refuses_what_waits(engine: Engine) -> None:
    delivered: Delivered = SimpleQueue()
    submit(engine, delivered, "endless", max_tokens=10**9)
    assert isinstance(delivered.get(timeout=30)[1], Piece)
    submit(engine, delivered, "waiting")
    engine.close()
    events = []
    while not delivered.empty():
        events.append(delivered.get())
    assert [prompt for prompt, event in events if isinstance(event, RequestError)] == ["waiting"]
    assert [type(event) for prompt, event in events if prompt == "endless"][-2:] == [ChoiceEnd, Done]
