"""Conversations take turns at the model, and only so many requests wait."""

from __future__ import annotations

import asyncio

import pytest

from hmt.serving.app import Turns
from hmt.serving.schema import RequestError


def test_conversations_take_turns_and_only_so_many_wait() -> None:
    order: list[str] = []

    async def ask(turns: Turns, conversation: str) -> None:
        async with turns.take(conversation):
            order.append(conversation)
            await asyncio.sleep(0)

    async def all_ask() -> None:
        turns = Turns(size=5)
        async with turns.take("long"):
            leaves = asyncio.create_task(ask(turns, "leaves"))
            waiting = [asyncio.create_task(ask(turns, name)) for name in ("often", "often", "often", "once")]
            await asyncio.sleep(0)
            with pytest.raises(RequestError) as caught:
                await ask(turns, "too many")
            assert (caught.value.status_code, "Retry-After" in (caught.value.headers or {})) == (503, True)
            leaves.cancel()
            await asyncio.sleep(0)
            waiting.append(asyncio.create_task(ask(turns, "instead")))
            await asyncio.sleep(0)
        await asyncio.gather(*waiting)
        await ask(turns, "later")

    asyncio.run(all_ask())
    assert order == ["often", "once", "instead", "often", "often", "later"]


def test_those_that_wait_are_refused_when_the_server_stops() -> None:
    async def stop() -> None:
        turns = Turns(size=5)
        async with turns.take("long"):
            waiting = asyncio.create_task(turns.take("waits").__aenter__())
            await asyncio.sleep(0)
            turns.closed = True
        with pytest.raises(RequestError) as caught:
            await waiting
        assert caught.value.status_code == 503

    asyncio.run(stop())
