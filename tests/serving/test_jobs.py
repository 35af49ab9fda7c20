"""Who is next: conversations take turns, and only so many requests wait."""

from __future__ import annotations

import pytest

from hmt.serving.jobs import FairQueue, GenerationRequest, Job, RequestError


def job(text: str, owner: str = "") -> Job:
    """A request of a conversation that begins with this text."""
    return Job(GenerationRequest(prompts=(text,)), owner, lambda event: None)


def test_conversations_take_turns() -> None:
    queue = FairQueue(size=10)
    first, again, thrice = job("a"), job("a"), job("a")
    other, others_key = job("b"), job("a", owner="1")
    for one in (first, again, thrice, other, others_key):
        queue.put(one)
    assert [queue.get() for _ in range(5)] == [first, other, others_key, again, thrice]


def test_further_requests_are_refused_until_one_has_its_turn() -> None:
    queue = FairQueue(size=2)
    queue.put(job("a"))
    waiting = job("b")
    queue.put(waiting)
    with pytest.raises(RequestError) as caught:
        queue.put(job("c"))
    assert caught.value.status == 503
    assert queue.remove(waiting)
    assert not queue.remove(waiting)
    queue.put(job("c"))


def test_a_closed_queue_gives_back_what_waits() -> None:
    queue = FairQueue(size=2)
    waiting = job("a")
    queue.put(waiting)
    assert queue.close() == [waiting]
    assert queue.get() is None
    with pytest.raises(RequestError):
        queue.put(job("b"))
