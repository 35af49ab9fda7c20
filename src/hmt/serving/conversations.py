"""Memories of conversations, so that a turn reads only what is new."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import torch
from torch import Tensor

from hmt.memory.state import MemoryState

KEPT_MEMORIES = 32
"""Memories kept; the ones that were used least recently are dropped."""


class Conversations:
    """Memories at the end of answers. A request that goes on from an answer continues its memory.

    Clients of the OpenAI API send the whole conversation each time and no name for it. Nothing is kept of prompts
    alone, only of prompts together with the answer to them, and nothing is shared between owners: neither timing nor
    `cached_tokens` tells a client of a prompt that somebody else has sent.

    Args:
        beginning: The memory before the first token of every conversation.
    """

    def __init__(self, beginning: MemoryState) -> None:
        self.beginning = beginning
        self._kept: OrderedDict[tuple[str, str, bytes], tuple[Tensor, MemoryState]] = OrderedDict()

    def keep(self, owner: str, name: str, ids: Tensor, memory: MemoryState) -> None:
        """Keep the memory of a text, (tokens,) int64, that ends within an answer.

        Args:
            owner: Whose conversation it is.
            name: The client's name for it, or "".
            ids: Tokens that the memory has read after the beginning.
            memory: The memory.
        """
        key = (owner, name, hashlib.sha256(ids.numpy().tobytes()).digest())
        self._kept[key] = ids, memory
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT_MEMORIES:
            self._kept.popitem(last=False)

    def longest_prefix(self, owner: str, name: str, ids: Tensor) -> tuple[int, MemoryState]:
        """The memory of the longest kept prefix of a text, its last token excluded, and that prefix's length."""
        best, key_of_best = (0, self.beginning), None
        for key, (read, memory) in self._kept.items():
            if key[:2] == (owner, name) and best[0] < len(read) < len(ids) and torch.equal(ids[: len(read)], read):
                best, key_of_best = (len(read), memory), key
        if key_of_best is not None:
            self._kept.move_to_end(key_of_best)
        return best
