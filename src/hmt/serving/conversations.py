"""Conversations: their turns at the model, and their memories, so that a turn reads only what is new."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from hmt.memory.state import MemoryState
from hmt.serving.schema import RequestError

KEPT_MEMORIES = 32
"""Memories kept; the ones that were used least recently are dropped."""


class Turns:
    """One request at a time has the model. Conversations take turns; each one's requests keep their order.

    Args:
        size: Requests that may wait; further ones are refused.

    Attributes:
        closed: Set to refuse all requests that have not had their turn.
    """

    def __init__(self, size: int) -> None:
        self.closed = False
        self._size = size
        self._waiting = 0
        self._model = asyncio.Lock()
        self._conversations: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def take(self, conversation: Hashable) -> AsyncIterator[None]:
        """Have the model in this block.

        Raises:
            RequestError: If too many wait, or the server stops; status 503.
        """
        if self._waiting >= self._size:
            raise RequestError("the server is busy: too many requests are waiting", status=503)
        # Locks serve whoever came first. One request of each conversation at a time stands in line for the model.
        own = self._conversations.setdefault(conversation, asyncio.Lock())
        async with AsyncExitStack() as held:
            self._waiting += 1
            try:
                await held.enter_async_context(own)
                await held.enter_async_context(self._model)
            finally:
                self._waiting -= 1
            if self.closed:
                raise RequestError("the server is shutting down", status=503)
            yield


@dataclass(frozen=True)
class _Kept:
    conversation: Hashable
    ids: Tensor
    memory: MemoryState


class Memories:
    """Memories at the end of answers. A request that goes on from an answer continues its memory.

    Clients of the OpenAI API send the whole conversation each time and no name for it. Nothing is kept of prompts
    alone, only of prompts together with the answer to them, and nothing is shared between owners: neither timing nor
    `cached_tokens` tells a client of a prompt that somebody else has sent.

    Args:
        beginning: Memory before the first token of every conversation.
    """

    def __init__(self, beginning: MemoryState) -> None:
        self._beginning = beginning
        self._kept: list[_Kept] = []  # the one used last comes last

    def keep(self, conversation: Hashable, ids: Tensor, memory: MemoryState) -> None:
        """Keep the memory of a text that ends within an answer.

        Args:
            conversation: Owner and, where the client gives one, name of the conversation.
            ids: Tokens that the memory has read after the beginning, (tokens,) int64.
            memory: The memory.
        """
        self._kept.append(_Kept(conversation, ids, memory))
        del self._kept[:-KEPT_MEMORIES]

    def longest_prefix(self, conversation: Hashable, ids: Tensor) -> tuple[int, MemoryState]:
        """Length and memory of the longest kept prefix of a text, its last token excluded."""
        longest = _Kept(conversation, ids[:0], self._beginning)
        for kept in self._kept:
            size = len(kept.ids)
            if kept.conversation == conversation and len(longest.ids) < size < len(ids):
                longest = kept if torch.equal(ids[:size], kept.ids) else longest
        if len(longest.ids):
            self._kept = [*(kept for kept in self._kept if kept is not longest), longest]
        return len(longest.ids), longest.memory
